"""A server whose models come and go, as tests of model control use it."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, Optional, TypeVar

import numpy as np
from model_repository import ECHO_CONFIG
from stublet.parent import Server
from stublet.parent.options import ServerOptions

Value = TypeVar("Value")

NO_MODEL = "Request for unknown model: '{}' is not found"

CONSTANT = """
import os
import time
import numpy as np
import triton_python_backend_utils as pb_utils

def wait(gate):
    deadline = time.monotonic() + 30
    while not os.path.exists(gate):
        assert time.monotonic() < deadline, "the gate stays closed"
        time.sleep(0.002)

class TritonPythonModel:
    gate = "/"

    def initialize(self, args):
        pass

    def execute(self, requests):
        wait(self.gate)
        seconds = max(float(request.inputs()[0].as_numpy()[0]) for request in requests)
        time.sleep(seconds)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", np.array([VALUE], np.float32))]) for _ in requests]
"""

CONFIG = json.dumps(
    {
        "backend": "python",
        "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    }
)
"""Of what ``constant`` makes."""


def constant(value: float, initialize: str = "pass") -> str:
    """A model that answers that number after as many seconds as its input says. ``initialize`` may ``wait`` until a file exists, or set
    ``self.gate`` to the path of one that each request is to wait for."""
    return CONSTANT.replace("VALUE", str(value)).replace("pass", initialize)


class Controlled:
    """A server whose models are controlled, through the core as front ends use it."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        self.core = server.core
        self.root = root

    def begin(self, coroutine: Any) -> Future[Any]:
        assert self.server.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.server.loop)

    def call(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """The result of a function that belongs to the server's loop."""

        async def run() -> Value:
            return function(*arguments)

        result: Value = self.begin(run()).result(30)
        return result

    def busy(self, name: str) -> bool:
        """Whether an instance of the model has a request."""
        return any(i.channel.in_flight for model in self.core.models[name].values() for i in model.instances)

    def load(self, name: str, config: str = "", files: Optional[Mapping[str, bytes]] = None) -> None:
        self.begin(self.core.load_model(name, config, files)).result(30)

    def unload(self, name: str) -> None:
        self.begin(self.core.unload_model(name)).result(30)

    def ready(self, name: str, version: str = "") -> bool:
        result: bool = self.begin(self.core.model_ready(name, version)).result(30)
        return result

    def value(self, name: str, seconds: float = 0, version: Optional[int] = None) -> float:
        return float(self.server.infer(name, {"INPUT0": np.array([seconds], np.float32)}, version=version)["OUTPUT0"][0])

    def pids(self, name: str) -> List[int]:
        return [instance.pid for model in self.core.models[name].values() for instance in model.instances if instance.pid is not None]

    def write(self, name: str, value: float, initialize: str = "pass", version: int = 1, extra: str = "") -> None:
        """Writes a version of a model, in the place of what was there; ``extra`` is for its configuration. A server that follows the repository
        finds each file as it was or as it is now."""
        directory = self.root / name / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        self._replace(self.root / name / "config.pbtxt", f'backend: "python" {ECHO_CONFIG} version_policy {{ all {{ }} }} {extra}')
        self._replace(directory / "model.py", constant(value, initialize))

    def regroup(self, name: str, count: int, kind: str = "KIND_CPU") -> None:
        """Writes another number of instances into a model's configuration, and changes nothing else."""
        path = self.root / name / "config.pbtxt"
        text = path.read_text().split(" instance_group")[0]
        self._replace(path, f"{text} instance_group {{ count: {count} kind: {kind} }}")

    def _replace(self, path: Path, text: str) -> None:
        written = self.root / "being-written"
        written.write_text(text)
        written.replace(path)


@contextmanager
def controlled(root: Path, mode: str = "explicit", **options: Any) -> Iterator[Controlled]:
    root.mkdir(exist_ok=True)
    with Server(root, exit_on_error=False, options=ServerOptions(model_control_mode=mode, **options)) as server:
        yield Controlled(server, root)
