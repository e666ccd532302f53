"""One server for all tests that only send requests; each connection is the test's own. And one for each test whose models come and go."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
import uvloop
from add_sub import WAYS
from controlled import Controlled, controlled
from http_wire import Headers, Wire
from model_repository import MODELS
from server_process import ServerProcess, serving
from stublet.parent import Server
from stublet.parent.model_config import TensorSpec
from stublet.shm.dtype import BYTES


@pytest.fixture(scope="session", autouse=True)
def libuv() -> None:
    """libuv makes a pipe with the first loop of a process and keeps it; no test should be charged with it."""
    uvloop.new_event_loop().close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves ``tests/models``; nothing that is asked of it may put a traceback into its log."""
    with serving(tmp_path_factory.mktemp("server"), MODELS) as server:
        yield server


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    with server.wire() as wire:
        yield wire


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Headers:
    """The headers that choose one of the two ways of an inference through the server."""
    return WAYS[request.param]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def embedded() -> Iterator[Server]:
    """The same models inside this process."""
    with Server(MODELS) as server:
        for _ in range(2):
            # The first request to a model may make its stub ask for memory, which no test should be charged with.
            for model in (model for versions in server.core.models.values() for model in versions.values()):
                if not model.decoupled:
                    server.infer(model.name, {spec.name: _some(spec) for spec in model.inputs}, version=model.version)
        yield server


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def models(repository: Path) -> Iterator[Controlled]:
    with controlled(repository) as models:
        yield models


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def _some(spec: TensorSpec) -> np.ndarray:
    shape = [max(size, 1) for size in spec.shape]
    return np.full(shape, b"", object) if spec.dtype is BYTES else np.zeros(shape, spec.dtype.numpy or np.uint16)
