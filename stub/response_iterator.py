"""``ResponseIterator``: the responses to a request that a model made with ``decoupled=True`` (spec 3.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Protocol

if TYPE_CHECKING:
    from .response import InferenceResponse


class Source(Protocol):
    """Where responses come from."""

    def next(self) -> Optional[InferenceResponse]:
        """Waits for the next one; None after the last."""

    async def next_async(self) -> Optional[InferenceResponse]:
        """``next`` for a coroutine."""

    def cancel(self) -> None:
        """Tells the other model that nobody waits for the rest."""

    def abandon(self) -> None:
        """Nobody takes the rest. Called by the garbage collector, in any thread."""


class ResponseIterator:
    """Iterates over the responses, waiting for each; ``async for`` waits without blocking the event loop.

    The callee's final flag, sent alone, is one more item without outputs. A second loop over an exhausted iterator begins with the first
    response again; a loop that was left early goes on where it was. Responses that are not taken are dropped with the iterator.
    """

    __slots__ = ("_done", "_position", "_responses", "_source")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._responses: List[InferenceResponse] = []
        self._position = 0
        self._done = False

    def __iter__(self) -> ResponseIterator:
        self._rewind()
        return self

    def __next__(self) -> InferenceResponse:
        if self._position == len(self._responses) and not self._done:
            self._take(self._source.next())
        return self._give(StopIteration)

    def __aiter__(self) -> ResponseIterator:
        self._rewind()
        return self

    async def __anext__(self) -> InferenceResponse:
        if self._position == len(self._responses) and not self._done:
            self._take(await self._source.next_async())
        return self._give(StopAsyncIteration)

    def cancel(self) -> None:
        """Asks for the request to be cancelled: the callee sees ``is_cancelled()``, and does what it likes. What it still sends comes
        here."""
        if not self._done:
            self._source.cancel()

    def _rewind(self) -> None:
        if self._done and self._position == len(self._responses):
            self._position = 0

    def _take(self, response: Optional[InferenceResponse]) -> None:
        if response is None:
            self._done = True
        else:
            self._responses.append(response)

    def _give(self, end: type) -> InferenceResponse:
        if self._position == len(self._responses):
            raise end
        self._position += 1
        return self._responses[self._position - 1]

    def __del__(self) -> None:
        if not self._done:
            self._source.abandon()
