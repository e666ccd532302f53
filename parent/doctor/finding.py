"""What a check of ``stublet doctor`` found."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Level(Enum):
    """How bad it is. With a WARNING the server works, worse than it could or not for long; with a FAILURE, not at all."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "FAILURE"


class Finding(NamedTuple):
    """``what`` was looked at, ``text`` how it is, ``advice`` what to change, if anything."""

    level: Level
    what: str
    text: str
    advice: str = ""


def ok(what: str, text: str) -> Finding:
    return Finding(Level.OK, what, text)


def warning(what: str, text: str, advice: str) -> Finding:
    return Finding(Level.WARNING, what, text, advice)


def failure(what: str, text: str, advice: str) -> Finding:
    return Finding(Level.FAILURE, what, text, advice)
