"""How much of what one source says goes into the log, with a clock that is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.flood import BYTES_PER_SECOND, Allowance

BURST_BYTES = 8 << 20


def test_a_burst_and_what_follows_it() -> None:
    allowance = Allowance(BURST_BYTES, 0)
    assert allowance.take(BURST_BYTES, 0)
    assert not allowance.take(1, 0)
    assert not allowance.take(BYTES_PER_SECOND + 1, 1)
    assert allowance.take(BYTES_PER_SECOND, 1)
    assert not allowance.take(BURST_BYTES + 1, 10_000)
    assert allowance.take(BURST_BYTES, 10_000)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, BURST_BYTES)), max_size=50))
def test_never_more_than_that(takes: list[tuple[float, int]]) -> None:
    allowance, now, taken = Allowance(BURST_BYTES, 0), 0.0, 0
    for seconds, nbytes in takes:
        now += seconds
        taken += nbytes if allowance.take(nbytes, now) else 0
        assert taken <= BURST_BYTES + now * BYTES_PER_SECOND + 1
