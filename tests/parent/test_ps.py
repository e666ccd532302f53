"""What ``stublet ps`` makes of what a server says."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from stublet.parent.byte_size import size
from stublet.parent.cli.ps_report import duration, of_index, of_report
from stublet.parent.status_table import plain_lines, rich_table

ABOUT = {"name": "triton", "version": "2.73.0"}


def instance(name: str, **more: Any) -> Dict[str, Any]:
    about = {
        "name": name,
        "pid": 7,
        "device": "CPU",
        "cores": "",
        "passive": False,
        "state": "READY",
        "reason": "",
        "restarts": 0,
        "restart_in_seconds": None,
    }
    gpus = {"gpu_memory_bytes": None, "gpu_exported_bytes": 0, "gpu_imported_bytes": 0}
    return {**about, **gpus, "executing": 0, "memory_bytes": 1 << 20, **more}


def model(name: str, *instances: Dict[str, Any], **more: Any) -> Dict[str, Any]:
    about = {"name": name, "version": "1", "state": "READY", "reason": "", "pending": 0, "shared_memory_bytes": 2 << 20}
    return {**about, "instances": list(instances), **more}


def test_a_report() -> None:
    report = {
        "server": {"id": "triton", "pid": 5, "seconds": 61.5, "memory_bytes": 64 << 20},
        "models": [
            model(
                "a", instance("a_0_0", executing=2), instance("a_0_1", state="FAILED", pid=None, memory_bytes=None, reason="it died\nso")
            ),
            model("b", instance("b_0_0"), version="3", state="UNLOADING", pending=4),
            model("p", instance("p_0_0", cores="0-1"), instance("p_1_0", passive=True)),
            model("c", version="", state="UNAVAILABLE", reason="bad config"),
        ],
    }
    listing = of_report(ABOUT, "http://x:8000", True, report)
    assert listing.title == "triton 2.73.0 · http://x:8000 · ready · pid 5 · up 1m 1s · 64.0MiB · 2 models ready"
    assert plain_lines(listing.columns, listing.rows) == [
        "model  version  instance  pid  device   state        running  queue  memory  shared-memory",
        "a      1        a_0_0       7  CPU      READY              2      0  1.0MiB         2.0MiB",
        "a      1        a_0_1       -  CPU      FAILED             0      -       -              -",
        "b      3        b_0_0       7  CPU      UNLOADING          0      4  1.0MiB         2.0MiB",
        "p      1        p_0_0       7  CPU:0-1  READY              0      0  1.0MiB         2.0MiB",
        "p      1        p_1_0       7  CPU      PASSIVE            0      -  1.0MiB              -",
        "c      -        -           -  -        UNAVAILABLE        -      0       -         2.0MiB",
    ]
    assert listing.notes == ["a_0_1: it died", "c: bad config"]
    assert "NOT READY" in of_report(ABOUT, "http://x:8000", False, report).title


def test_a_narrow_terminal_does_without_some_columns() -> None:
    columns = ("model", "version", "instance", "pid", "device", "state", "running", "queue", "memory", "shared memory")
    row = ("some_model_name", "1", "some_model_name_0", "12345", "CPU", "READY", "0", "0", "100MiB", "2.0MiB")
    for width, left in ((120, 10), (90, 9), (80, 8), (70, 7), (60, 6), (20, 6)):
        table = rich_table(columns, [row], width)
        assert [column.header for column in table.columns].count("state") == 1
        assert len(table.columns) == left


def test_an_index() -> None:
    index = [
        {"name": "a", "version": "1", "state": "READY"},
        {"name": "b", "version": "2", "state": "UNAVAILABLE", "reason": "odd\nreally"},
        {"name": "c"},
    ]
    listing = of_index(ABOUT, "http://x:8000", True, index)
    assert listing.title == "triton 2.73.0 · http://x:8000 · ready · 1 model ready"
    assert list(listing.rows) == [("a", "1", "READY"), ("b", "2", "UNAVAILABLE"), ("c", "-", "-")]
    assert listing.notes == ["b 2: odd"]


def test_gpus_have_columns_where_they_are_used() -> None:
    on_gpu = instance("a_0_0", device="GPU", gpu_memory_bytes=3 << 30, gpu_exported_bytes=64 << 20)
    models = [model("a", on_gpu), model("b", instance("b_0_0", gpu_imported_bytes=64 << 20)), model("c", state="UNAVAILABLE")]
    report = {"server": {"id": "triton", "pid": 5, "seconds": 61.5, "memory_bytes": 64 << 20}, "models": models}
    listing = of_report(ABOUT, "http://x:8000", True, report)
    assert plain_lines(listing.columns, listing.rows) == [
        "model  version  instance  pid  device  state        running  queue  memory  shared-memory  gpu-memory  gpu-exports  gpu-imports",
        "a      1        a_0_0       7  GPU     READY              0      0  1.0MiB         2.0MiB      3.0GiB      64.0MiB           0B",
        "b      1        b_0_0       7  CPU     READY              0      0  1.0MiB         2.0MiB           -           0B      64.0MiB",
        "c      1        -           -  -       UNAVAILABLE        -      0       -         2.0MiB           -            -            -",
    ]


def test_restarts_have_a_column_when_there_were_any() -> None:
    waiting = {"state": "RESTARTING", "pid": None, "memory_bytes": None, "reason": "it died\nso", "restarts": 3, "restart_in_seconds": 2.51}
    models = [model("a", instance("a_0_0", **waiting), instance("a_0_1", state="LOADING", restarts=1), instance("a_0_2", state="SPARE"))]
    report = {"server": {"id": "triton", "pid": 5, "seconds": 61.5, "memory_bytes": 64 << 20}, "models": models}
    listing = of_report(ABOUT, "http://x:8000", True, report)
    assert plain_lines(listing.columns, listing.rows) == [
        "model  version  instance  pid  device  state       running  queue  memory  shared-memory  restarts",
        "a      1        a_0_0       -  CPU     RESTARTING        0      0       -         2.0MiB         3",
        "a      1        a_0_1       7  CPU     RESTARTING        0      -  1.0MiB              -         1",
        "a      1        a_0_2       7  CPU     SPARE             0      -  1.0MiB              -         0",
    ]
    assert listing.notes == ["a_0_0 (started again in 2.5 s, restart 4): it died"]


@pytest.mark.parametrize(
    "nbytes, text",
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (99 << 20, "99.0MiB"), (100 << 20, "100MiB"), (3 << 40, "3.0TiB"), (1 << 60, "1048576TiB")],
)  # fmt: skip
def test_sizes(nbytes: Any, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    "seconds, text", [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3600, "1h 0m"), (90061, "1d 1h"), (86400 * 400, "400d 0h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
