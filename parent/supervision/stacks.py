"""The stacks of stubs: asked for with a signal, written by faulthandler in the stub, read from the pipe it writes to."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from .process_state import blocking, catches, process_of

if TYPE_CHECKING:
    from ..stub_process import StubProcess

STACKS_SIGNAL = signal.SIGUSR1
"""A stub has had faulthandler registered for it since before it loaded anything."""

_LOOK_SECONDS = 0.01
_MOST_CHARACTERS = 1 << 20
"""Faulthandler writes of 100 threads at most; a stub that writes more, or for ever, does so by itself."""
_STOPPED = {"T": "stopped (SIGSTOP)", "t": "stopped by a debugger"}


async def stacks_of(process: StubProcess, seconds: float) -> str:
    """The stacks of all threads of a stub, the last call first; or, in parentheses, why there are none. Native code that holds the
    interpreter is no hindrance, and takes ``seconds`` at most."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pid = process.pid
    if pid is None or process.ended.done():
        return "(no stacks: there is no process)"
    if not await _acquired(process.stacks_lock, seconds):
        return "(no stacks: others are asking for them)"
    try:
        seen = process_of(pid)
        if seen is not None and seen.state in _STOPPED:
            return f"(no stacks: the process is {_STOPPED[seen.state]})"
        if not catches(pid, STACKS_SIGNAL):
            return f"(no stacks: it is just starting, or the model has taken {STACKS_SIGNAL.name} for itself)"
        never = blocking(pid, STACKS_SIGNAL)
        process.take_stacks()
        process.signal(STACKS_SIGNAL)
        text = ""
        while loop.time() < deadline and not process.ended.done() and len(text) < _MOST_CHARACTERS:
            text += process.take_stacks()
            # What has begun to write and is through with the signal has written all of it.
            if text and blocking(pid, STACKS_SIGNAL) <= never:
                return (text + process.take_stacks()).strip("\n")
            await asyncio.sleep(_LOOK_SECONDS)
        return text.strip("\n") or f"(no stacks: it did not write any within {seconds:g} s)"
    finally:
        process.stacks_lock.release()


async def _acquired(lock: asyncio.Lock, seconds: float) -> bool:
    try:
        await asyncio.wait_for(lock.acquire(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
