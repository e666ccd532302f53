"""The repository index: a row for each version, and one for each model that has none."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from stublet.parent.repository_index import Index


class Version:
    """A version as the index sees it."""

    def __init__(self, ready: bool = True) -> None:
        self.ready = ready

    def unavailable_text(self) -> str:
        return "its instance ended"


def rows(ready: bool = False, **known: Any) -> List[Dict[str, str]]:
    nothing: Dict[str, Any] = {"loaded": {}, "failures": {}, "refused": {}, "loading": {}, "leaving": {}, "unloaded": {}}
    return Index(**{"present": [], **nothing, **known}).rows(ready)


def row(name: str, version: str, state: str, **reason: str) -> Dict[str, str]:
    return {"name": name, "version": version, "state": state, **reason}


@pytest.mark.parametrize(
    "known, expected",
    [
        ({}, []),
        ({"present": ["m"]}, [{"name": "m"}]),
        ({"present": ["m"], "loaded": {"m": {2: Version(), 10: Version()}}}, [row("m", "2", "READY"), row("m", "10", "READY")]),
        ({"loaded": {"m": {1: Version(False)}}}, [row("m", "1", "UNAVAILABLE", reason="its instance ended")]),
        (
            {"loaded": {"m": {1: Version(False), 2: Version()}}, "refused": {"m": {1: "odd"}}, "failures": {"m": "version 1: odd"}},
            [row("m", "1", "UNAVAILABLE", reason="odd"), row("m", "2", "READY")],
        ),
        ({"refused": {"m": {1: "odd"}}, "failures": {"m": "version 1: odd"}}, [row("m", "1", "UNAVAILABLE", reason="odd")]),
        ({"present": ["m"], "failures": {"m": "bad config"}}, [{"name": "m", "state": "UNAVAILABLE", "reason": "bad config"}]),
        ({"present": ["m"], "loading": {"m": []}}, [{"name": "m"}]),
        ({"present": ["m"], "loading": {"m": [3]}}, [row("m", "3", "LOADING")]),
        ({"loaded": {"m": {1: Version()}}, "loading": {"m": [1, 2]}}, [row("m", "1", "READY"), row("m", "2", "LOADING")]),
        ({"refused": {"m": {1: "odd"}}, "failures": {"m": "odd"}, "loading": {"m": [1]}}, [row("m", "1", "LOADING")]),
        ({"leaving": {"m": [1, 1, 2]}}, [row("m", "1", "UNLOADING"), row("m", "2", "UNLOADING")]),
        ({"leaving": {"m": [1]}, "loaded": {"m": {1: Version()}}}, [row("m", "1", "READY")]),
        ({"present": ["m"], "unloaded": {"m": [1]}}, [row("m", "1", "UNAVAILABLE", reason="unloaded")]),
        ({"unloaded": {"m": [1]}, "loading": {"m": [1]}}, [row("m", "1", "LOADING")]),
        (
            {"present": ["c", "a"], "loaded": {"b": {1: Version()}}, "failures": {"d": "gone"}},
            [{"name": "a"}, row("b", "1", "READY"), {"name": "c"}, {"name": "d", "state": "UNAVAILABLE", "reason": "gone"}],
        ),
    ],
)
def test_rows(known: Dict[str, Any], expected: List[Dict[str, str]]) -> None:
    assert rows(**known) == expected
    assert rows(True, **known) == [row for row in expected if row.get("state") == "READY"]
