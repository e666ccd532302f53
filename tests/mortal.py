"""Models that die when they are told to, and what a test asks of the server that brings them back."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Optional

import httpx
from http_wire import tensor
from model_repository import python, write_model
from server_process import ServerProcess, until

CODE = """
import json, os, signal, sys, threading, time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Runs the Python text of each request; what that sets as ``result`` is its answer.'''

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.instance = args["model_instance_name"]
        self.executed = 0
        exec(config["parameters"].get("initialize", {}).get("string_value", ""), {**globals(), "model": self})

    def execute(self, requests):
        responses = []
        for request in requests:
            self.executed += 1
            code = pb_utils.get_input_tensor_by_name(request, "CODE").as_numpy()
            scope = {**globals(), "model": self, "request": request, "code": code, "result": ""}
            exec(code.flat[0].decode(), scope)
            output = pb_utils.Tensor("RESULT", np.full(code.shape, str(scope["result"]), object))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
"""

DIE = "os._exit(3)"


def mortal(root: Path, name: str, extra: str = "", instances: int = 1, **parameters: str) -> Path:
    """Writes a model; ``initialize`` among its parameters is Python that it runs at that moment. With no ``instances`` they are in ``extra``."""
    config = 'input { name: "CODE" data_type: TYPE_STRING dims: [1] } output { name: "RESULT" data_type: TYPE_STRING dims: [1] }\n'
    for key, value in parameters.items():
        config += f'parameters {{ key: "{key}" value {{ string_value: {python(value)} }} }}\n'
    groups = f"instance_group {{ count: {instances} kind: KIND_CPU }}\n" if instances else ""
    return write_model(root, name, CODE, config + groups + extra)


class Mortals:
    """The models of a server. ``gate``: while that file is there, code made by ``behind`` waits."""

    def __init__(self, server: ServerProcess, gate: Path) -> None:
        self.server = server
        self.gate = gate
        self._pool = ThreadPoolExecutor(64)
        self._client = httpx.Client(base_url=f"http://{server.address}", timeout=30)

    def __enter__(self) -> Mortals:
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.unlink(missing_ok=True)
        self._pool.shutdown()
        self._client.close()

    def behind(self, code: str) -> str:
        """The code, which waits for the gate to be opened."""
        return f"while os.path.exists({str(self.gate)!r}): time.sleep(0.001)\n{code}"

    def ask(self, model: str, code: str = "", *batch: int, **parameters: Any) -> httpx.Response:
        body = {"inputs": [tensor("CODE", "BYTES", [*batch, 1], [code])], "parameters": parameters}
        return httpx.post(f"http://{self.server.address}/v2/models/{model}/infer", json=body, timeout=30)

    def begin(self, model: str, code: str = "", *batch: int, **parameters: Any) -> Future[httpx.Response]:
        """Asks in another thread."""
        return self._pool.submit(self.ask, model, code, *batch, **parameters)

    def begin_fatal(self, model: str, *batch: int, **parameters: Any) -> Future[httpx.Response]:
        """Has an instance execute what kills it as soon as the gate is opened."""
        begun = self.gate.with_suffix(f".{model}")
        self.gate.touch()
        answer = self.begin(model, f"open({str(begun)!r}, 'w').close()\n{self.behind(DIE)}", *batch, **parameters)
        until(begun.exists)
        return answer

    def begin_waiting(self, model: str, count: int, code: str = "", *batch: int, **parameters: Any) -> List[Future[httpx.Response]]:
        """Requests that wait behind others when this returns."""
        before = self.pending(model)
        answers = [self.begin(model, code, *batch, **parameters) for _ in range(count)]
        until(lambda: self.pending(model) == before + count, what="the requests' arrival")
        return answers

    def report(self, model: str) -> Dict[str, Any]:
        models = self._client.get("/v2/stublet/instances").json()["models"]
        (found,) = [one for one in models if one["name"] == model]
        return dict(found)

    def instances(self, model: str) -> List[Dict[str, Any]]:
        return list(self.report(model)["instances"])

    def pids(self, model: str, state: str = "READY") -> List[int]:
        return [instance["pid"] for instance in self.instances(model) if instance["state"] == state]

    def pending(self, model: str) -> int:
        return int(self.report(model)["pending"])

    def kill(self, model: str) -> List[int]:
        """Kills every instance that serves, and returns when the server knows."""
        pids = self.pids(model)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not set(pids).intersection(self.pids(model)))
        return pids

    def ready(self, model: str = "") -> bool:
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        return self._client.get(path).status_code == 200

    def index(self, model: str) -> Dict[str, str]:
        rows = self._client.post("/v2/repository/index").json()
        (row,) = [row for row in rows if row["name"] == model]
        return dict(row)

    def load(self, model: str) -> None:
        assert self._client.post(f"/v2/repository/models/{model}/load").status_code == 200

    def unload(self, model: str) -> None:
        """Returns when it has ended."""
        self._unload(model)

    def begin_unloading(self, model: str) -> Future[None]:
        """Unloads it in another thread."""
        return self._pool.submit(self._unload, model)

    def _unload(self, model: str) -> None:
        path = f"http://{self.server.address}/v2/repository/models/{model}/unload"
        assert httpx.post(path, timeout=60).status_code == 200

    def metric(self, name: str, instance: str) -> Optional[float]:
        text = httpx.get(f"http://127.0.0.1:{self.server.metrics_port}/metrics", timeout=30).text
        for line in text.splitlines():
            if line.startswith(name) and f'instance="{instance}"' in line:
                return float(line.rsplit(" ", 1)[1])
        return None


def result_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    ((text,),) = [output["data"] for output in answer.json()["outputs"]]
    return str(text)


def error_of(answer: httpx.Response) -> str:
    assert answer.status_code != 200
    return str(answer.json()["error"])
