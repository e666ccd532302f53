"""A stub's parts in the test's own process: its memory, its outbox and what answers requests. The test is the server: it supplies the
segments, sends requests, and reads what comes up the ring."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from channel import Channel, open_channel
from stublet.shm.dtype import BY_CODE, BY_NAME
from stublet.shm.errors import OutOfSharedMemory, ProtocolError
from stublet.shm.message import INDIRECT, NEWS, decode_up
from stublet.shm.segment import Segment, SegmentTable
from stublet.stub.client_regions import ClientRegions, Region
from stublet.stub.exchange import Exchange
from stublet.stub.execution import Execution, Executions
from stublet.stub.host import host
from stublet.stub.memory import Placed, StubMemory
from stublet.stub.outbox import Outbox
from stublet.stub.placing import Placing
from stublet.stub.request import InferenceRequest
from stublet.stub.tensor import Tensor

REQUESTS, FOREIGN = 100, 200
"""Ids of the segment in which requests come, and of one of another stub."""

ARENA = 1 << 20
SEGMENT_BYTES = 256 << 10

Row = Tuple[Any, ...]


class Memory:
    """A stub's memory, and the server who supplies it and reads from it."""

    def __init__(self, room: int = ARENA) -> None:
        self.room = room
        self.segments: List[Segment] = []
        self.others = {number: Segment.create(number, SEGMENT_BYTES) for number in (REQUESTS, FOREIGN)}
        self.fetched: List[int] = []
        self.coming_back: List[Tuple[int, int]] = []
        """What the stub finds in its ring when it looks for memory."""
        self.table = SegmentTable()
        self.memory = StubMemory(self.table, self.fetch, self.grow, self.look, 64 << 10)

    def fetch(self, segment_id: int) -> Segment:
        self.fetched.append(segment_id)
        if segment_id not in self.others:
            raise ProtocolError(f"segment {segment_id} was not announced")
        self.table[segment_id] = self.others[segment_id]
        return self.others[segment_id]

    def grow(self, nbytes: int) -> Segment:
        if nbytes > self.room:
            raise OutOfSharedMemory(f"no room for {nbytes}")
        self.room -= nbytes
        segment = Segment.create(len(self.segments), nbytes)
        self.segments.append(segment)
        self.table[segment.id] = segment  # what the stub sends may come back to it
        return segment

    def look(self) -> None:
        keys, self.coming_back = self.coming_back, []
        self.memory.release(keys)

    def close(self) -> None:
        for segment in (*self.segments, *self.others.values()):
            segment.close()

    def place(self, tensors: Sequence[Tuple[Any, Tensor]], goes_on: bool = False) -> Placed:
        """As the stub does with what ``execute`` returned or, if that goes on, with what a sender sends."""
        return self.memory.place(tensors, goes_on)

    def bytes_at(self, segment_id: int, offset: int, nbytes: int) -> bytes:
        """What the server finds there."""
        return self.table.locate(segment_id, offset, nbytes).memory[offset : offset + nbytes]

    def read(self, placed: Placed) -> List[Tuple[Any, np.ndarray]]:
        """What the server finds where a message says, by name."""
        found = []
        for name, dtype, shape, index, offset, nbytes in placed[1]:
            segment, start = placed[0][index]
            data = np.frombuffer(self.bytes_at(segment, start + offset, nbytes), np.uint8)
            numpy = BY_CODE[dtype].numpy
            found.append((name, data.view(numpy).reshape(shape) if numpy is not None and numpy.kind != "O" else data))
        return sorted(found, key=lambda pair: pair[0])

    def in_use(self) -> int:
        """Blocks of the arena that somebody holds."""
        self.memory.arena.collect()
        return sum(block.holders > 0 for block in self.memory.arena._blocks.values())

    def holders(self, key: Tuple[int, int]) -> int:
        """How often a block of the arena is held."""
        self.memory.arena.collect()
        return self.memory.arena._blocks[key].holders


class Runtime:
    """All that a stub has beside its model and its threads. Make it with ``running``."""

    def __init__(self, channel: Channel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.channel = channel
        self.store = Memory()
        self.memory = self.store.memory
        self.outbox = Outbox(channel.producers["up"], self.memory)
        self.warnings: List[str] = []
        self.logged: List[Tuple[Any, ...]] = []
        self.regions: Dict[int, Region] = {}
        """Those of clients that the stub was told of."""
        regions = ClientRegions(self.memory, self.regions.__getitem__, "model", inputs, outputs)
        self.placing = Placing(self.memory, regions, outputs, "model_0_0", self.warnings.append)
        self.executions = Executions(
            self.memory, self.outbox, self.placing, regions, inputs, outputs, "model_0_0", lambda *line: self.logged.append(line)
        )
        self._keys = 0

    def records(self) -> List[Row]:
        """Every record that has come up since the last look, each (releases, results, calls)."""
        found = []
        while True:
            record = self.channel.consumers["up"].pop()
            if record is None:
                return found
            message = decode_up(record)
            if message[0] == INDIRECT:
                message = decode_up(self.store.bytes_at(*message[1:]))
            assert message[0] == NEWS
            found.append(message[1:])

    def results(self) -> List[Row]:
        """The results of these records, in order."""
        return [result for _, results, _ in self.records() for result in results]

    def request(self, *values: Sequence[float], extras: Row = (), borrowed: bool = False) -> Row:
        """A request with FP32 inputs of these values, in one block of its own."""
        segment = FOREIGN if borrowed else REQUESTS
        start = self._keys * 16384 % SEGMENT_BYTES
        inputs, offset = [], 0
        memory = self.store.others[segment].memory
        for index, value in enumerate(values):
            data = np.array(value, np.float32)
            memory[start + offset : start + offset + data.nbytes] = data.tobytes()
            inputs.append((index, BY_NAME["FP32"].code, data.shape, 0, offset, data.nbytes))
            offset += data.nbytes
        self._keys += 1
        return self._keys - 1, int(borrowed), ((segment, start, offset),), tuple(inputs), extras, ()

    def begin(self, *batch: Row) -> Tuple[List[InferenceRequest], Execution]:
        """The requests that the model gets, and the execution. Nobody but the caller holds the requests."""
        holder, execution = self.executions.begin(batch)
        return holder.pop(), execution


@contextmanager
def running(
    monkeypatch: pytest.MonkeyPatch, decoupled: bool = False, inputs: Sequence[str] = ("x", "y"), outputs: Sequence[str] = ("out", "other")
) -> Iterator[Runtime]:
    """The parts of a stub, connected. Every exchange of it must be gone or closed at the end."""
    with open_channel() as channel, monkeypatch.context() as patched:
        runtime = Runtime(channel, inputs, outputs)
        classwide: Dict[str, Optional[Any]] = {
            "outbox": runtime.outbox,
            "placing": runtime.placing,
            "cancelled_flags": channel.words.cancelled,
            "held_flags": channel.words.held,
            "decoupled": decoupled,
        }
        for name, value in classwide.items():
            patched.setattr(Exchange, name, value, raising=False)
        patched.setattr(host, "allocate", runtime.memory.empty)
        try:
            yield runtime
        finally:
            runtime.store.close()
