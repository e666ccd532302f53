"""The stub's end of a channel: real rings and real segments, and the test is the stub."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from stublet.parent.channel import Channel
from stublet.parent.model_config import TensorSpec
from stublet.parent.news import News
from stublet.parent.request import Loan, Outcome, OutputPlan, Request, Response
from stublet.shm.arena import Arena, Block
from stublet.shm.dtype import BY_NAME
from stublet.shm.message import FINAL, NEWS, RETURNED, WORK, decode_down, pack
from stublet.shm.ring import STARTED, Consumer, Producer, Words
from stublet.shm.segment import Segment

UINT8 = BY_NAME["UINT8"]
DONE = FINAL | RETURNED

OWN, FOREIGN = 50, 60
"""Ids of a segment of the stub's arena, and of one of another stub."""

Row = Tuple[Any, ...]
Key = Tuple[int, int]


class Stub:
    """The far end of a channel, and what the channel takes for its model."""

    def __init__(self, decoupled: bool = False) -> None:
        self.made: List[Segment] = []
        self.name = "model"
        self.decoupled = decoupled
        self.max_concurrent = 1
        self.outputs = self.stub_outputs = [TensorSpec(name, UINT8, (-1,), False) for name in ("out", "other")]
        self.memo: Dict[Any, Any] = {}
        self.arena = Arena(self.grow, 1 << 20)
        self.announced: List[int] = []
        self.regions: List[int] = []
        """Regions of clients that the stub was told of."""
        self.channel = Channel(
            self,  # type: ignore[arg-type]
            lambda segment: self.announced.append(segment.id),
            lambda region: self.regions.append(region.id),
        )
        self.own = self.channel.loans.outputs[OWN] = Segment.create(OWN, 256 << 10)
        self.foreign = Segment.create(FOREIGN, 256 << 10)
        self.came_back: List[Key] = []
        """Blocks of the other stub that were given back."""
        words = Words(self.channel.segment)
        words.check()
        self.words = words
        self.down = Consumer(words, "down", self.channel.down_bell)
        self.up = Producer(words, "up", self.channel.up_bell)
        self.settled: List[Tuple[int, Optional[Outcome], bool]] = []
        self.returned = 0

    def remember(self, key: Any, value: Any) -> None:
        self.memo[key] = value

    def grow(self, nbytes: int) -> Segment:
        self.made.append(Segment.create(len(self.made) + 1, nbytes))
        return self.made[-1]

    def allocate_anyway(self, nbytes: int) -> Block:
        return self.arena.allocate(nbytes)

    def close(self) -> None:
        self.channel.close()
        for segment in (self.own, self.foreign, *self.made):
            segment.close()

    # as the server

    def request(self, *sizes: int, blocks: Optional[Sequence[Any]] = None, extras: Row = (), borrowed: bool = False) -> Request:
        """A request with an input in each of its blocks, all of a block."""
        taken = [self.arena.allocate(size) for size in sizes] if blocks is None else list(blocks)
        sizes = tuple(block.size for block in taken) if blocks is not None else sizes
        inputs = [(index, UINT8.code, (size,), index, 0, size) for index, size in enumerate(sizes)]
        return Request(list(zip(taken, sizes)), inputs, extras, lambda *_: None, borrowed)

    def hand(self, *requests: Request) -> None:
        for request in requests:
            assert self.channel.hand([request])
        self.channel.flush()

    def loan(self, offset: int, size: int = 100) -> Loan:
        """A block of another stub."""
        return Loan(self.foreign, offset, size, (self.came_back.append, (FOREIGN, offset)))

    def response(self, *places: Tuple[Segment, int], size: int = 100) -> Response:
        """What another model answered: an output in each of these places."""
        outputs = [(0, UINT8.code, (size,), index, 0, size) for index in range(len(places))]
        plan = OutputPlan([TensorSpec("answer", UINT8, (-1,), False)], outputs, len(places))
        leases = [(self.came_back.append, (segment.id, offset)) for segment, offset in places]
        return Response(plan, list(places), leases, '{"a": 1}')

    def drain(self) -> News:
        """What came up; its outcomes are noted."""
        news = News()
        try:
            self.channel.drain(news)
            self.channel.put_away(news)
        finally:
            self.settled += [(request.key, outcome, final) for request, outcome, final in news.settled]
            self.returned += news.returned
        return news

    def in_use(self) -> int:
        """Blocks of the request arena that somebody holds."""
        self.arena.collect()
        return sum(block.holders > 0 for block in self.arena._blocks.values())

    def holders(self, block: Block) -> int:
        """How often a block of the request arena is held."""
        self.arena.collect()
        return block.holders

    # as the stub

    def records(self) -> List[Row]:
        """Every record that has come down; those that lie in a block are read there, and the block is kept."""
        found = []
        while True:
            record = self.down.pop()
            if record is None:
                return found
            message = decode_down(record)
            found.append(message)

    def work(self) -> Tuple[List[Key], List[Row], List[Row]]:
        """The releases, requests and replies of these records."""
        releases: List[Key] = []
        requests: List[Row] = []
        replies: List[Row] = []
        for kind, *parts in self.records():
            assert kind == WORK
            releases += parts[0]
            requests += [request for batch in parts[1] for request in batch]
            replies += parts[2]
        return releases, requests, replies

    def begin(self, key: int) -> None:
        """The execution of a request begins."""
        self.words.view[STARTED // 8] = key + 1

    def say(self, *results: Row, releases: Sequence[Key] = (), calls: Sequence[Row] = ()) -> News:
        assert self.up.push(pack((NEWS, releases, results, calls)))
        return self.drain()


def result(key: int, flags: int = DONE, *blocks: Key, size: int = 8, kept: Sequence[int] = (), error: Row = ()) -> Row:
    """One with an output in each of these blocks."""
    outputs = [(0, UINT8.code, (size,), index, 0, size) for index in range(len(blocks))]
    return key, flags, 5, kept, blocks, outputs, error, ""


def call(number: int, *blocks: Key, size: int = 8) -> Row:
    inputs = [("x", UINT8.code, (size,), index, 0, size) for index in range(len(blocks))]
    return number, 0, "callee", -1, blocks, inputs, (), ("", "{}", 0, 0, 0)
