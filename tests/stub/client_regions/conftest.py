"""A stub that was told of one region, and the file that it lies in."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Iterator

import pytest
from client_requests import REGION, SIZE, START
from shared_memory import ClientFile, client_file
from stub_runtime import Runtime, running
from stublet.stub.client_regions import Region
from stublet.stub.window import Window


@pytest.fixture
def file() -> Iterator[ClientFile]:
    with client_file(START + SIZE) as file:
        yield file


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, file: ClientFile, decoupled: bool) -> Iterator[Runtime]:
    window = Window(os.dup(file.fd), START, SIZE)
    with running(monkeypatch, decoupled) as runtime:
        runtime.regions[REGION] = Region("mine", window)
        yield runtime
    window.close()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, file: ClientFile) -> Iterator[Runtime]:
    with connected(monkeypatch, file, decoupled=False) as runtime:
        yield runtime


@pytest.fixture
def decoupled(monkeypatch: pytest.MonkeyPatch, file: ClientFile) -> Iterator[Runtime]:
    with connected(monkeypatch, file, decoupled=True) as runtime:
        yield runtime
