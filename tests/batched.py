"""A model that tells with whom each request was executed, served for a test that has requests wait for one another."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import httpx
from http_wire import tensor
from model_repository import write_model
from server_process import ServerProcess, serving, until

COMPANY = """
import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Answers how many requests it was executed with, and their ids. While there is a file named "gate" it waits before it answers.'''

    def initialize(self, args):
        self.gate = json.loads(args["model_config"])["parameters"]["gate"]["string_value"]

    def execute(self, requests):
        if os.path.exists(self.gate):
            open(self.gate + ".begun", "w").close()
        while os.path.exists(self.gate):
            time.sleep(0.001)
        told = json.dumps([request.request_id() for request in requests])
        responses = []
        for request in requests:
            rows = request.inputs()[0].as_numpy()
            if rows.size and rows.flat[0] < 0:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
                continue
            output = pb_utils.Tensor("COMPANY", np.array([told] * len(rows), dtype=object).reshape(-1, 1))
            responses.append(pb_utils.InferenceResponse([output, pb_utils.Tensor("OUTPUT0", rows)]))
        return responses
"""
CONFIG = """
max_batch_size: 8
input {{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1] {ragged} }}
output [ {{ name: "COMPANY" data_type: TYPE_STRING dims: [1] }}, {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }} ]
instance_group {{ count: {instances} kind: KIND_CPU }}
parameters {{ key: "gate" value: {{ string_value: "{gate}" }} }}
dynamic_batching {{ {section} }}
"""


class Batched:
    """A served model, and requests to it."""

    def __init__(self, server: ServerProcess, gate: Path, pool: ThreadPoolExecutor) -> None:
        self.server = server
        self.gate = gate
        self._pool = pool
        self._url = f"http://{server.address}/v2/models/company"

    def ask(self, request_id: str = "", rows: int = 1, width: int = 2, value: float = 1, **parameters: Any) -> Future[httpx.Response]:
        """Sends a request, and returns when it waits, or is answered."""
        before = self.pending()
        answer = self._send(request_id, rows, width, value, parameters)
        until(lambda: self.pending() > before or answer.done(), what="the request's arrival")
        return answer

    def _send(self, request_id: str, rows: int, width: int, value: float, parameters: Dict[str, Any]) -> Future[httpx.Response]:
        inputs = [tensor("INPUT0", "FP32", [rows, width], [value] * (rows * width))]
        body = {"id": request_id, "inputs": inputs, "parameters": parameters}
        return self._pool.submit(httpx.post, f"{self._url}/infer", json=body, timeout=30)

    def pending(self) -> int:
        return sum(model["pending"] for model in httpx.get(f"http://{self.server.address}/v2/stublet/instances").json()["models"])

    def statistics(self) -> Dict[str, Any]:
        (found,) = httpx.get(f"{self._url}/stats").json()["model_stats"]
        return dict(found)

    @contextmanager
    def busy(self) -> Iterator[Future[httpx.Response]]:
        """While the model executes a request of its own."""
        self.gate.touch()
        try:
            first = self._send("first", 1, 2, 1, {})
            until(Path(f"{self.gate}.begun").exists, what="the execution of the first request")
            yield first
        finally:
            self.gate.unlink()


@contextmanager
def batched(root: Path, section: str = "", ragged: str = "", instances: int = 1, arguments: Sequence[str] = ()) -> Iterator[Batched]:
    gate = root / "gate"
    config = CONFIG.format(section=section, ragged=ragged, instances=instances, gate=gate)
    write_model(root / "models", "company", COMPANY, config)
    with ThreadPoolExecutor(40) as pool, serving(root, root / "models", *arguments) as server:
        yield Batched(server, gate, pool)


def company(answer: Future[httpx.Response]) -> List[str]:
    response = answer.result()
    assert response.status_code == 200, response.text
    (told, *_) = response.json()["outputs"][0]["data"]
    return list(json.loads(told))


def refusal(answer: Future[httpx.Response]) -> Any:
    response = answer.result()
    return response.status_code, response.json()["error"]
