"""The responses to one request of the embedded server, for a thread that takes them one by one."""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import suppress
from typing import Iterator, Optional, Tuple

from .arrays import InferResult, to_result
from .backlog import Backlog
from .errors import ServerError
from .request import Outcome, Request, drop
from .servable import Servable

_LEAST_SECONDS = 0.001

_closing = threading.Lock()


class InferStream(Iterator[InferResult]):
    """The responses to one request, in order, each waited for; an error of the model is raised, and more may follow it."""

    def __init__(self, arrivals: Arrivals, timeout: Optional[float]) -> None:
        self._arrivals = arrivals
        self._timeout = timeout

    def __next__(self) -> InferResult:
        arrivals = self._arrivals
        while not arrivals.closed:
            try:
                # SimpleQueue takes what is left of a time-out of nothing for none.
                outcome, final = arrivals.take(None if self._timeout is None else max(self._timeout, _LEAST_SECONDS))
            except queue.Empty:
                raise TimeoutError(f"no response within {self._timeout} seconds") from None
            if final:
                arrivals.closed = True
            if outcome is not None:
                return to_result(arrivals.model, outcome)
        raise StopIteration

    def close(self) -> None:
        """Cancels the request and drops the responses that are there."""
        self._arrivals.close()

    def __enter__(self) -> InferStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Whatever the thread that collects garbage holds just now, it may be what closing needs.
        if not self._arrivals.closed:
            with suppress(RuntimeError):  # the server's loop has ended
                self._arrivals.loop.call_soon_threadsafe(self._arrivals.close)


class Arrivals:
    """Where the responses to one request arrive. The request holds it, and so it must not hold the stream, whose end ends the request."""

    def __init__(self, model: Servable, loop: asyncio.AbstractEventLoop) -> None:
        self.model = model
        self.loop = loop
        self.queue: queue.SimpleQueue[Tuple[Optional[Outcome], bool]] = queue.SimpleQueue()
        self.closed = False
        self._request: Optional[Request] = None
        self._backlog = Backlog(model)

    def submit(self, request: Request) -> None:
        """Submits the request, whose responses go to ``settle``."""
        self._request = request
        self._backlog.attach(request)
        try:
            self.model.submit(request)
        except ServerError:
            self.closed = True
            raise

    def take(self, timeout: Optional[float]) -> Tuple[Optional[Outcome], bool]:
        """The next response, and whether it is the last. Raises queue.Empty after ``timeout`` seconds."""
        outcome, final = self.queue.get(timeout=timeout)
        self._backlog.took(outcome)
        return outcome, final

    def settle(self, outcome: Optional[Outcome], final: bool) -> None:
        """Takes a response. In any thread."""
        with _closing:
            if not self.closed:
                self._backlog.put(outcome)
                self.queue.put((outcome, final))
                return
        drop(outcome)

    def close(self) -> None:
        with _closing:
            open_, self.closed = not self.closed, True
        self._backlog.close()
        if open_ and self._request is not None:
            self.model.cancel(self._request)
        while True:
            try:
                drop(self.queue.get_nowait()[0])
            except queue.Empty:
                return
