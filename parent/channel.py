"""The server's end of an instance's two rings: what it was handed, what it has been lent, and what it said."""

from __future__ import annotations

import os
from collections import deque
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.message import EMPTY, FAILURE, FINAL, FINALIZE, INDIRECT, NEWS, RESCHEDULE, RETURNED, WORK, decode_up, packer
from ..shm.polling import PollBudget, poll_limit
from ..shm.ring import CHANNEL_BYTES, OPEN_REQUESTS, RECORD_BYTES, Consumer, Producer, Words
from ..shm.segment import Segment, SegmentTable
from . import errors
from .request import Lease, Lent, Loan, Outcome, OutputPlan, Request, Response
from .statistics import Failure, failure_of

if TYPE_CHECKING:
    from .client_memory import ClientRegion, RegionUse
    from .model import Model

_HAND_OVER_NS = 20_000
"""What an answer takes beside the execution that the stub reports, when nobody sleeps."""

_PARENT_POLL_US = 200

_RELEASES_AT_ONCE = 16
"""So many blocks of the stub's arena are given back by a record of their own; fewer wait for the next one."""

_SLOT = OPEN_REQUESTS - 1

BlockKey = Tuple[int, int]


class Call(NamedTuple):
    """A request that the model makes to another (``stublet.shm.message``); ``blocks`` hold its inputs."""

    number: int
    flags: int
    model: str
    version: int
    blocks: List[Tuple[Loan, int]]
    inputs: Tuple[Tuple[Any, ...], ...]
    requested: Tuple[str, ...]
    extras: Tuple[Any, ...]


class News:
    """What ``drain`` found. ``settled``: requests with an outcome, and whether it is the last. ``returned``: how many executions are over.
    ``calls`` and ``cancelled_calls``: what the model asks of other models, in order of the calls."""

    __slots__ = ("calls", "cancelled_calls", "returned", "settled")

    def __init__(self) -> None:
        self.settled: List[Tuple[Request, Optional[Outcome], bool]] = []
        self.returned = 0
        self.calls: List[Call] = []
        self.cancelled_calls: List[int] = []


