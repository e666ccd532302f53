"""All responses of a decoupled model to one request, and when they came: over a gRPC stream, or from the embedded server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchmarkError

_ANSWERS_WITHIN = 60.0

# The outputs of a response, and the time.perf_counter_ns() at which it came.
Arrival = tuple[int, Mapping[str, np.ndarray]]
# Asks `repeat` for so many responses, and for the last one, which tells how long they took to send.
Ask = Callable[[int], list[Arrival]]


@contextmanager
def grpc_stream(host: str, port: int) -> Iterator[Ask]:
    """One stream that stays open, as clients of a decoupled model keep theirs.

    What comes is only put aside until all of it is there: the client shares its cores with the server.
    """
    # Here, because the other commands do without.
    from tritonclient import grpc as client

    arrived: list[tuple[int, Any]] = []
    expected = 0
    complete = threading.Event()

    def put_aside(result: Any, error: Exception | None) -> None:
        arrived.append((time.perf_counter_ns(), error or result))
        if error or len(arrived) == expected:
            complete.set()

    def ask(count: int) -> list[Arrival]:
        nonlocal expected
        arrived.clear()
        complete.clear()
        expected = count + 1
        tensor = client.InferInput("COUNT", [1], "INT32")
        tensor.set_data_from_numpy(np.array([count], dtype=np.int32))
        connection.async_stream_infer("repeat", [tensor])
        if not complete.wait(_ANSWERS_WITHIN):
            raise BenchmarkError(f"the stream brought {len(arrived)} of {expected} responses within {_ANSWERS_WITHIN:.0f} s")
        return [(when, outputs_of(result)) for when, result in arrived]

    def outputs_of(result: Any) -> Mapping[str, np.ndarray]:
        if isinstance(result, Exception):
            raise BenchmarkError(f"the stream failed: {result}")
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    with client.InferenceServerClient(f"{host}:{port}") as connection:
        connection.start_stream(put_aside)
        yield ask


@contextmanager
def embedded_stream(repository: Path) -> Iterator[Ask]:
    """Stublet without a network, in this process."""
    from stublet.parent import Server

    with Server(repository) as server:

        def ask(count: int) -> list[Arrival]:
            results = server.infer_stream("repeat", {"COUNT": np.array([count], dtype=np.int32)})
            return [(time.perf_counter_ns(), result) for result in results]

        yield ask
