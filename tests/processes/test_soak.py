"""Memory of a long run: what a server and its stubs hold after many requests is what they held after some."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any, Dict, List

from http_wire import infer, request, tensor
from model_repository import write_model
from server_process import ServerProcess, descendants, private_bytes, until

THREADS, FIRST, SECOND = 4, 400, 1600
"""Requests of each thread: so many until everything has been used, and then so many more."""

GROWTH_BYTES = 6 << 20
"""Of one process: a kilobyte lost with each request would be more."""

LARGEST = 200_000

CALLER = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            call = pb_utils.InferenceRequest(model_name="echo", requested_output_names=["OUTPUT0"], inputs=request.inputs())
            responses.append(pb_utils.InferenceResponse(call.exec().output_tensors()))
        return responses
"""


def ask(server: ServerProcess, seed: int, count: int, wrong: List[Any]) -> None:
    """Requests of all sizes, as they come from one client: right ones, and some that are not."""
    chance = random.Random(seed)
    with server.wire() as wire:
        for _ in range(count):
            size = chance.choice([1, 10, 1000, chance.randint(1, LARGEST)])
            if chance.random() < 0.1:
                answer = wire.ask(infer("echo", {"inputs": [tensor("INPUT1", "FP32", [1], [1.0])]}))
                if answer.status != 400:
                    wrong.append(answer)
                continue
            data = chance.randbytes(4 * size)
            answer = wire.ask(binary(chance.choice(["echo", "caller"]), data))
            if answer.status != 200 or answer.binary != data:
                wrong.append(answer.status)


def binary(model: str, data: bytes) -> bytes:
    """A request with one tensor of these bytes, for the same ones."""
    head = (
        '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[%d],"parameters":{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}'
        % (len(data) // 4, len(data))
    )
    fields = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(data)}"
    return f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{head}".encode() + data


def load(server: ServerProcess, count: int) -> None:
    wrong: List[Any] = []
    threads = [threading.Thread(target=ask, args=(server, seed, count, wrong)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def held(server: ServerProcess) -> Dict[int, int]:
    """Bytes of private memory, by process."""
    return {pid: private_bytes(pid) for pid in (server.pid, *descendants(server.pid))}


def shared(server: ServerProcess) -> int:
    """Bytes of shared memory."""
    with server.wire() as wire:
        models = wire.ask(request("GET", "/v2/stublet/instances")).json()["models"]
    return sum(int(model["shared_memory_bytes"]) for model in models)


def test_memory_does_not_grow(repository: Path, serve: Any) -> None:
    write_model(repository, "echo")
    write_model(repository, "caller", CALLER)
    server = serve("--shm-idle-secs=0.2")
    idle = shared(server)
    load(server, FIRST)
    before = held(server)
    load(server, SECOND)
    until(lambda: shared(server) <= idle, what="the return of idle shared memory")
    after = held(server)
    assert after.keys() == before.keys()
    grown = {pid: nbytes - before[pid] for pid, nbytes in after.items() if nbytes - before[pid] > GROWTH_BYTES}
    assert not grown, f"{grown} of {before}"
    server.stop()