class Channel:
    """All methods are called under the model's lock, in any thread, but for those of the bell.

    Args:
        announce: tells the stub of a segment that it does not know yet.
        announce_region: tells it of a client's region.
    """

    def __init__(self, model: Model, announce: Callable[[Segment], None], announce_region: Callable[[ClientRegion], None]) -> None:
        self._model = model
        self._announce = announce
        self._announce_region = announce_region
        self.segment = Segment.create(0, CHANNEL_BYTES)
        words = Words(self.segment)
        words.format()
        self._words = words
        # Non-blocking at both ends: a bell that is read twice is no reason to wait.
        self.down_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.up_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._down = Producer(words, "down", self.down_bell)
        self._up = Consumer(words, "up", self.up_bell)
        self._pack = packer()
        self.poll = PollBudget(poll_limit(_PARENT_POLL_US))
        self._reply_poll = PollBudget(poll_limit(_PARENT_POLL_US))
        self.expects = self.poll
        """How long to look for what the stub says next: an answer to a request, or, after a reply, the model's next call."""
        self._replied_ns = 0
        self.free_ns = 0
        """When the stub had nothing more to execute, for all that is known."""
        self._latest: Optional[Request] = None
        self.in_flight: Dict[int, Request] = {}
        self.outputs = SegmentTable()
        """Segments of the stub's arena."""
        self.known: Set[int] = set()
        """Segments of others, and regions of clients, that the stub was told of."""
        self.releases: Deque[BlockKey] = deque()
        """Blocks of the stub's arena that nobody here needs any more. Appended to in any thread."""
        self._next_key = 0
        self._batches: List[Tuple[Any, ...]] = []
        self._replies: List[Tuple[Any, ...]] = []
        self._stuck: Optional[bytes] = None
        self._starved = False
        self._finalize = False
        self._lent: Dict[BlockKey, Lent] = {}
        self._lent_again: Dict[BlockKey, List[Lent]] = {}
        self._kept: Dict[BlockKey, List[Lent]] = {}

    def set_verbose(self, wanted: bool) -> None:
        """Tells the stub whether lines of level VERBOSE are wanted. In any thread."""
        self._words.verbose = wanted

    def close(self) -> None:
        """Gives back the descriptors."""
        for fd in (self.down_bell, self.up_bell):
            os.close(fd)
        self.segment.close()
        # What lies in them may still be on its way to other stubs, so their descriptors are closed when nothing refers to them.
        self.outputs.clear()

    # Down

    def hand(self, request: Request) -> bool:
        """Puts a request in the next record; False if the stub has as many open requests as it may."""
        key = self._next_key
        if self.in_flight and key - next(iter(self.in_flight)) >= OPEN_REQUESTS:
            # An old one is still open: its byte among the cancelled ones must not be given to another.
            if len(self.in_flight) >= OPEN_REQUESTS:
                return False
            taken = {open_key & _SLOT for open_key in self.in_flight}
            while key & _SLOT in taken:
                key += 1
        self._next_key = key + 1
        self.expects = self.poll
        request.key = key
        self.in_flight[key] = request
        blocks = []
        for block, nbytes in request.blocks:
            self._lend(block)
            blocks.append((block.segment.id, block.offset, nbytes))
        regions = () if request.regions is None else self._name_regions(request.regions)
        self._batches.append(((key, request.borrowed, blocks, request.inputs, request.extras, regions),))
        return True

    def _name_regions(self, use: RegionUse) -> Tuple[Any, ...]:
        for region in use.regions():
            if region.id not in self.known:
                self.known.add(region.id)
                self._announce_region(region)
        return use.message()

    def reply(self, call: int, outcome: Optional[Outcome], final: bool) -> None:
        """Puts an outcome of a call in the next record."""
        self.expects = self._reply_poll
        self._replied_ns = perf_counter_ns()
        if isinstance(outcome, Response) and not all(segment.shareable for segment, _ in outcome.places):
            outcome.release()
            outcome = errors.Unavailable("the outputs lie in the memory of a model that has been unloaded meanwhile")
        if isinstance(outcome, Response):
            names = outcome.plan.outputs
            blocks = []
            for loan in outcome.lend():
                self._lend(loan)
                self._kept.setdefault(loan.key, []).append(loan)
                blocks.append((loan.segment.id, loan.offset, loan.size))
            outputs = [(o.name, o.dtype.code, o.shape, o.block, o.offset, o.nbytes) for o in names]
            self._replies.append((call, final, blocks, outputs, (), outcome.parameters))
        elif outcome is None:
            self._replies.append((call, final, (), (), (), ""))
        else:
            self._replies.append((call, final, (), (), (outcome.code, str(outcome)), ""))

    def finalize(self) -> None:
        """Puts the request to finish behind everything else."""
        self._finalize = True

    @property
    def has_releases(self) -> bool:
        """Whether there are so many blocks to be given back that they should not wait."""
        return len(self.releases) >= _RELEASES_AT_ONCE or (self._model.decoupled and bool(self.releases))

    @property
    def stuck(self) -> bool:
        """Whether a record found no room in the ring, or in the arena, so that ``flush`` has to be called again."""
        return self._stuck is not None or self._starved or self._finalize

    def flush(self) -> None:
        """Writes what is pending as one record and rings the bell if the stub sleeps."""
        if self._stuck is not None:
            if not self._down.push(self._stuck):
                return
            self._stuck = None
        if self._batches or self._replies or self.has_releases:
            releases = []
            while self.releases:
                releases.append(self.releases.popleft())
            record = self._pack((WORK, releases, self._batches, self._replies))
            if len(record) > RECORD_BYTES:
                try:
                    record = self._indirect(record)
                except OutOfSharedMemory:
                    self.releases.extendleft(reversed(releases))
                    self._starved = True
                    return
            self._starved = False
            self._batches, self._replies = [], []
            if not self._down.push(record):
                # The model executes and nobody there looks at the ring.
                self._stuck = record
        if self._finalize and self._stuck is None and self._down.push(self._pack((FINALIZE,))):
            self._finalize = False
        self._down.ring()

    def _indirect(self, record: bytes) -> bytes:
        block = self._model.arena.allocate(len(record))
        block.write(0, record, len(record))
        self._lend(block)
        self._kept.setdefault(block.key, []).append(block)
        return self._pack((INDIRECT, *block.key, len(record)))

    def forgettable(self, segments: Iterable[int]) -> Set[int]:
        """Those of the segments that the stub was told of and nothing that it was lent lies in; it is no longer taken to know them."""
        found = self.known.intersection(segments) - {segment for segment, _ in self._lent}
        self.known -= found
        return found

    def cancel(self, request: Request) -> bool:
        """Sets the flag of a request that was handed over; whether its execution has begun."""
        self._words.cancelled[request.key & _SLOT] = 1
        return request.key < self._words.started

    def hold(self, request: Request, held: bool) -> None:
        """Keeps the stub from sending more responses to a request, or lets it go on."""
        if self.in_flight.get(request.key) is request:
            self._words.held[request.key & _SLOT] = held

    def executing(self) -> bool:
        """Whether an execution has begun and not ended."""
        started = self._words.started
        return any(key < started and not request.returned for key, request in list(self.in_flight.items()))

    def has_started(self, request: Request) -> bool:
        """Whether the execution of a request that was handed over has begun."""
        return request.key < self._words.started

    # Up

    def ready(self) -> bool:
        """Whether a record of the stub's waits."""
        return self._up.ready()

    def awake(self) -> None:
        """This side polls from now on."""
        self._up.stay_awake()

    def asleep(self) -> bool:
        """This side relies on the bell from now on; False when a record has come meanwhile."""
        return self._up.lie_down()

    def silence(self) -> None:
        """Empties the bell."""
        self._up.silence()

    def drain(self, news: News) -> None:
        """Takes every record that is there.

        Raises:
            ProtocolError: the stub wrote what it may not; ``news`` has what came before.
        """
        now = 0
        while True:
            record = self._up.pop()
            if record is None:
                if self._latest is not None:
                    # Of several replies that are found at once only the last came just now.
                    self._latest.computed_ns = self.free_ns = now
                    self._latest = None
                return
            now = perf_counter_ns()
            message = decode_up(record)
            if message[0] == INDIRECT:
                _, segment_id, offset, nbytes = message
                memory = self.outputs.locate(segment_id, offset, nbytes).memory
                message = decode_up(memory[offset : offset + nbytes])
                self.releases.append((segment_id, offset))
                if message[0] != NEWS:
                    raise ProtocolError("an indirect record names another")
            _, releases, results, calls = message
            if self._replied_ns:
                self._reply_poll.waited(now - self._replied_ns)
                self._replied_ns = 0
            for result in results:
                self._take(result, news, now)
            for number, *call in calls:
                if call:
                    news.calls.append(self._read_call(number, *call))
                else:
                    news.cancelled_calls.append(number)
            # Last: what was said before may lie in them.
            for key in releases:
                self._release_kept(key)

    def _take(self, result: Tuple[Any, ...], news: News, now: int) -> None:
        key, flags, nanoseconds, kept, blocks, placed, error, parameters = result
        request = self.in_flight.get(key)
        if request is None:
            raise ProtocolError(f"request {key} is answered but was not handed over")
        final = flags & FINAL != 0
        if request.finished and (final or not flags & EMPTY):
            raise ProtocolError(f"request {key} is answered after its last response")
        outcome: Optional[Outcome] = None
        if not flags & EMPTY:
            outcome = errors.BY_CODE[error[0]](error[1]) if error else self._response(blocks, placed, parameters)
            if flags & FAILURE:
                request.failure = failure_of(outcome, nanoseconds > 0 or not flags & RETURNED)
            if isinstance(outcome, Response) and outcome.plan.in_regions:
                _check_in_regions(request, outcome)
        elif flags & RESCHEDULE:
            outcome = errors.InternalError(
                "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, which the scheduler of model "
                f"'{self._model.name}' does not support"
            )
            request.failure = Failure.BACKEND
        self._time(request, flags, nanoseconds, now)
        if request.answered:
            if isinstance(outcome, Response):
                outcome.release()
        elif self._model.decoupled:
            if final or outcome is not None:
                request.answered = final
                news.settled.append((request, outcome, final))
        elif outcome is not None:
            request.answered = True
            news.settled.append((request, outcome, True))
        elif final:
            raise ProtocolError(f"request {key} is finished without a response")
        if final:
            request.finished = True
        if flags & RETURNED:
            if request.returned:
                raise ProtocolError(f"the execution of request {key} is over twice")
            request.returned = True
            news.returned += 1
            self.poll.waited(nanoseconds + _HAND_OVER_NS)
            self._take_inputs_back(request, kept)
        if request.finished and request.returned:
            del self.in_flight[key]
            self._words.cancelled[key & _SLOT] = 0
            if self._model.decoupled:
                self._words.held[key & _SLOT] = 0
            if request.regions is not None:
                request.regions.release()

    def _time(self, request: Request, flags: int, took: int, now: int) -> None:
        """Notes when the stub took the request up, and when it was done with it, as far as that can be told from here."""
        submitted = request.submitted_ns
        concurrent = self._model.max_concurrent > 1
        if not flags & RETURNED:
            if not request.begun_ns:
                request.begun_ns = submitted if concurrent else max(submitted, self.free_ns)
            if not request.computed_ns and (flags & FINAL or not self._model.decoupled):
                request.computed_ns = now
        elif took > 0:
            # Comparisons, which cost a fraction of min and max: this is on the way of every request.
            begun = now - took
            if concurrent:
                begun -= _HAND_OVER_NS
            elif self.free_ns < begun:
                begun = self.free_ns
            if begun < submitted:
                begun = submitted
            computed = begun + took + _HAND_OVER_NS
            if concurrent or computed > now:
                computed = now
            if not concurrent:
                self.free_ns = computed
            if not request.computed_ns:
                request.begun_ns = request.begun_ns or begun
                request.computed_ns = computed
                if not concurrent:
                    request.execute_ns = took
                    self._latest = request

    def _take_inputs_back(self, request: Request, kept: Tuple[int, ...]) -> None:
        for index, (block, _) in enumerate(request.blocks):
            if index in kept:
                self._kept.setdefault(block.key, []).append(block)
            else:
                self._take_back(block)

    def _response(self, blocks: Tuple[BlockKey, ...], placed: Tuple[Any, ...], parameters: str) -> Response:
        memo = self._model.memo
        plan: Optional[OutputPlan] = memo.get((placed, len(blocks)))
        if plan is None:
            plan = OutputPlan(self._model.outputs, placed, len(blocks))
            self._model.remember((placed, len(blocks)), plan)
        places: List[Tuple[Segment, int]] = []
        leases: List[Lease] = []
        try:
            for key, nbytes in zip(blocks, plan.extents):
                segment, lease = self._place(key, nbytes)
                places.append((segment, key[1]))
                leases.append(lease)
        except ProtocolError:
            for give_back, item in leases:
                give_back(item)
            raise
        return Response(plan, places, leases, parameters)

    def _read_call(self, number: int, *call: Any) -> Call:
        flags, model, version, keys, inputs, requested, extras = call
        extents = [0] * len(keys)
        for _, _, _, block, offset, nbytes in inputs:
            extents[block] = max(extents[block], offset + nbytes)
        blocks: List[Tuple[Loan, int]] = []
        try:
            for key, nbytes in zip(keys, extents):
                segment, lease = self._place(key, nbytes)
                blocks.append((Loan(segment, key[1], nbytes, lease), nbytes))
        except ProtocolError:
            for loan, _ in blocks:
                loan.release()
            raise
        return Call(number, flags, model, version, blocks, inputs, requested, extras)

    def _place(self, key: BlockKey, nbytes: int) -> Tuple[Segment, Lease]:
        """The segment of a block that the stub names, checked, and what gives the block back."""
        segment_id, offset = key
        if segment_id in self.outputs:
            return self.outputs.locate(segment_id, offset, nbytes), (self.releases.append, key)
        block = self._lent.get(key)
        if block is None:
            raise ProtocolError(f"block {key} of a tensor was not lent")
        if nbytes > block.size:
            block = next((other for other in self._lent_again.get(key, ()) if nbytes <= other.size), None)
            if block is None:
                raise ProtocolError(f"a tensor lies outside its block {key}")
        if isinstance(block, Loan):
            return block.segment, block.lease()
        block.retain()
        return block.segment, (block.arena.dropped.append, block)

    # What is lent

    def _lend(self, block: Lent) -> None:
        key = block.key
        if key in self._lent:
            # The same tensor, or another part of its array, is an input of several requests, or it comes back as the output of a call.
            self._lent_again.setdefault(key, []).append(block)
        else:
            self._lent[key] = block
        segment = block.segment
        if segment.id not in self.known and segment.id not in self.outputs:
            self.known.add(segment.id)
            self._announce(segment)

    def _take_back(self, block: Lent) -> None:
        key = block.key
        again = self._lent_again.get(key) if self._lent_again else None
        if again is None:
            del self._lent[key]
        else:
            # Which of them it is matters: each has a holder of its own.
            if self._lent[key] is block:
                self._lent[key] = again.pop()
            else:
                again.remove(block)
            if not again:
                del self._lent_again[key]
        block.release()

    def _release_kept(self, key: BlockKey) -> None:
        kept = self._kept.get(key)
        if kept is None:
            raise ProtocolError(f"block {key} is given back but was not kept")
        # Of several it is not said which. What the stub still views is within the largest.
        block = min(kept, key=_size)
        kept.remove(block)
        if not kept:
            del self._kept[key]
        self._take_back(block)

    def abandon(self, error: errors.ServerError) -> Tuple[List[Tuple[Request, Optional[Outcome], bool]], List[Request]]:
        """After the stub's end: the requests that it was executing, which fail with ``error``, and those that it had not started, whose
        blocks they keep. Everything else that it was lent goes back."""
        settled: List[Tuple[Request, Optional[Outcome], bool]] = []
        unstarted: List[Request] = []
        for request in self.in_flight.values():
            # One that is over has begun, whatever the stub's counter says: its blocks are no longer its own.
            over = request.answered or request.returned or self.has_started(request)
            if over and request.regions is not None:
                request.regions.release()
            if request.returned or self.has_started(request):
                if not request.answered:
                    request.answered = True
                    request.failure = Failure.BACKEND
                    settled.append((request, error, True))
            elif not request.answered:
                unstarted.append(request)
                for block, _ in request.blocks:
                    block.retain()
        self.in_flight.clear()
        for block in [*self._lent.values(), *(block for again in self._lent_again.values() for block in again)]:
            self._take_back(block)
        self._kept.clear()
        self._batches, self._replies, self._stuck, self._starved = [], [], None, False
        return settled, unstarted

    def waiting(self) -> int:
        """How many requests were handed over and not begun."""
        started = self._words.started
        return sum(key >= started and not request.answered for key, request in self.in_flight.items())


def _check_in_regions(request: Request, response: Response) -> None:
    """That an output is in a region can only be said where the client has named one."""
    wanted = () if request.regions is None else {index for index, *_ in request.regions.writes}
    if not response.plan.in_regions.issubset(wanted):
        response.release()
        raise ProtocolError(f"request {request.key} has no region for an output that is said to be in one")


def _size(block: Lent) -> int:
    return block.size
