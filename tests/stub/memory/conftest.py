"""A stub's memory and the server who supplies it, in one process."""

from __future__ import annotations

from typing import Iterator

import pytest
from stub_runtime import Memory
from stublet.stub.host import host


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    both = Memory()
    monkeypatch.setattr(host, "allocate", both.memory.empty)
    yield both
    both.close()
