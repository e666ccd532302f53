"""Responses in the order of their requests, whatever order the instances answer them in (``preserve_ordering``, spec 5.4). Pure."""

from __future__ import annotations

from typing import Any, Dict, Generic, Hashable, List, Tuple, TypeVar

Request = TypeVar("Request", bound=Hashable)
Settled = Tuple[Request, Any, bool]
"""A request, an outcome, and whether it is the last one."""


class ResponseOrder(Generic[Request]):
    """Holds back what comes too early."""

    def __init__(self) -> None:
        self._held: Dict[Request, List[Settled[Request]]] = {}  # in the order of the requests

    def expect(self, request: Request) -> None:
        """A request has arrived."""
        self._held[request] = []

    def settled(self, outcomes: List[Settled[Request]]) -> List[Settled[Request]]:
        """What may be told now that these are known. Of a request that was not expected, everything at once."""
        told: List[Settled[Request]] = []
        held = self._held
        for outcome in outcomes:
            waiting = held.get(outcome[0])
            (told if waiting is None else waiting).append(outcome)
        while held:
            first = next(iter(held))
            ready, held[first] = held[first], []
            told += ready
            if not ready or not ready[-1][2]:
                break
            del held[first]
        return told
