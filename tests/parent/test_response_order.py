"""Responses in the order of requests."""

from __future__ import annotations

from typing import Any, Dict, List

from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.scheduling.response_order import ResponseOrder


def expecting(*requests: int) -> ResponseOrder[int]:
    order: ResponseOrder[int] = ResponseOrder()
    for request in requests:
        order.expect(request)
    return order


def test_the_first_is_told_at_once() -> None:
    assert expecting(1, 2).settled([(1, "a", True)]) == [(1, "a", True)]


def test_a_later_one_waits() -> None:
    order = expecting(1, 2, 3)
    assert order.settled([(3, "c", True), (2, "b", True)]) == []
    assert order.settled([(1, "a", True)]) == [(1, "a", True), (2, "b", True), (3, "c", True)]


def test_several_responses_to_one() -> None:
    order = expecting(1, 2)
    assert order.settled([(2, "x", False)]) == []
    assert order.settled([(1, "a", False)]) == [(1, "a", False)]
    assert order.settled([(1, None, True)]) == [(1, None, True), (2, "x", False)]
    assert order.settled([(2, "y", True)]) == [(2, "y", True)]


def test_one_that_was_never_expected() -> None:
    assert expecting(1).settled([(7, "error", True)]) == [(7, "error", True)]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.data())
def test_whatever_order_they_come_in(counts: List[int], data: st.DataObject) -> None:
    order = expecting(*range(len(counts)))
    left: Dict[int, int] = dict(enumerate(counts))
    told: List[Any] = []
    while left:
        request = data.draw(st.sampled_from(sorted(left)))
        left[request] -= 1
        final = not left[request]
        told += order.settled([(request, counts[request] - left[request], final)])
        if final:
            del left[request]
    assert [(request, number) for request, number, _ in told] == [(r, n) for r, count in enumerate(counts) for n in range(1, count + 1)]
