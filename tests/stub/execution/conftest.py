"""All that a stub has beside its model and its threads."""

from __future__ import annotations

from typing import Iterator

import pytest
from stub_runtime import Runtime, running


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    with running(monkeypatch) as runtime:
        yield runtime


@pytest.fixture
def decoupled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    with running(monkeypatch, decoupled=True) as runtime:
        yield runtime
