"""Traces as JSON in a file, in the form that Triton writes (spec 6.10, recorded).

The file is a complete JSON array between two writes: a reader need not wait for the end of the server.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Dict, List, Optional

import msgspec
import numpy as np

from ...shm import bytes_codec
from ...shm.dtype import BF16, BY_NAME, BYTES
from .trace import Event, Record, Started, TracedTensor

logger = logging.getLogger(__name__)

_MOST_WAITING = 10_000
"""Traces that wait to be written; what comes beyond is lost."""
_MOST_AT_ONCE = 256
_CLOSE_SECONDS = 10.0
"""A disk that takes longer does not keep the server from its end."""


class TraceFile:
    """Writes in a thread of its own, which starts with the first trace.

    Args:
        path: of the file, which is overwritten, or, where so many traces are to make a file, what the names of files begin with.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._records: SimpleQueue[Optional[Record]] = SimpleQueue()
        self._indices = itertools.count()
        self._parts: Dict[int, _Part] = {}
        self._thread: Optional[threading.Thread] = None
        self._lock = threading.Lock()
        self._closed = False
        self._failing = False
        self._lost = 0

    def start(self) -> None:
        """Makes ready for traces."""
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closed:
                    self._thread = threading.Thread(target=self._run, name="trace file", daemon=True)
                    self._thread.start()

    def put(self, record: Record) -> None:
        """Queues a trace to be written; it is lost if too many wait."""
        if self._records.qsize() < _MOST_WAITING:
            self._records.put(record)
        else:
            self._lost += 1

    def close(self) -> None:
        """Writes what is queued, and ends."""
        with self._lock:
            self._closed = True
        if self._thread is not None:
            self._records.put(None)
            self._thread.join(_CLOSE_SECONDS)
        for part in self._parts.values():
            part.close()

    def _run(self) -> None:
        while True:
            records = [self._records.get()]
            with suppress(Empty):
                while len(records) < _MOST_AT_ONCE:
                    records.append(self._records.get_nowait())
            self._write([record for record in records if record is not None])
            if records[-1] is None:
                return

    def _write(self, records: List[Record]) -> None:
        try:
            for record in records:
                self._part(record.log_frequency).add(record)
            for part in self._parts.values():
                part.flush()
            self._failing = False
            if self._lost:
                logger.warning("%d traces are lost: they come faster than they can be written", self._lost)
                self._lost = 0
        except OSError as error:
            if not self._failing:
                where = f"'{self._path}'" if self._path else "no file, which --trace-config triton,file=<path> names"
                logger.error("traces are lost: %s: %s", where, error.strerror)
            self._failing = True

    def _part(self, frequency: int) -> _Part:
        part = self._parts.get(frequency)
        if part is None or (frequency and part.count == frequency):
            if part is not None:
                part.flush()
                part.close()
                del self._parts[frequency]
            part = self._parts[frequency] = _Part(f"{self._path}.{next(self._indices)}" if frequency else self._path)
        return part


class _Part:
    """One file. ``count``: traces in it."""

    def __init__(self, path: str) -> None:
        self.count = 0
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - open for as long as traces come
        self._end = 0
        self._entries: List[bytes] = []

    def add(self, record: Record) -> None:
        self._entries += _entries(record)
        self.count += 1

    def flush(self) -> None:
        """Writes what was added, over the bracket at the end."""
        if self._entries:
            entries, self._entries = self._entries, []
            data = (b"," if self._end else b"[") + b",".join(entries)
            try:
                self._write(data + b"]")
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), self._end)
                    self._write(b"]" if self._end else b"[]")
                raise
            self._end += len(data)

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        at, left = self._end, memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, at)
            at, left = at + written, left[written:]


def _entries(record: Record) -> List[bytes]:
    return [msgspec.json.encode({"id": record.number, **_entry(record, entry)}) for entry in record.entries]


def _entry(record: Record, entry: Any) -> Dict[str, Any]:
    if isinstance(entry, Event):
        return {"timestamps": [{"name": entry.name, "ns": entry.ns}]}
    if isinstance(entry, TracedTensor):
        shape = ",".join(map(str, entry.shape))
        return {"activity": entry.activity, "tensor": {"name": entry.name, "data": _text(entry), "shape": shape, "dtype": entry.dtype}}
    assert isinstance(entry, Started)
    about: Dict[str, Any] = {"model_name": entry.model, "model_version": entry.version}
    if entry.request_id:
        about["request_id"] = entry.request_id
    if record.parent:
        about["parent_id"] = record.parent
    return about


def _text(tensor: TracedTensor) -> str:
    """The elements, separated by commas; numbers in the shortest form, strings in quotes."""
    dtype = BY_NAME[tensor.dtype]
    if dtype is BYTES:
        return ",".join([msgspec.json.encode(item.decode(errors="backslashreplace")).decode() for item in bytes_codec.decode(tensor.data)])
    if dtype is BF16:
        array = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        array = np.frombuffer(tensor.data, np.uint8 if dtype.name == "BOOL" else dtype.numpy)
    return ",".join([str(item).removesuffix(".0") for item in array])
