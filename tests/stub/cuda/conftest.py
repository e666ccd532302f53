"""A process with GPUs that are stand-ins."""

from __future__ import annotations

from typing import Iterator

import pytest
from standin_cuda import StandinCuda
from stublet.shm.cuda.driver import Driver
from stublet.stub.cuda import devices
from stublet.stub.cuda.releases import releases


@pytest.fixture(scope="module", autouse=True)
def thread() -> None:
    """It lives as long as its process."""
    releases.start()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinCuda]:
    found = StandinCuda(devices=2)
    monkeypatch.setattr(devices, "_found", None)
    monkeypatch.setattr(devices, "_pid", None)
    devices.attach(Driver(found))
    yield found
    found.close()
