"""The event loop of ``async def execute`` and ``async def is_ready``: one for the stub's whole life, in a thread of its own (spec 2.6)."""

from __future__ import annotations

import asyncio
import threading
import traceback
from typing import Any, Coroutine, Optional

_STOP_SECONDS = 5.0


class EventLoop:
    """Started when it is first needed."""

    def __init__(self) -> None:
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._thread: Optional[threading.Thread] = None
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def thread(self) -> Optional[threading.Thread]:
        """The thread it runs in, once it does."""
        return self._thread

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Runs a coroutine, which must not raise."""
        asyncio.run_coroutine_threadsafe(coroutine, self._started())

    def call(self, function: Any, *arguments: Any) -> None:
        """Calls a function in the loop's thread."""
        self._started().call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        """Cancels what still runs, and ends."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        self._thread.join(_STOP_SECONDS)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._serve, name="stublet-asyncio", daemon=True)
                self._thread.start()
            return self._loop

    def _serve(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        while not self._stopped:
            try:
                self._loop.run_forever()
            except BaseException:  # sys.exit() in a task of the model's: what else waits in the loop must not wait for ever
                traceback.print_exc()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._stopped = True
        asyncio.get_running_loop().stop()
