"""Servers for one test each, which may do to them what it likes."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator, List

import pytest
import uvloop
from example_models import write_examples
from grpc_client import Client, add, failure
from model_repository import copy_model
from scripted import scripted
from server_process import ServerProcess, serving

Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="session", autouse=True)
def libuv() -> None:
    """libuv makes a pipe with the first loop of a process and keeps it; no test should be charged with it."""
    uvloop.new_event_loop().close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def serve(tmp_path: Path, repository: Path) -> Iterator[Serve]:
    """``serve(*arguments)`` starts a server over ``repository``. Whatever the test does, nothing of it is left."""
    servers: List[ServerProcess] = []

    def start(*arguments: str, wait: bool = True, **env: str) -> ServerProcess:
        server = ServerProcess(tmp_path, repository, *arguments, env=env)
        servers.append(server)
        return server.start() if wait else server

    yield start
    for server in servers:
        server.cleanup()


@pytest.fixture(scope="session")
def grpc_core() -> None:
    """grpc's core opens what it needs with the first call of a process, and keeps it; no test should be charged with it."""
    with Client("127.0.0.1:1") as client:
        assert failure(client.infer, add()).startswith("UNAVAILABLE: ")


@pytest.fixture(scope="session")
def grpc_server(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that only send requests over gRPC. ``single`` and ``free``, which is decoupled, are scripted."""
    root = tmp_path_factory.mktemp("grpc")
    for name in ("add_sub", "echo", "every_type", "identity_batch", "identity_bytes", "matrix", "optional", "vector", "versions"):
        copy_model(root / "models", name)
    scripted(root / "models", "single")
    scripted(root / "models", "free", decoupled=True)
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with serving(root, root / "models", "--grpc-port", "0", "--allow-client-shm", "true", *explicit, tracebacks=True) as server:
        yield server
        # Tracebacks of models are what some tests want; ours are not.
        assert "internal error" not in server.log and "calling application" not in server.log


@pytest.fixture(scope="session")
def example_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the example programs of client libraries, with the models that they ask for."""
    root = tmp_path_factory.mktemp("examples")
    write_examples(root / "models")
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with serving(root, root / "models", "--grpc-port", "0", "--allow-client-shm", "true", *explicit) as server:
        yield server


@pytest.fixture
def grpc_client(grpc_server: ServerProcess) -> Iterator[Client]:
    with Client(grpc_server.grpc_address) as client:
        yield client
