"""When a client's time is up, and how many may come: no sockets, and a clock that is told."""

from __future__ import annotations

import resource
from typing import Iterator, List, Tuple, Union

import pytest
from stublet.parent.descriptors import affordable, raise_limit
from stublet.parent.http.limits import LEAST_BYTES_PER_SECOND, HttpLimits, Phase, Sighting, judge

LIMITS = HttpLimits(client_timeout=10, idle_timeout=100)
ENOUGH = 10 * LEAST_BYTES_PER_SECOND

Look = Union[Tuple[float, Phase, int], Tuple[float, Phase, int, int]]


def cut_off(looks: List[Look]) -> List[bool]:
    before, found = None, []
    for look in looks:
        before, expired = judge(LIMITS, before, *look)
        found.append(expired)
    return found


@pytest.mark.parametrize(
    "looks",
    [
        [(0, Phase.HEAD, 0), (9, Phase.HEAD, 10), (10, Phase.HEAD, 60_000)],
        [(0, Phase.IDLE, 0), (99, Phase.IDLE, 0), (100, Phase.IDLE, 0)],
        [(0, Phase.BODY, 5), (9, Phase.BODY, 5), (10, Phase.BODY, 5)],
        [(0, Phase.BODY, 0), (10, Phase.BODY, ENOUGH), (20, Phase.BODY, 2 * ENOUGH - 1)],
        [(0, Phase.WRITING, 9 * ENOUGH), (10, Phase.WRITING, 8 * ENOUGH), (20, Phase.WRITING, 8 * ENOUGH)],
        [(0, Phase.BODY, 0, 40 * ENOUGH), (10, Phase.BODY, 2 * ENOUGH, 40 * ENOUGH), (20, Phase.BODY, 4 * ENOUGH - 1, 40 * ENOUGH)],
        [(0, Phase.WRITING, 10), (10, Phase.WRITING, 9)],
        [(0, Phase.WRITING, 40 * ENOUGH), (10, Phase.WRITING, 38 * ENOUGH), (20, Phase.WRITING, 36 * ENOUGH + 1)],
        [(0, Phase.HEAD, 0), (9, Phase.BODY, 0), (18, Phase.BODY, 1), (19, Phase.BODY, 1)],
    ],
    ids=[
        "head",
        "idle",
        "no body",
        "body too slow",
        "stops reading",
        "large body too slow",
        "reads too slowly",
        "reads a lot too slowly",
        "another phase, another time",
    ],
)
def test_clients_that_take_too_long(looks: List[Look]) -> None:
    assert cut_off(looks) == [False] * (len(looks) - 1) + [True]


@pytest.mark.parametrize(
    "looks",
    [
        [(0, Phase.ANSWERING, 0), (10_000, Phase.ANSWERING, 0)],
        [(10.0 * i, Phase.BODY, i * ENOUGH) for i in range(100)],
        [(10.0 * i, Phase.BODY, 2 * i * ENOUGH, 40 * ENOUGH) for i in range(20)],
        [(10.0 * i, Phase.WRITING, (20 - i) * ENOUGH) for i in range(20)],
        [(0, Phase.HEAD, 0), (9, Phase.ANSWERING, 0), (18, Phase.HEAD, 0), (27, Phase.ANSWERING, 0)],
    ],
    ids=["the server's turn", "slow sender", "slow sender of a lot", "slow reader", "in turns"],
)
def test_clients_that_may_go_on(looks: List[Look]) -> None:
    assert not any(cut_off(looks))


def test_another_request_has_its_own_time() -> None:
    before, _ = judge(LIMITS, None, 0, Phase.HEAD, 0)
    assert before == Sighting(Phase.HEAD, 0, 0, 0)
    assert judge(LIMITS, None, 11, Phase.HEAD, 0) == (Sighting(Phase.HEAD, 11, 0, 0), False)
    assert judge(LIMITS, before, 11, Phase.HEAD, 0) == (before, True)


@pytest.fixture
def descriptors() -> Iterator[int]:
    """The hard limit; the soft one is put back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("limit, wanted, most", [(2000, 100, 100), (2000, 5000, 1000), (2000, 0, 1000), (4000, 0, 2976), (64, 100, 32)])
def test_connections_that_descriptors_suffice_for(descriptors: int, limit: int, wanted: int, most: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, descriptors))
    assert affordable(wanted) == most


def test_the_hard_limit_is_made_use_of(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, descriptors))
    raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (descriptors, descriptors)
