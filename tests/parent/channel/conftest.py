"""Channels whose far end the test is."""

from __future__ import annotations

from typing import Iterator

import pytest
from stub_end import Stub


@pytest.fixture(params=[False, True], ids=["", "decoupled"])
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    stub = Stub(request.param)
    yield stub
    stub.close()


@pytest.fixture
def plain() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def decoupled() -> Iterator[Stub]:
    stub = Stub(decoupled=True)
    yield stub
    stub.close()
