"""The way of requests through the instances of a model: who executes what, and who is told."""

from __future__ import annotations

import threading
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Sequence, Tuple

from ..shm.arena import Block
from ..shm.errors import OutOfSharedMemory, ProtocolError
from . import model_config
from .cache.response_cache import CachedResponses, cached_responses
from .errors import Cancelled, ServerError, Unavailable
from .instance import Instance
from .lifecycle import State
from .news import News
from .pump import Pump
from .repository import ModelFiles
from .request import Batch, Outcome, Request, Settled, drop
from .scheduling.alarm import Alarm
from .scheduling.batching import is_batched
from .scheduling.choice import scheduler_for
from .scheduling.held_batches import HeldBatches
from .scheduling.refusals import refusal_of
from .scheduling.response_order import ResponseOrder
from .scheduling.scheduler import Actions, Reason, Scheduler
from .sequence.config import is_sequenced
from .sequence.sequences import Sequences
from .servable import Servable
from .slabs import Slabs, in_order
from .statistics import Failure
from .supervision.config import supervision_of

if TYPE_CHECKING:
    from .core import Core


class Traffic(Servable):
    """A servable that has instances. How they come and go is for ``Model`` to say.

    ``submit``, ``cancel``, ``allocate``, ``reply`` and ``drain`` may be called in any thread: ``lock`` guards the arena, the scheduler
    and the rings. No two models' locks are ever held at once: what a model's rings say to others is done after its lock is released.
    """

    def __init__(self, server: Core, files: ModelFiles, version: int, config: Any) -> None:
        super().__init__(server, files, version, config)
        self.max_concurrent = model_config.max_concurrent(config)
        self.cancel_coroutines = model_config.cancel_coroutines(config)
        self.pump = Pump(self)
        self.added_inputs: Sequence[str] = ()
        """What the stub gets beside the inputs that clients send."""
        self.cached = cached_responses(self)
        # What is kept here, for the cache or a sequence, is kept in host memory.
        self.answers_on_device = self.cached is None and not is_sequenced(config)
        self.wants_device_inputs = self.answers_on_device and not model_config.takes_host_inputs_only(config)
        self._scheduler: Scheduler
        self._sequences = Sequences(self, server.options.max_queue_size) if is_sequenced(config) else None
        if self._sequences is None:
            self._scheduler = scheduler_for(config, self.max_concurrent, server.options.max_queue_size)
        else:
            self._scheduler = self._sequences.scheduler
            self.added_inputs = self._sequences.inputs
            self.stub_outputs = [*self.outputs, *self._sequences.outputs]
        self._batched = is_batched(config) or self._sequences is not None
        if model_config.concatenates(config):
            self.slabs = Slabs(self.arena, self.max_batch_size)
        self._order: Optional[ResponseOrder[Request]] = None
        self._order_lock = threading.RLock()
        if is_batched(config) and config.dynamic_batching.preserve_ordering:
            self._order = ResponseOrder()
        self._held = None if server.limits is None else HeldBatches(server.limits, self._scheduler.deadline)
        self._tells_first = self._held is None and self._sequences is None and not self.decoupled
        self._worth_a_look = max(self.max_batch_size // 4, 1)
        """So many requests wait that it pays to look whether an instance is free."""
        self._alarm = Alarm(self._on_alarm)
        self._live = 0
        self._retries = supervision_of(config).retry_on_crash
        self._expected = False
        """No instance is live, but one will be soon: requests wait for it."""

    # Requests

    def submit(self, request: Request) -> None:
        """Queues a request; ``request.respond`` will be called.

        Raises:
            Unavailable: no instance is live. The request's blocks are given back, as with every error.
            InvalidArgument, Unsupported: it is not what it should be in a sequence.
        """
        request.submitted_ns = perf_counter_ns()
        if request.blocks and isinstance(block := request.blocks[0][0], Block):
            request.input_ns = request.input_ns or block.write_ns
        if request.trace is not None:
            request.trace.submitted(self, request)
        if self.cached is not None and self._live and not self._stopping and self._answer_from(self.cached, request):
            return
        with self.lock:
            if not (self._live or self._expected) or self._stopping:
                request.release()
                if not self._stopping:
                    request.failure = Failure.BACKEND
                    self.statistics.settled(request, None, True, request.submitted_ns, request.submitted_ns)
                raise Unavailable(self.unavailable_text())
            if self._order is not None:
                self._order.expect(request)
            if self._sequences is not None:
                self._admit(self._sequences, request)
            refused = self._hand_over(self._scheduler.enqueue(request, request.submitted_ns))
            begun = self.pump.flush_begun()
            if self.pump.dirty or self._scheduler.due is not None:
                refused += self.pump.flush_soon()
        if begun is not None:
            self.pump.expect_more(begun)
        self.settle(refused)
        if self._batched and self._scheduler.waiting >= self._worth_a_look and self.pump.in_loop:
            # Many requests may come in one turn of the loop, and the stub be done long before its end: the next batch need not wait for it.
            for instance in self.instances:
                if instance.channel.in_flight and instance.channel.ready():
                    self.drain(instance)

    def _answer_from(self, cached: CachedResponses, request: Request) -> bool:
        response = cached.find(request)
        if response is None:
            return False
        with self.lock:
            if self._order is not None:
                self._order.expect(request)
            request.release()
            request.answered = True
        self.settle([(request, response, True)])
        return True

    def _admit(self, sequences: Sequences, request: Request) -> None:
        try:
            sequences.admit(request)
        except ServerError:
            request.release()
            request.failure = Failure.REJECTED
            self.statistics.settled(request, None, True, request.submitted_ns, perf_counter_ns())
            raise

    def cancel(self, request: Request, reason: Optional[ServerError] = None) -> None:
        """Nobody wants the answer any more. A request that is not executed yet is answered at once, with ``reason`` or CANCELLED; of one
        that is, the model is told, and goes on as it likes. In any thread."""
        refused: List[Settled] = []
        with self.lock:
            if request.answered:
                return
            instance = request.instance
            if instance is None:
                if not self._scheduler.withdraw(request):
                    if self._sequences is not None:
                        self._sequences.scheduler.skip(request)
                    taken, refused = self._withdraw_held(request)
                    if not taken:
                        return
                request.release()
            elif instance.channel.cancel(request):
                if self.cancel_coroutines:
                    instance.cancel_coroutine(request.key)
                return
            request.answered = True
            if self._sequences is not None:
                self._sequences.scheduler.skip(request)
                refused += self.pump.flush_soon()  # what waits behind it
            request.failure = Failure.CANCELED if reason is None else Failure.REJECTED
            refused.append((request, reason or Cancelled("the request was cancelled before it was executed"), True))
        self.settle(refused)

    def hold(self, request: Request, held: bool) -> None:
        """Has the model wait with the next response to a request, or go on. In any thread."""
        with self.lock:
            instance = request.instance
            if instance is None and request.turn is not None:
                request.turn.held = held
            if instance is not None and instance.state.talks and not instance.broken:
                instance.channel.hold(request, held)

    def reply(self, instance: Instance, call: int, outcome: Optional[Outcome], final: bool) -> None:
        """Passes the outcome of a call that the model made on to its stub. In any thread."""
        with self.lock:
            if final:
                instance.open_calls.pop(call, None)
            if instance.state.talks and not instance.broken:
                instance.channel.reply(call, outcome, final)
                self.pump.dirty.append(instance)
                self.pump.flush()
                outcome = None
        drop(outcome)
        self.pump.expect_more(instance)

    def ask_again(self, instance: Instance, call: int) -> None:
        """Has a stub make a call of its model's once more, with its inputs in host memory. In any thread."""
        with self.lock:
            if instance.state.talks and not instance.broken:
                instance.channel.ask_again(call)
                self.pump.dirty.append(instance)
                self.pump.flush()
        self.pump.expect_more(instance)

    def finalize(self, instance: Instance) -> None:
        """Tells an instance to finish."""
        with self.lock:
            instance.channel.finalize()
            self.pump.dirty.append(instance)
            self.pump.flush()

    def poll(self, done: Callable[[], bool]) -> None:
        self.pump.poll(done)

    def drain(self, instance: Instance) -> bool:
        """Takes what the stub said, hands it what comes next, and tells those whom it concerns; whether the model called others."""
        news = News()
        with self.lock:
            if instance.broken:
                return False
            try:
                instance.channel.drain(news)
            except ProtocolError as error:
                self._break(instance, error)
            if news.again and self._sequences is not None:
                again = ((request, self._sequences.again(request, perf_counter_ns())) for request in news.again)
                news.settled += [self._refuse(request, error) for request, error in again if error is not None]
            # Who waits for an answer need not wait until all that belongs to it is put away, if nobody waits for its place.
            told_first = self._tells_first and news.is_one_answer and not self._scheduler.waiting
            if not told_first:
                news.settled += self._go_on(instance, news)
        self.settle(news.settled)
        if told_first:
            with self.lock:
                refused = self._go_on(instance, news)
            self.settle(refused)
        called = bool(news.calls or news.cancelled_calls)
        if called:
            self.server.bls.route(instance, news)
        return called

    def _go_on(self, instance: Instance, news: News) -> List[Settled]:
        """After what the stub said: puts away what is over, and hands it what comes next; returns the requests that are refused."""
        if not instance.broken:  # otherwise all that it has is taken back when it has ended, or was
            try:
                instance.channel.put_away(news)
            except ProtocolError as error:
                self._break(instance, error)
        refused: List[Settled] = []
        if news.returned:
            if self._held is not None:
                self._held.returned(instance, news.returned)
            refused += self._hand_over(self._scheduler.finished(instance, news.returned, perf_counter_ns()))
            if self._scheduler.due is not None:
                refused += self.tick()
        elif instance.channel.has_releases:
            self.pump.dirty.append(instance)
        if self.pump.dirty:
            self.pump.flush()
        return refused

    def _break(self, instance: Instance, error: ProtocolError) -> None:
        """Nothing that the stub says is believed any more."""
        instance.broken = True
        self._loop.call_soon_threadsafe(instance.on_violation, str(error))

    @property
    def in_flight(self) -> int:
        """How many requests instances have and have not answered."""
        return sum([len(instance.channel.in_flight) for instance in self.instances])

    def _hand_over(self, actions: Actions, granted: bool = False, lost: str = "") -> List[Settled]:
        """Does what the scheduler says; returns the requests that are refused.

        Args:
            granted: the rate limiter, if there is one, has let the instances execute.
            lost: why the instance is gone that had the sequences of requests.
        """
        batches, refusals = actions
        dirty = self.pump.dirty
        refused: List[Settled] = []
        if refusals:
            refused += [self._refuse(request, refusal_of(request, reason, self.name, lost)) for request, reason in refusals]
        for instance, requests in batches:
            if self._held is not None and not granted:
                may_go = self._held.next_after(instance, requests)
                held_until = self._held.due
                if held_until is not None:
                    self._alarm.set(held_until)
                if may_go is None:
                    continue
                requests = may_go
            if self.slabs is not None:
                requests = in_order(requests)
            if self._batched:
                together = Batch(len(requests), sum(map(self._items, requests)), perf_counter_ns())
                for request in requests:
                    request.instance, request.batch = instance, together
            else:
                requests[0].instance = instance
            text = self._hand(instance, requests)
            if not text:
                if instance not in dirty:
                    dirty.append(instance)
            else:
                refused += [self._refuse(request, Unavailable(text)) for request in requests]
                if self._held is not None:
                    self._held.returned(instance, 1)
                refused += self._hand_over(self._scheduler.finished(instance, 1, perf_counter_ns()))
        if self.slabs is not None and batches and not self._scheduler.waiting:
            self.slabs.cut()
        return refused

    def _hand(self, instance: Instance, requests: List[Request]) -> str:
        """Hands requests to an instance; why not, if it cannot have them."""
        if self._retries:
            for request in requests:
                request.borrowed = True  # so that what a model writes to its inputs is not there when it gets them again
        rows: Sequence[Request] = requests
        if self._sequences is not None:
            try:
                rows = self._sequences.dress(requests)
            except OutOfSharedMemory as error:
                return f"what model '{self.name}' is told of a sequence finds no room: {error}"
        if instance.channel.hand(rows):
            if self._sequences is not None:
                self._sequences.handed(rows)
            return ""
        for row in rows:
            if row.answered:
                row.release()  # it stands for no request
        return f"instance '{instance.name}' has as many open requests as it can have"

    def tick(self) -> List[Settled]:
        """Has the scheduler look if it is time, and sees to it that it will when it is time again. Under the lock."""
        refused = [] if self._held is None else self._expire_held(self._held)
        due = self._scheduler.due
        if due is None:
            return refused
        now = perf_counter_ns()
        if due <= now:
            refused += self._hand_over(self._scheduler.tick(now))
            due = self._scheduler.due
        if due is not None:
            self._alarm.set(due)
        return refused

    def _items(self, request: Request) -> int:
        return request.inputs[0][2][0] if self.max_batch_size > 0 and request.inputs else 1

    def _refuse(self, request: Request, error: ServerError) -> Settled:
        request.release()
        request.answered = True
        request.failure = Failure.CANCELED if isinstance(error, Cancelled) else Failure.REJECTED
        return request, error, True

    def _on_alarm(self) -> None:
        with self.lock:
            refused = self.tick()
            self.pump.flush()
        self.settle(refused)

    # The rate limiter

    def granted(self, instance: Instance) -> None:
        """The rate limiter lets an instance execute that had to wait for it. In the server's loop, and under the lock of no model."""
        with self.lock:
            if self._held is None or instance.state not in (State.READY, State.DRAINING):
                return  # what it was granted goes back with it
            requests = self._held.granted(instance)
            if requests is None:
                return
            refused = self._hand_over((((instance, requests),), ()), granted=True) + self.pump.flush_soon()
        self.settle(refused)

    def _withdraw_held(self, request: Request) -> Tuple[bool, List[Settled]]:
        """Takes a request out of the batches that wait for the rate limiter: whether it was there, and who is refused for what follows."""
        found = None if self._held is None else self._held.withdraw(request)
        if found is None:
            return False, []
        instance, gone = found
        if not gone:
            return True, []
        return True, self._hand_over(self._scheduler.finished(instance, 1, perf_counter_ns())) + self.pump.flush_soon()

    def _expire_held(self, held: HeldBatches) -> List[Settled]:
        """Refuses those who have waited for too long for the rate limiter."""
        if held.due is None:
            return []
        refused: List[Settled] = []
        for request in held.expired(perf_counter_ns()):
            taken, more = self._withdraw_held(request)
            refused += more
            if taken:
                refused.append(self._refuse(request, refusal_of(request, Reason.EXPIRED, self.name)))
        due = held.due
        if due is not None:
            self._alarm.set(due)
        return refused

    # Outcomes

    def settle(self, outcomes: List[Settled]) -> None:
        if self._order is None:
            self._tell(outcomes)
        else:
            with self._order_lock:
                self._tell(self._order.settled(outcomes))

    def _tell(self, outcomes: List[Settled]) -> None:
        decoupled = self.decoupled
        for request, outcome, final in outcomes:
            self.deliver(request, outcome, final, perf_counter_ns() if decoupled else 0)

    def servers(self, request: Optional[Request]) -> List[List[Instance]]:
        instance = None if request is None else request.instance
        if instance is not None:
            return [[instance]]
        serving = list(filter(serves, self.instances))
        return [serving] if serving or not self._expected else []

    def pending(self) -> int:
        """How many requests wait to be executed."""
        with self.lock:
            handed = sum(instance.channel.waiting() for instance in self.instances if instance.state in (State.READY, State.DRAINING))
            return self._waiting + handed

    @property
    def _waiting(self) -> int:
        """How many requests were handed to no instance yet."""
        return self._scheduler.waiting + (0 if self._held is None else self._held.waiting)


def serves(instance: Instance) -> bool:
    """Whether an instance takes requests."""
    return instance.state is State.READY and not instance.spec.passive
