"""The file of traces: complete at any moment, one for so many of them, and its disk may be full."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path
from typing import Any, Iterator, List

import numpy as np
import pytest
from leaks import eventually
from stublet.parent.tracing.file import TraceFile
from stublet.parent.tracing.trace import Event, Record, Started, TracedTensor
from stublet.shm import bytes_codec


def record(number: int, *entries: Any, frequency: int = 0, parent: int = 0) -> Record:
    made = Record(number, parent, frequency)
    made.entries += entries or (Event("REQUEST_START", number),)
    return made


def numbers(path: Path) -> List[int]:
    """Of the traces in the file; none if it is just being written."""
    try:
        return [entry["id"] for entry in json.loads(path.read_text())]
    except json.JSONDecodeError:
        return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


@pytest.fixture
def file(path: Path) -> Iterator[TraceFile]:
    file = TraceFile(str(path))
    file.start()
    yield file
    file.close()


def test_entries(file: TraceFile, path: Path) -> None:
    file.put(record(1, Event("HTTP_RECV_START", 5), Started("m", 2, "r"), Event("REQUEST_END", 7)))
    file.put(record(2, Started("m", 2, ""), parent=1))
    file.close()
    assert json.loads(path.read_text()) == [
        {"id": 1, "timestamps": [{"name": "HTTP_RECV_START", "ns": 5}]},
        {"id": 1, "model_name": "m", "model_version": 2, "request_id": "r"},
        {"id": 1, "timestamps": [{"name": "REQUEST_END", "ns": 7}]},
        {"id": 2, "model_name": "m", "model_version": 2, "parent_id": 1},
    ]


def test_it_is_complete_between_traces(file: TraceFile, path: Path) -> None:
    for number in range(1, 6):
        file.put(record(number))
        eventually(lambda upto=number: path.exists() and path.read_text() and numbers(path) == list(range(1, upto + 1)))  # type: ignore[misc]


def test_a_file_for_so_many(file: TraceFile, path: Path) -> None:
    for number in range(1, 6):
        file.put(record(number, frequency=2))
    file.put(record(6))
    file.close()
    assert [numbers(Path(f"{path}.{index}")) for index in range(3)] == [[1, 2], [3, 4], [5]]
    assert numbers(path) == [6]


def test_an_older_file_is_overwritten(file: TraceFile, path: Path) -> None:
    path.write_text("x" * 10_000)
    file.put(record(1))
    file.close()
    assert numbers(path) == [1]


@pytest.mark.parametrize(
    "dtype, data, text",
    [
        ("FP32", np.array([1, 0.1, -2.5, np.inf, np.nan], np.float32).tobytes(), "1,0.1,-2.5,inf,nan"),
        ("FP16", np.array([0.5], np.float16).tobytes(), "0.5"),
        ("BF16", np.array([0x3FC0], np.uint16).tobytes(), "1.5"),
        ("INT8", np.array([-1, 2], np.int8).tobytes(), "-1,2"),
        ("UINT64", np.array([2**64 - 1], np.uint64).tobytes(), "18446744073709551615"),
        ("BOOL", b"\0\1", "0,1"),
        ("BYTES", bytes_codec.encode([b'a"b', b"\xff", "ä".encode()]), r'"a\"b","\\xff","ä"'),
        ("INT32", b"", ""),
    ],
)
def test_elements(file: TraceFile, path: Path, dtype: str, data: bytes, text: str) -> None:
    file.put(record(1, TracedTensor("TENSOR_QUEUE_INPUT", "IN", dtype, (2, 3), data)))
    file.close()
    assert json.loads(path.read_text()) == [
        {"id": 1, "activity": "TENSOR_QUEUE_INPUT", "tensor": {"name": "IN", "data": text, "shape": "2,3", "dtype": dtype}}
    ]


def test_a_disk_that_is_full(caplog: pytest.LogCaptureFixture) -> None:
    file = TraceFile("/dev/full")
    file.start()
    for number in range(1, 4):
        file.put(record(number))
        eventually(lambda: caplog.messages)
    file.close()
    assert caplog.messages == ["traces are lost: '/dev/full': No space left on device"]
    assert {one.levelno for one in caplog.records} == {logging.ERROR}


def test_one_that_fills_up(file: TraceFile, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.put(record(1))
    eventually(lambda: path.exists() and path.read_text())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        file.put(record(2))
        eventually(lambda: "File too large" in caplog.text)
        eventually(lambda: numbers(path) == [1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.put(record(3))
    file.close()
    assert numbers(path) == [1, 3], "what did not fit is lost, and the rest is whole"


def test_more_than_can_be_written(path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stublet.parent.tracing.file._MOST_WAITING", 3)
    file = TraceFile(str(path))
    for number in range(1, 6):
        file.put(record(number))
    file.start()
    file.close()
    assert numbers(path) == [1, 2, 3]
    assert caplog.messages == ["2 traces are lost: they come faster than they can be written"]


def test_no_file(caplog: pytest.LogCaptureFixture) -> None:
    file = TraceFile("")
    file.start()
    file.put(record(1))
    file.close()
    assert "traces are lost: no file, which --trace-config triton,file=<path> names" in caplog.text


def test_one_that_is_not_used_makes_none(path: Path) -> None:
    TraceFile(str(path)).close()
    assert not path.exists()
