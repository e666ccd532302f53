"""Which requests of the sequences of an instance are executed together, and when (spec 5.4). Pure, as ``batcher``, which asks them.

``Direct``: every sequence has a row of the batch, and whatever is there is executed. ``Oldest``: the sequences are candidates for the rows of a
batch that is formed as in dynamic batching. In both, only requests with the same shapes go together.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..scheduling.batcher import agree
from .batcher import Choice, Entry


class Direct(NamedTuple):
    """``utilization``: from 0 to 1, the share of the places that should have a request; ``delay_ns``: how long the oldest request is held for
    that."""

    places: int
    delay_ns: int = 0
    utilization: float = 0.0

    def choose(self, heads: Mapping[int, Entry], now: int) -> Choice:
        """See ``Strategy``."""
        if self.utilization and self.delay_ns and len(heads) < self.utilization * self.places:
            until = min(entry.since for entry in heads.values()) + self.delay_ns
            if until > now:
                return Choice((), until)
        # Whose shapes count is who has waited longest, lest others come before it for ever.
        chosen, _ = _alike(heads, self.places)
        return Choice(sorted(chosen))


class Oldest(NamedTuple):
    """``places``: how many sequences are candidates. ``max_size``: of a batch. ``preferred``: sizes to be reached, and ``delay_ns``: how long
    the oldest request is held for them."""

    places: int
    max_size: int
    preferred: Sequence[int] = ()
    delay_ns: int = 0

    def choose(self, heads: Mapping[int, Entry], now: int) -> Choice:
        """See ``Strategy``."""
        most = max(self.preferred, default=self.max_size)
        chosen, others = _alike(heads, self.max_size)
        until = min(heads[place].since for place in chosen) + self.delay_ns
        overdue = self.delay_ns > 0 and until <= now
        reached = max((size for size in self.preferred if size <= len(chosen)), default=0)
        if reached and not overdue:
            return Choice(chosen[:reached])
        if self.delay_ns and not overdue and len(chosen) < most and not others:
            return Choice((), until)
        return Choice(chosen)


def _alike(heads: Mapping[int, Entry], most: int) -> Tuple[List[int], bool]:
    """The places of the first requests, ``most`` at most, that have the same shapes; and whether there are others between them."""
    shapes: Dict[int, Tuple[int, ...]] = {}
    places: List[int] = []
    others = False
    for place, entry in heads.items():
        if len(places) == most:
            break
        if agree(shapes, entry.member.shapes):
            shapes.update(entry.member.shapes)
            places.append(place)
        else:
            others = True
    return places, others
