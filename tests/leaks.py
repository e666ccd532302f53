"""What a test may leave behind: nothing. What this process holds is compared before and after, and given a moment to settle."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Set, Tuple, TypeVar

SETTLE_SECONDS = 5.0

_POLL_SECONDS = 0.005

# What pytest, its plugins and the interpreter open for themselves while a test runs.
_NOT_OURS = ("/dev/null", "/dev/urandom", "/proc/", ".hypothesis", "/pytest-of-")

Value = TypeVar("Value")


def eventually(condition: Callable[[], Value], seconds: float = SETTLE_SECONDS) -> Value:
    """The first true value of ``condition``, or its last value when there was none within ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(_POLL_SECONDS)


class Holdings(NamedTuple):
    """What this process holds: its children, threads, what its descriptors refer to, and our names in /dev/shm."""

    children: Set[int]
    threads: Set[threading.Thread]
    files: Counter[str]
    names: Set[str]

    @classmethod
    def now(cls) -> Holdings:
        return cls(
            set(_children()),
            set(threading.enumerate()),
            Counter(_files()),
            {name for name in os.listdir("/dev/shm") if name.startswith("stublet")},
        )

    def beyond(self, before: Holdings) -> Set[Tuple[str, object]]:
        """What is held now and was not held before: of what kind, and which."""
        return {
            *(("child process", pid) for pid in self.children - before.children),
            *(("thread", thread) for thread in self.threads - before.threads),
            *(("file descriptor of", target) for target in self.files - before.files),
            *(("name in /dev/shm", name) for name in self.names - before.names),
        }


def assert_nothing_left(before: Holdings, seconds: float = SETTLE_SECONDS) -> None:
    """Asserts that this process holds no more child processes, threads, file descriptors and names in /dev/shm than ``before``, or
    will within ``seconds``."""
    left = Holdings.now().beyond(before)
    if left:
        gc.collect()  # an exception and its frames keep each other alive, and a mapping its descriptor
        # What is there all the time was left; what comes and goes is another worker's, such as a name that is about to be unlinked.
        eventually(lambda: not left.intersection_update(Holdings.now().beyond(before)) and not left, seconds)
    assert not left, "left behind: " + "; ".join(sorted(_words(kind, which) for kind, which in left))


def _words(kind: str, which: object) -> str:
    if isinstance(which, threading.Thread):
        which = which.name
    elif isinstance(which, int):
        with suppress(OSError):
            which = f"{which} ({Path(f'/proc/{which}/comm').read_text().strip()})"
    return f"{kind} {which}"


def _children() -> Iterator[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return  # none at all, which is the rule
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            yield from map(int, (task / "children").read_text().split())


def _files() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed them
            target = os.readlink(f"/proc/self/fd/{fd}")
            if not any(part in target for part in _NOT_OURS):
                yield target
