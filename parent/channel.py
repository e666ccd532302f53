"""The server's end of an instance's two rings: what it was handed, and what it said."""

from __future__ import annotations

import os
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

from ..shm.cuda.segment import DeviceSegment
from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.message import EMPTY, FAILURE, FINAL, FINALIZE, INDIRECT, NEWS, RESCHEDULE, RETURNED, WORK, decode_long, decode_up, packer
from ..shm.polling import PollBudget, poll_limit
from ..shm.ring import CHANNEL_BYTES, OPEN_REQUESTS, RECORD_BYTES, Consumer, Producer, Words
from ..shm.segment import Segment
from . import errors
from .compute_times import HAND_OVER_NS, ComputeTimes
from .loans import Loans
from .news import News, check_in_regions, check_on_device, read_call, read_response
from .request import Outcome, Request, Response
from .statistics import Failure, failure_of

if TYPE_CHECKING:
    from .client_regions import ClientRegion
    from .model import Model
    from .sequence.sequences import Turn

_PARENT_POLL_US = 200

_RELEASES_AT_ONCE = 16
"""So many blocks of the stub's arena are given back by a record of their own; fewer wait for the next one."""

_SLOT = OPEN_REQUESTS - 1


class Channel:
    """All methods are called under the model's lock, in any thread, but for those of the bell.

    Args:
        announce: tells the stub of a segment that it does not know yet.
        announce_region: tells it of a client's region.
    """

    def __init__(self, model: Model, announce: Callable[[Segment], None], announce_region: Callable[[ClientRegion], None]) -> None:
        self._model = model
        self.segment = Segment.create(0, CHANNEL_BYTES)
        words = Words(self.segment)
        words.format()
        self._words = words
        # Non-blocking at both ends: a bell that is read twice is no reason to wait.
        self.down_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self.up_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(self.down_bell)
            raise
        self._down = Producer(words, "down", self.down_bell)
        self._up = Consumer(words, "up", self.up_bell)
        self._pack = packer()
        self.poll = PollBudget(poll_limit(_PARENT_POLL_US))
        self._reply_poll = PollBudget(poll_limit(_PARENT_POLL_US))
        self.expects = self.poll
        """How long to look for what the stub says next: an answer to a request, or, after a reply, the model's next call."""
        self._replied_ns = 0
        self.times = ComputeTimes(model)
        self.in_flight: Dict[int, Request] = {}
        self.loans = Loans(announce, announce_region)
        self._next_key = 0
        self._batches: List[Tuple[Any, ...]] = []
        self._replies: List[Tuple[Any, ...]] = []
        self._stuck: Optional[bytes] = None
        self._starved = False
        self._finalize = False
        self._releases_at_once = 1 if model.decoupled else _RELEASES_AT_ONCE

    @property
    def handed(self) -> int:
        """How many requests the instance has been handed."""
        return self._next_key

    def set_verbose(self, wanted: bool) -> None:
        """Tells the stub whether lines of level VERBOSE are wanted. In any thread."""
        self._words.verbose = wanted

    def close(self) -> None:
        """Gives back the descriptors."""
        for fd in (self.down_bell, self.up_bell):
            os.close(fd)
        self.segment.close()
        # What lies in them may still be on its way to other stubs, so their descriptors are closed when nothing refers to them.
        for segment in self.loans.outputs.values():
            if isinstance(segment, DeviceSegment):
                segment.close()
        self.loans.outputs.clear()

    # Down

    def hand(self, batch: Sequence[Request]) -> bool:
        """Puts requests that are to be executed together in the next record; False if the stub has as many open requests as it may."""
        if len(self.in_flight) + len(batch) > OPEN_REQUESTS:
            return False
        self.expects = self.poll
        described = self._described
        self._batches.append((described(batch[0]),) if len(batch) == 1 else tuple(map(described, batch)))
        return True

    def _described(self, request: Request) -> Tuple[Any, ...]:
        """A request as a message has it, from now on open."""
        key = self._next_key
        if self.in_flight and key - next(iter(self.in_flight)) >= OPEN_REQUESTS:
            # An old one is still open: its byte among the cancelled ones must not be given to another.
            taken = {open_key & _SLOT for open_key in self.in_flight}
            while key & _SLOT in taken:
                key += 1
        self._next_key = key + 1
        request.key = key
        self.in_flight[key] = request
        blocks = []
        loans = self.loans
        for block, nbytes in request.blocks:
            loans.lend(block)
            blocks.append((block.segment.id, block.offset, nbytes))
        regions: Tuple[Any, ...] = ()
        if request.regions is not None:
            loans.lend_regions(request.regions)
            regions = request.regions.message()
        return key, request.borrowed | request.device_outputs << 1, blocks, request.inputs, request.extras, regions

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
                self.loans.lend(loan, kept=True)
                blocks.append((loan.segment.id, loan.offset, loan.size))
            outputs = [(o.name, o.dtype.code, o.shape, o.block, o.offset, o.nbytes) for o in names]
            self._replies.append((call, final, blocks, outputs, (), outcome.parameters))
        elif outcome is None:
            self._replies.append((call, final, (), (), (), ""))
        else:
            self._replies.append((call, final, (), (), (outcome.code, str(outcome)), ""))

    def ask_again(self, call: int) -> None:
        """Puts the request for a call with its inputs in host memory in the next record."""
        self._replies.append((call,))

    def finalize(self) -> None:
        """Puts the request to finish behind everything else."""
        self._finalize = True

    @property
    def is_beginning(self) -> bool:
        """Whether the stub has nothing to do but one batch, which is not written yet."""
        batches = self._batches
        return len(batches) == 1 and len(self.in_flight) == len(batches[0])

    @property
    def has_releases(self) -> bool:
        """Whether there are so many blocks to be given back that they should not wait."""
        return len(self.loans.releases) >= self._releases_at_once

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
            unsent = self.loans.releases
            while unsent:
                releases.append(unsent.popleft())
            record = self._pack((WORK, releases, self._batches, self._replies))
            if len(record) > RECORD_BYTES:
                try:
                    record = self._indirect(record)
                except OutOfSharedMemory:
                    unsent.extendleft(reversed(releases))
                    self._starved = True
                    return
            self._starved = False
            self._batches, self._replies = [], []
            if not self._down.push(record):
                # The model executes and nobody there looks at the ring.
                self._stuck = record
        if self._finalize and self._stuck is None and self._down.push(self._pack((FINALIZE,))):
            self._finalize = False
        self._words.note_core()
        self._down.ring()

    def flush_releases(self) -> None:
        """``flush``, and gives back blocks even if they are few: the instance is idle."""
        usual, self._releases_at_once = self._releases_at_once, 1
        try:
            self.flush()
        finally:
            self._releases_at_once = usual

    def _indirect(self, record: bytes) -> bytes:
        block = self._model.allocate_anyway(len(record))
        block.write(0, record, len(record))
        self.loans.lend(block, kept=True)
        return self._pack((INDIRECT, *block.key, len(record)))

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

    def begun(self) -> List[Request]:
        """The requests whose execution has begun, and which are not over. In any thread."""
        started = self._words.started
        return [request for key, request in list(self.in_flight.items()) if key < started]

    def waiting(self) -> int:
        """How many requests were handed over and not begun."""
        started = self._words.started
        return sum(key >= started and not request.answered for key, request in self.in_flight.items())

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
        """Takes every record that is there. What is over has to be ``put_away``.

        Raises:
            ProtocolError: the stub wrote what it may not; ``news`` has what came before.
        """
        now = 0
        while True:
            record = self._up.pop()
            if record is None:
                times = self.times
                if times.latest is not None:
                    # Of several replies that are found at once only the last came just now.
                    times.latest.computed_ns = times.free_ns = now
                    times.latest = None
                return
            now = perf_counter_ns()
            message = decode_up(record)
            if message[0] == INDIRECT:
                _, segment_id, offset, nbytes = message
                memory = self.loans.outputs.locate(segment_id, offset, nbytes).memory
                message = decode_long(memory[offset : offset + nbytes])
                self.loans.releases.append((segment_id, offset))
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
                    news.calls.append(read_call(self.loans, number, *call))
                else:
                    news.cancelled_calls.append(number)
            # Last: what was said before may lie in them.
            for key in releases:
                news.over.append((None, None, key))

    def put_away(self, news: News) -> None:
        """Takes back what the stub was lent and does not need any more, and forgets requests that are over.

        Raises:
            ProtocolError: it gives back what it did not keep.
        """
        for request, nanoseconds, kept in news.over:
            if request is None:
                self.loans.take_back_kept(kept)
                continue
            if nanoseconds is not None:
                self.poll.waited(nanoseconds + HAND_OVER_NS)
                self.loans.take_back(request.blocks, kept)
            if request.is_over and request.key in self.in_flight:
                self._close(request)
                if request.regions is not None:
                    request.regions.release()

    def _take(self, result: Tuple[Any, ...], news: News, now: int) -> None:
        key, flags, nanoseconds, kept, blocks, placed, error, parameters = result
        request = self.in_flight.get(key)
        if request is None or request.is_over:
            raise ProtocolError(f"request {key} is answered but was not handed over")
        turn = request.turn
        if flags & RESCHEDULE and turn is not None and turn.sequences.iterative and not request.answered:
            self._give_again(request, turn, result, news, now)
            return
        final = flags & FINAL != 0
        if request.finished and (final or not flags & EMPTY):
            raise ProtocolError(f"request {key} is answered after its last response")
        outcome: Optional[Outcome] = None
        if not flags & EMPTY:
            outcome = errors.BY_CODE[error[0]](error[1]) if error else read_response(self._model, self.loans, blocks, placed, parameters)
            if flags & FAILURE:
                request.failure = failure_of(outcome, nanoseconds > 0 or not flags & RETURNED)
            if isinstance(outcome, Response):
                if self.loans.has_devices:
                    check_on_device(request, outcome)
                if outcome.plan.in_regions:
                    check_in_regions(request, outcome)
                if turn is not None:
                    outcome = turn.sequences.took(request, outcome)
        elif flags & RESCHEDULE:
            outcome = errors.InternalError(
                "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, which the scheduler of model "
                f"'{self._model.name}' does not support"
            )
            request.failure = Failure.BACKEND
        self.times.note(request, flags, nanoseconds, now)
        if request.answered:
            if isinstance(outcome, Response):
                outcome.release()
        elif self._model.decoupled:
            if final or outcome is not None:
                request.answered, request.streamed = final, True
                news.settled.append((request, outcome, final))
        elif outcome is not None:
            request.answered = True
            news.settled.append((request, outcome, True))
        elif final:
            raise ProtocolError(f"request {key} is finished without a response")
        if final:
            request.finished = True
        if flags & RETURNED:
            self._end_execution(request, news)
            news.over.append((request, nanoseconds, kept))
        elif request.finished and request.returned:
            news.over.append((request, None, ()))

    def _give_again(self, request: Request, turn: Turn, result: Tuple[Any, ...], news: News, now: int) -> None:
        """The model wants to execute a request once more, which is the last that is heard of it here."""
        key, flags, nanoseconds, kept, *_ = result
        if flags & (RETURNED | FINAL) != RETURNED | FINAL or request.returned or request.finished:
            raise ProtocolError(f"request {key} is given again but was answered, or not returned")
        cancelled, turn.held = bool(self._words.cancelled[key & _SLOT]), bool(self._words.held[key & _SLOT])
        self.times.note(request, flags, nanoseconds, now)
        for block, _ in turn.blocks:
            block.retain()
        self._end_execution(request, news)
        self.poll.waited(nanoseconds + HAND_OVER_NS)
        self.loans.take_back(request.blocks, kept)
        self._close(request)
        request.blocks = turn.blocks
        if cancelled:
            request.release()
            request.answered = True
            request.failure = Failure.CANCELED
            news.settled.append((request, errors.Cancelled("the request was cancelled before it was executed again"), True))
        else:
            news.again.append(request)

    def _end_execution(self, request: Request, news: News) -> None:
        if request.returned:
            raise ProtocolError(f"the execution of request {request.key} is over twice")
        request.returned = True
        batch = request.batch
        if batch is not None:
            batch.left -= 1
        if (batch is None or not batch.left) and not request.warmup:
            news.returned += 1

    def _close(self, request: Request) -> None:
        """Nothing more is said of a request."""
        key = request.key
        del self.in_flight[key]
        self._words.cancelled[key & _SLOT] = 0
        if self._model.decoupled:
            self._words.held[key & _SLOT] = 0

    # The end

    def abandon(
        self, error: errors.ServerError, again: bool = False, trusted: bool = True
    ) -> Tuple[List[Tuple[Request, Optional[Outcome], bool]], List[Request]]:
        """After the stub's end: the requests that it was executing, which fail with ``error``, and those that are to be executed by another,
        whose blocks they keep. Everything else that it was lent goes back.

        Args:
            again: those that it was executing are executed once more, if that has not happened before and nothing of an answer is known.
            trusted: what the stub's counter says of those that have begun is believed; otherwise all have.
        """
        settled: List[Tuple[Request, Optional[Outcome], bool]] = []
        unstarted: List[Request] = []
        for request in self.in_flight.values():
            # One that is over has begun, whatever the stub's counter says: its blocks are no longer its own.
            begun = not trusted or request.returned or self.has_started(request)
            if begun and again and not self._words.cancelled[request.key & _SLOT] and request.can_be_retried:
                request.retry()
                begun = False
            if (request.answered or begun) and request.regions is not None:
                request.regions.release()
            if begun or request.warmup:
                if not request.answered:
                    request.answered = True
                    request.failure = Failure.BACKEND
                    settled.append((request, error, True))
            elif not request.answered:
                unstarted.append(request)
                for block, _ in request.blocks:
                    block.retain()
        self.in_flight.clear()
        self.loans.take_all_back()
        self._batches, self._replies, self._stuck, self._starved = [], [], None, False
        return settled, unstarted
