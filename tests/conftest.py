"""What every test gets: the proof that it leaves nothing behind, and hypothesis without a clock."""

from __future__ import annotations

import gc
from typing import Iterator

import gevent
import pytest
from hypothesis import settings
from leaks import Holdings, assert_nothing_left

# How long an example takes says nothing on a shared machine.
settings.register_profile("stublet", deadline=None, print_blob=True)
settings.load_profile("stublet")

_failed = pytest.StashKey[bool]()


def pytest_collection_finish() -> None:
    """Takes modules and tests, which stay to the end, out of what the garbage collector looks at: it runs after most tests (see ``leaks``)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def hub() -> Iterator[None]:
    """tritonclient.http's event loop, which it makes once for a thread and keeps."""
    gevent.get_hub()
    yield
    gevent.get_hub().destroy(destroy_loop=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """See ``leaks``. Fixtures of a wider scope are set up before it, so what they hold is not counted."""
    before = Holdings.now()
    yield
    # The frames of a failed test are kept for its report, and so is all that they hold.
    if not request.node.stash.get(_failed, False):
        request.node.funcargs.clear()  # fixtures that gave a mapping: their time is over, and it holds a descriptor
        assert_nothing_left(before)
