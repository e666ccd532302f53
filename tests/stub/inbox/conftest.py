"""An inbox in which nobody wakes up who was not woken."""

from __future__ import annotations

from typing import Iterator

import pytest
from channel import open_channel
from desk import Desk
from stublet.stub import inbox as inbox_module


@pytest.fixture(autouse=True)
def no_belt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleeper looks again after a second. Here it does not, so that whoever is not woken is not excused."""
    monkeypatch.setattr(inbox_module, "_SLEEP_SECONDS", 1e5)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with open_channel() as channel:
        yield Desk(channel)
