"""A boundary, and what must hold of whatever comes over it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, ContextManager, Dict, Iterator, NamedTuple, Sequence

CORPUS = Path(__file__).parent / "corpus"
_SECONDS = 1.0
_SECONDS_PER_BYTE = 20e-6

Check = Callable[[bytes], None]
"""Takes an input. What it raises is a finding."""


class Target(NamedTuple):
    """``opened`` is a context with everything that ``check`` needs. ``tokens``: what means something there. ``mutations``: how many inputs a
    test makes of the corpus."""

    name: str
    opened: Callable[[], ContextManager[Check]]
    tokens: Sequence[bytes] = ()
    mutations: int = 2000


def pure(check: Check) -> Callable[[], ContextManager[Check]]:
    """The context of a check that needs none."""

    @contextmanager
    def opened() -> Iterator[Check]:
        yield check

    return opened


def timed(check: Check) -> Check:
    """The same, and it may not take longer than ``_SECONDS`` and ``_SECONDS_PER_BYTE`` of the processor's time."""

    def timed_check(data: bytes) -> None:
        began = time.thread_time()
        check(data)
        took = time.thread_time() - began
        assert took < _SECONDS + _SECONDS_PER_BYTE * len(data), f"{len(data)} bytes took {took:.1f} s"

    return timed_check


def corpus(target: str) -> Dict[str, bytes]:
    """The inputs that are kept of a target, by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}
