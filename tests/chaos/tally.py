"""What came of the requests, counted, and everything that must not have happened."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Dict, List


class Tally:
    """``violations`` tells what must not happen. In any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        """Right answers, by load."""
        self.refused: Dict[str, Counter[str]] = {}
        """Requests with an error that is allowed while stubs die, by load and status."""
        self.examples: Dict[str, str] = {}
        """One text of each kind of error."""
        self.slowest = 0.0
        """Seconds that the slowest answer took, errors included."""
        self.violations: List[str] = []

    def right(self, load: str, seconds: float) -> None:
        with self._lock:
            self.answered[load] += 1
            self.slowest = max(self.slowest, seconds)

    def failed(self, load: str, status: str, text: str, seconds: float) -> None:
        with self._lock:
            self.refused.setdefault(load, Counter())[status] += 1
            self.examples.setdefault(f"{load} {status}", text)
            self.slowest = max(self.slowest, seconds)

    def violated(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)

    def report(self) -> str:
        """A table for people."""
        lines = [f"{'load':<16}{'answered':>10}   refused"]
        for load in sorted({*self.answered, *self.refused}):
            refused = ", ".join(f"{count} {status}" for status, count in sorted(self.refused.get(load, Counter()).items()))
            lines.append(f"{load:<16}{self.answered[load]:>10}   {refused}")
        lines.append(f"slowest answer: {self.slowest:.2f} s")
        lines += [f"for example, {kind}: {' '.join(text.split())[:300]}" for kind, text in sorted(self.examples.items())]
        lines += [f"VIOLATION: {text}" for text in self.violations]
        return "\n".join(lines)
