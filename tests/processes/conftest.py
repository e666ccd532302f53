"""Servers for one test each, which may do to them what it likes."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator, List

import pytest
import uvloop
from server_process import ServerProcess

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
