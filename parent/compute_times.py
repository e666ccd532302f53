"""When a stub was busy with which request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from ..shm.message import FINAL, RETURNED
from .request import Batch, Request

if TYPE_CHECKING:
    from .model import Model

HAND_OVER_NS = 20_000
"""What an answer takes beside the execution that the stub reports, when nobody sleeps."""


class ComputeTimes:
    """Notes with each request when the stub took it up, and when it was done with it (see ``statistics``), as far as that can be told
    from here."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.free_ns = 0
        """When the stub had nothing more to execute, for all that is known."""
        self.latest: Optional[Request] = None
        """The request whose reply was noted last since the ring was found empty."""

    def note(self, request: Request, flags: int, took: int, now: int) -> None:
        """The stub said something of a request, with these flags, and with the nanoseconds that its execution took if that is over."""
        submitted = request.submitted_ns
        concurrent = self._model.max_concurrent > 1
        if not flags & RETURNED:
            if not request.begun_ns:
                request.begun_ns = submitted if concurrent else max(submitted, self.free_ns)
            if not request.computed_ns and (flags & FINAL or not self._model.decoupled):
                request.computed_ns = now
        elif request.batch is not None:
            self._note_batch(request, request.batch, took, now)
        elif took > 0:
            # Comparisons, which cost a fraction of min and max: this is on the way of every request.
            begun = now - took
            if concurrent:
                begun -= HAND_OVER_NS
            elif self.free_ns < begun:
                begun = self.free_ns
            if begun < submitted:
                begun = submitted
            computed = begun + took + HAND_OVER_NS
            if concurrent or computed > now:
                computed = now
            if not concurrent:
                self.free_ns = computed
            if not request.computed_ns:
                request.begun_ns = request.begun_ns or begun
                request.computed_ns = computed
                if not concurrent:
                    request.execute_ns = took
                    self.latest = request

    def _note_batch(self, request: Request, batch: Batch, took: int, now: int) -> None:
        """Those that are executed together have the times of the first of them that is told of."""
        if took > 0 and not batch.computed_ns:
            batch.begun_ns = max(now - took - HAND_OVER_NS, batch.handed_ns)
            batch.computed_ns = min(batch.begun_ns + took + HAND_OVER_NS, now)
            request.execute_ns = took
        if batch.computed_ns and not request.computed_ns:
            request.begun_ns = request.begun_ns or batch.begun_ns
            request.computed_ns = batch.computed_ns
