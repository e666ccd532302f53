"""Who sends requests: each a thread with a client and a random generator of its own, which knows the right answer to each of its requests."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from multiprocessing import shared_memory
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from .models import SEQUENCE_STEPS
from .tally import Tally

PATIENCE = 60.0
"""Seconds after which a request counts as never answered."""

UNAVAILABLE = ("503", "StatusCode.UNAVAILABLE")
_NOT_THERE = (*UNAVAILABLE, "400", "404", "StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")


class Load(ABC, threading.Thread):
    """Sends one request after the other until ``stop``. A wrong answer, an error that no death explains, and no answer are violations."""

    allowed: Sequence[str] = UNAVAILABLE
    """The errors that the death of a stub may cause."""

    def __init__(self, name: str, addresses: Tuple[str, str], seed: int, tally: Tally) -> None:
        super().__init__(name=name, daemon=True)
        self._http, self._grpc = addresses
        self._random = random.Random(f"{seed} {name}")
        self._tally = tally
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        try:
            for once in self.open():
                if self._over.is_set():
                    break
                self._try(once)
        except Exception:
            self._tally.violated(f"{self.name}: {traceback.format_exc()}")

    def _try(self, once: Callable[[], None]) -> None:
        begun = time.monotonic()
        try:
            once()
        except InferenceServerException as error:
            self._tally.failed(self.name, str(error.status()), str(error.message()), time.monotonic() - begun)
            if str(error.status()) not in self.allowed:
                self._tally.violated(f"{self.name}: {error.status()}: {error.message()}")
        except Exception:
            self._tally.violated(f"{self.name}, after {time.monotonic() - begun:.1f} s: {traceback.format_exc()}")
        else:
            self._tally.right(self.name, time.monotonic() - begun)

    @abstractmethod
    def open(self) -> Iterator[Callable[[], None]]:
        """Yields, again and again, what makes a request and checks its answer."""

    def numbers(self, most: int = 50_000) -> np.ndarray:
        """INT64 [n]; nobody else sends the same."""
        size = self._random.choice([1, 7, 1000, self._random.randint(1, most)])
        return np.arange(size) + self._random.getrandbits(48)


class Http(Load):
    """``path``: a model, and how often it doubles."""

    model, doublings, row = "double", 1, False

    def open(self) -> Iterator[Callable[[], None]]:
        with tritonclient.http.InferenceServerClient(self._http, network_timeout=PATIENCE, connection_timeout=PATIENCE) as client:
            while True:
                yield lambda: self._once(client, tritonclient.http)

    def _once(self, client: Any, library: Any, **more: Any) -> None:
        sent = self.numbers()
        given = sent[np.newaxis] if self.row else sent
        tensor = library.InferInput("IN", given.shape, "INT64")
        tensor.set_data_from_numpy(given)
        answer = client.infer(self.model, [tensor], request_id=str(sent[0]), **more)
        check(answer.as_numpy("OUT"), given, self.doublings)
        assert answer.get_response()["id"] == str(sent[0]) if library is tritonclient.http else answer.get_response().id == str(sent[0])


class Grpc(Http):
    def open(self) -> Iterator[Callable[[], None]]:
        with tritonclient.grpc.InferenceServerClient(self._grpc) as client:
            while True:
                yield lambda: self._once(client, tritonclient.grpc, client_timeout=PATIENCE)


class Caller(Http):
    """Asks a model that asks another one. That the other is not ready is an internal error, as in Triton."""

    model, doublings, allowed = "caller", 2, (*UNAVAILABLE, "500")


class Batched(Grpc):
    model, row = "batched", True


class Pipeline(Http):
    model, doublings, row = "pipeline", 2, True


class Guest(Grpc):
    """Asks a model that comes and goes."""

    model, allowed = "guest", _NOT_THERE

    def _once(self, client: Any, library: Any, **more: Any) -> None:
        try:
            super()._once(client, library, **more)
        except InferenceServerException:
            self._over.wait(0.01)
            raise


class Loader(Load):
    """Loads and unloads the guest. A load may fail when its stub is killed meanwhile."""

    allowed = _NOT_THERE

    def open(self) -> Iterator[Callable[[], None]]:
        with tritonclient.http.InferenceServerClient(self._http, network_timeout=PATIENCE, connection_timeout=PATIENCE) as client:
            while True:
                yield lambda: client.load_model("guest")
                self._over.wait(self._random.random() / 2)
                yield lambda: client.unload_model("guest")


class Stream(Load):
    """Takes streams of responses, of which none may be missing, doubled or out of order."""

    def open(self) -> Iterator[Callable[[], None]]:
        while True:
            arrived: queue.SimpleQueue[Tuple[Any, Any]] = queue.SimpleQueue()
            with tritonclient.grpc.InferenceServerClient(self._grpc) as client:
                client.start_stream(lambda result, error, arrived=arrived: arrived.put((result, error)))
                for _ in range(20):
                    yield lambda client=client, arrived=arrived: self._once(client, arrived)
                client.stop_stream()

    def _once(self, client: Any, arrived: queue.SimpleQueue[Tuple[Any, Any]]) -> None:
        first, count = self._random.getrandbits(48), self._random.randint(0, 40)
        tensor = tritonclient.grpc.InferInput("IN", [2], "INT64")
        tensor.set_data_from_numpy(np.array([first, count]))
        client.async_stream_infer("count", [tensor], request_id=str(first), enable_empty_final_response=True)
        for number in range(count + 1):
            result, error = arrived.get(timeout=PATIENCE)
            if error is not None:
                raise _with_code(error)
            response = result.get_response()
            assert response.id == str(first), f"an answer to {response.id} instead of {first}"
            if number < count:
                assert result.as_numpy("OUT").tolist() == [first, number], f"{result.as_numpy('OUT')} instead of {[first, number]}"
        assert response.parameters["triton_final_response"].bool_param


class Sequences(Load):
    """Adds up in sequences. One whose stub has died is given up; who asks for its next step is told that it has not begun."""

    allowed = (*UNAVAILABLE, "StatusCode.INVALID_ARGUMENT")

    def open(self) -> Iterator[Callable[[], None]]:
        with tritonclient.grpc.InferenceServerClient(self._grpc) as client:
            while True:
                yield lambda: self._whole(client)

    def _whole(self, client: Any) -> None:
        key, total = self._random.getrandbits(60) + 1, 0
        for step in range(SEQUENCE_STEPS):
            value = self._random.getrandbits(32)
            total += value
            tensor = tritonclient.grpc.InferInput("IN", [1], "INT64")
            tensor.set_data_from_numpy(np.array([value]))
            more = {"sequence_id": key, "sequence_start": step == 0, "sequence_end": step == SEQUENCE_STEPS - 1}
            answer = client.infer("sum", [tensor], client_timeout=PATIENCE, **more)
            assert answer.as_numpy("OUT").tolist() == [total], f"{answer.as_numpy('OUT')} instead of {total}"


class Regions(Load):
    """Leaves inputs and outputs in shared memory of its own."""

    def open(self) -> Iterator[Callable[[], None]]:
        memory = shared_memory.SharedMemory(create=True, size=2 * _REGION_BYTES)
        try:
            with tritonclient.http.InferenceServerClient(self._http, network_timeout=PATIENCE, connection_timeout=PATIENCE) as client:
                client.register_system_shared_memory(self.name, "/" + memory.name, 2 * _REGION_BYTES)
                while True:
                    yield lambda: self._once(client, memory)
        finally:
            memory.close()
            memory.unlink()

    def _once(self, client: Any, memory: shared_memory.SharedMemory) -> None:
        sent = self.numbers(_REGION_BYTES // 8)
        memory.buf[: sent.nbytes] = sent.tobytes()
        memory.buf[_REGION_BYTES : _REGION_BYTES + sent.nbytes] = bytes(sent.nbytes)
        tensor = tritonclient.http.InferInput("IN", sent.shape, "INT64")
        tensor.set_shared_memory(self.name, sent.nbytes)
        output = tritonclient.http.InferRequestedOutput("OUT")
        output.set_shared_memory(self.name, sent.nbytes, _REGION_BYTES)
        client.infer("double", [tensor], outputs=[output])
        check(np.frombuffer(bytes(memory.buf[_REGION_BYTES : _REGION_BYTES + sent.nbytes]), np.int64), sent, 1)


class Quitter(Load):
    """Leaves in the middle of requests."""

    def open(self) -> Iterator[Callable[[], None]]:
        while True:
            yield self._once
            self._over.wait(0.02)

    def _once(self) -> None:
        host, port = self._http.split(":")
        body = b"x" * 4096
        head = f"POST /v2/models/{self._random.choice(['double', 'caller', 'pipeline'])}/infer HTTP/1.1\r\nHost: x\r\n"
        head += f"Inference-Header-Content-Length: 64\r\nContent-Length: {self._random.choice([4096, 1 << 20])}\r\n\r\n"
        whole = head.encode() + body
        with socket.create_connection((host, int(port)), PATIENCE) as connection:
            connection.sendall(whole[: self._random.randint(1, len(whole))])


_REGION_BYTES = 1 << 20


def check(got: Any, sent: np.ndarray, doublings: int) -> None:
    """Asserts that the answer is that to what was sent.

    Raises:
        AssertionError: a byte of it is not.
    """
    expected = sent
    for _ in range(doublings):
        expected = 2 * expected + 1
    assert got is not None, "an answer without the output"
    assert got.shape == expected.shape, f"shape {got.shape} instead of {expected.shape}"
    assert (got == expected).all(), f"{got} instead of {expected}"


def _with_code(error: InferenceServerException) -> InferenceServerException:
    """An error that came in a stream, which has a text and no status there."""
    return InferenceServerException(error.message(), error.status() or UNAVAILABLE[1])


LOADS: Dict[str, Any] = {
    "http-1": Http, "http-2": Http, "grpc": Grpc, "bls": Caller, "batched-1": Batched, "batched-2": Batched, "pipeline": Pipeline,
    "guest": Guest, "loader": Loader, "stream": Stream, "sequences-1": Sequences, "sequences-2": Sequences, "regions": Regions, "quitter": Quitter,
}  # fmt: skip


def start_all(addresses: Tuple[str, str], seed: int, tally: Tally) -> List[Load]:
    loads = [kind(name, addresses, seed, tally) for name, kind in LOADS.items()]
    for load in loads:
        load.start()
    return loads
