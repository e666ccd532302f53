"""How long the server's loop goes on turning after an answer."""

from __future__ import annotations

import pytest
from stublet.parent.lull import Lull
from stublet.shm.polling import MICROSECOND


@pytest.fixture
def lull(monkeypatch: pytest.MonkeyPatch) -> Lull:
    """Where there is more than one core."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    return Lull()


def gap(lull: Lull, microseconds: int) -> int:
    """One request is answered, and the next one comes so much later; how long the loop would have turned."""
    lull.looks()
    deadline = lull.looked(1_000)
    lull.ends(1_000 + microseconds * MICROSECOND)
    return deadline and deadline - 1_000


def test_the_next_request_is_expected_soon(lull: Lull) -> None:
    lull.looks()
    deadline = lull.looked(1_000)
    assert deadline == 1_000 + 100 * MICROSECOND
    assert lull.lasts(deadline - 1, deadline) and not lull.lasts(deadline, deadline)
    lull.ends(2_000)
    assert not lull.lasts(2_001, deadline)


def test_the_loop_is_at_rest_only_when_it_looks_at_no_ring(lull: Lull) -> None:
    lull.looks()
    lull.looks()
    assert lull.looked(1_000) == 0
    assert not lull.lasts(1_001, 9_000)
    assert lull.looked(2_000)


def test_it_does_not_pay_when_clients_take_their_time(lull: Lull) -> None:
    assert all(gap(lull, 20) for _ in range(50))
    slow = [gap(lull, 5_000) for _ in range(10)]
    assert slow[0] and not slow[-1]
    quick = [gap(lull, 20) for _ in range(10)]
    assert not quick[0] and quick[-1]


def test_what_comes_while_others_are_answered_says_nothing(lull: Lull) -> None:
    for now in range(100):
        lull.ends(now * 1_000 * MICROSECOND)
    assert gap(lull, 20)


def test_one_core_is_left_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert gap(Lull(), 20) == 0
