"""Streams by way of tritonclient, the library that users have (spec 6.7)."""

from __future__ import annotations

import asyncio
import queue
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_client import SECONDS
from grpc_stream import THREE, waits
from server_process import ServerProcess, until


def test_tritonclient(grpc_server: ServerProcess) -> None:
    answers: queue.Queue[Tuple[Optional[Any], Optional[Exception]]] = queue.Queue()
    tensor = triton.InferInput("CODE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([THREE.encode()], object))
    outputs = [triton.InferRequestedOutput("RESULT")]
    with triton.InferenceServerClient(grpc_server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for i in range(3):
            client.async_stream_infer("free", [tensor], outputs=outputs, request_id=str(i), enable_empty_final_response=True)
        client.async_stream_infer("nope", [tensor], request_id="bad")
        client.stop_stream()  # waits for all that is outstanding
    found = [answers.get_nowait() for _ in range(answers.qsize())]
    errors = [error for _, error in found if error]
    assert list(map(str, errors)) == ["Request for unknown model: 'nope' is not found"]
    results = [result.get_response() for result, _ in found if result]
    for i in range(3):
        own = [one for one in results if one.id == str(i)]
        assert [len(one.outputs) for one in own] == [1, 1, 1, 0]
        assert [one.parameters["triton_final_response"].bool_param for one in own] == [False, False, False, True]


def test_tritonclient_cancels(grpc_server: ServerProcess, tmp_path: Path) -> None:
    answers: queue.Queue[Tuple[Optional[Any], Optional[Exception]]] = queue.Queue()
    tensor = triton.InferInput("CODE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([waits(tmp_path, "one").encode()], object))
    with triton.InferenceServerClient(grpc_server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("free", [tensor])
        assert answers.get(timeout=SECONDS)[1] is None
        left = client._stream
        client.stop_stream(cancel_requests=True)
        left._request_queue.put(None)  # else a thread of the library waits for requests for ever
    _, error = answers.get(timeout=SECONDS)
    assert "CANCELLED" in str(error)
    until((tmp_path / "one cancelled").exists, what="the cancellation")
    assert answers.empty()


def test_tritonclient_in_coroutines(grpc_server: ServerProcess) -> None:
    tensor = triton.InferInput("CODE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([THREE.encode()], object))

    async def requests() -> Any:
        for i in range(3):
            yield {"model_name": "free", "inputs": [tensor], "request_id": str(i), "outputs": [triton.InferRequestedOutput("RESULT")]}

    async def ask() -> List[Tuple[str, bytes]]:
        async with triton_aio.InferenceServerClient(grpc_server.grpc_address) as client:
            found = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append((result.get_response().id, result.as_numpy("RESULT")[0]))
            return found

    assert sorted(asyncio.run(ask())) == [(str(i), str(k).encode()) for i in range(3) for k in range(3)]
