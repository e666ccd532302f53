"""One version of one model: its configuration, its instances, and the way of a request through them."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Set, Tuple

from ..shm.arena import Block
from ..shm.errors import OutOfSharedMemory, ProtocolError
from . import model_config, repository
from .alarm import Alarm
from .batching import is_batched
from .environments import environment
from .errors import Cancelled, ServerError, Unavailable
from .instance import Instance, LoadFailed
from .lifecycle import State
from .log import about
from .news import News
from .repository import ModelFiles
from .request import Batch, Outcome, Request, drop
from .response_order import ResponseOrder
from .scheduler import Actions, Reason, Scheduler
from .scheduling import scheduler_for
from .servable import Servable
from .statistics import Failure

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)


class Model(Servable):
    """``load`` starts its stubs; ``submit`` sends a request; ``stop`` ends it.

    ``submit``, ``cancel``, ``allocate``, ``reply`` and ``drain`` may be called in any thread: ``lock`` guards the arena, the scheduler
    and the rings. No two models' locks are ever held at once: what a model's rings say to others is done after its lock is released.
    """

    def __init__(self, server: Core, files: ModelFiles, version: int, config: Any) -> None:
        super().__init__(server, files, version, config)
        self.file = repository.model_file(server.options.backend_directory, files, version, config)
        self.max_concurrent = model_config.max_concurrent(config)
        self.cancel_coroutines = model_config.cancel_coroutines(config)
        self.environment = environment.Environment(None, {})
        self._scheduler: Scheduler = scheduler_for(config, self.max_concurrent)
        self._order: Optional[ResponseOrder[Request]] = None
        self._batched = is_batched(config)
        if self._batched and config.dynamic_batching.preserve_ordering:
            self._order = ResponseOrder()
        self._worth_a_look = max(self.max_batch_size // 4, 1)
        """So many requests wait that it pays to look whether an instance is free."""
        self._order_lock = threading.RLock()
        self._alarm = Alarm(self._on_alarm)
        self._dirty: List[Instance] = []
        self._flush_due = False
        self._stuck: Set[Instance] = set()
        self._live = 0
        self._loop_thread = threading.get_ident()

    @property
    def ready(self) -> bool:
        """Whether a request would be served: an instance is live, and the model is not being unloaded."""
        return not self._stopping and any(instance.state is State.READY for instance in self.instances)

    async def check_ready(self) -> None:
        """``ready``, and the model's own ``is_ready``, if it has one, in every live instance (spec 2.9).

        Raises:
            Unavailable: why not.
        """
        if not self.ready:
            raise Unavailable(self.unavailable_text())
        checked = [instance for instance in self.instances if instance.has_is_ready and instance.state is State.READY]
        if checked:
            await asyncio.gather(*(instance.check_ready() for instance in checked))

    async def load(self) -> None:
        """Starts every instance and waits until all of them serve.

        Raises:
            ConfigError: its environment cannot be had.
            LoadFailed: one of them did not load; the others are ended.
        """
        self.environment = await self._loop.run_in_executor(None, environment.prepare, self.config, self.directory, self.server.ending)
        await self._read_labels()
        if self._stopping:
            raise LoadFailed("the server is ending, or the model was unloaded")
        try:
            self.arena.add(self._grow(self.server.options.backend.shm_default_byte_size))
            for spec in model_config.instance_specs(self.config):
                instance = Instance(self, spec)
                instance.start()
                self.instances.append(instance)
        except (OutOfSharedMemory, OSError) as error:
            await self.stop(0)
            raise LoadFailed(f"Unable to initialize shared memory: {error}") from error
        results = await asyncio.gather(*(instance.loaded for instance in self.instances), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            self.reason = str(failures[0])
            await self.stop(0)
            raise LoadFailed(self.reason) from failures[0]

    async def stop(self, seconds: float) -> None:
        """Ends the instances: lets requests finish, then finalize, within ``seconds`` in all, then SIGKILL."""
        self._stopping = True
        deadline = self._loop.time() + seconds
        while self._busy() and self._loop.time() < deadline:
            await asyncio.sleep(0.005)
        started = [instance for instance in self.instances if not instance.ended.done()]
        for instance in started:
            if seconds > 0:
                instance.finalize()
        ends = [instance.ended for instance in started]
        if ends and seconds > 0:
            await asyncio.wait(ends, timeout=max(deadline - self._loop.time(), 0))
        for instance in started:
            if not instance.ended.done():
                if seconds > 0:
                    text = "instance '%s' (pid %s) did not end in time and is killed"
                    logger.warning(text, instance.name, instance.pid, extra=about(instance.facts))
                instance.kill()
        if ends:
            await asyncio.wait(ends, timeout=_KILL_SECONDS)
        for segment in self.segments:
            segment.close()
        self.server.forget([segment.id for segment in self.segments])

    def _busy(self) -> bool:
        return bool(self._scheduler.waiting) or any(i.channel.in_flight and i.state is State.READY for i in self.instances)

    # Requests

    def submit(self, request: Request) -> None:
        """Queues a request; ``request.respond`` will be called.

        Raises:
            Unavailable: no instance is live. The request's blocks are given back.
        """
        request.submitted_ns = perf_counter_ns()
        if request.blocks and isinstance(block := request.blocks[0][0], Block):
            request.input_ns = block.write_ns
        if request.trace is not None:
            request.trace.submitted(self, request)
        with self.lock:
            if not self._live or self._stopping:
                request.release()
                if not self._stopping:
                    request.failure = Failure.BACKEND
                    self.statistics.settled(request, None, True, request.submitted_ns, request.submitted_ns)
                raise Unavailable(self.unavailable_text())
            if self._order is not None:
                self._order.expect(request)
            refused = self._hand_over(self._scheduler.enqueue(request, request.submitted_ns))
            if self._dirty or self._scheduler.due is not None:
                refused += self._flush_soon()
        self._settle(refused)
        if self._batched and self._scheduler.waiting >= self._worth_a_look and threading.get_ident() == self._loop_thread:
            # Many requests may come in one turn of the loop, and the stub be done long before its end: the next batch need not wait for it.
            for instance in self.instances:
                if instance.channel.in_flight and instance.channel.ready():
                    self.drain(instance)

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
                    return
                request.release()
            elif instance.channel.cancel(request):
                if self.cancel_coroutines:
                    instance.cancel_coroutine(request.key)
                return
            request.answered = True
            request.failure = Failure.CANCELED if reason is None else Failure.REJECTED
            refused.append((request, reason or Cancelled("the request was cancelled before it was executed"), True))
        self._settle(refused)

    def hold(self, request: Request, held: bool) -> None:
        """Has the model wait with the next response to a request, or go on. In any thread."""
        with self.lock:
            instance = request.instance
            if instance is not None and instance.state in (State.READY, State.STOPPING) and not instance.broken:
                instance.channel.hold(request, held)

    def reply(self, instance: Instance, call: int, outcome: Optional[Outcome], final: bool) -> None:
        """Passes the outcome of a call that the model made on to its stub. In any thread."""
        with self.lock:
            if final:
                instance.open_calls.pop(call, None)
            if instance.state in (State.READY, State.STOPPING) and not instance.broken:
                instance.channel.reply(call, outcome, final)
                self._dirty.append(instance)
                self._flush()
                outcome = None
        drop(outcome)
        self._expect_more(instance)

    def finalize(self, instance: Instance) -> None:
        """Tells an instance to finish."""
        with self.lock:
            instance.channel.finalize()
            self._dirty.append(instance)
            self._flush()

    def unavailable_text(self) -> str:
        """Why a request cannot be served."""
        if self._stopping:
            return f"Request for unknown model: '{self.name}' is not found"
        reasons = [instance.reason for instance in self.instances if instance.reason]
        return reasons[0] if reasons else f"Request for unknown model: '{self.name}' has no available versions"

    def drain(self, instance: Instance) -> bool:
        """Takes what the stub said, hands it what comes next, and tells those whom it concerns; whether the model called others."""
        news = News()
        with self.lock:
            if instance.broken:
                return False
            try:
                instance.channel.drain(news)
            except ProtocolError as error:
                instance.broken = True
                self._loop.call_soon_threadsafe(instance.on_violation, str(error))
            if news.returned:
                news.settled += self._hand_over(self._scheduler.finished(instance, news.returned, perf_counter_ns()))
                if self._scheduler.due is not None:
                    news.settled += self._tick()
            elif instance.channel.has_releases:
                self._dirty.append(instance)
            if self._dirty:
                self._flush()
        self._settle(news.settled)
        called = bool(news.calls or news.cancelled_calls)
        if called:
            self.server.bls.route(instance, news)
        return called

    def on_bell(self, instance: Instance) -> None:
        """The stub rang: it wrote while this side slept."""
        instance.channel.silence()
        self._look(instance)

    def _look(self, instance: Instance) -> None:
        """Drains, and relies on the bell again, or, when more has come meanwhile, looks again after the loop's other callbacks."""
        self.drain(instance)
        if not (instance.broken or instance.pollers or instance.channel.asleep()):
            self._loop.call_soon(self._look, instance)

    def begin_polling(self, instance: Instance) -> None:
        """From now on the calling thread looks at the instance's ring itself and the stub need not ring."""
        with self.lock:
            instance.pollers += 1
            instance.channel.awake()

    def end_polling(self, instance: Instance) -> None:
        """Undoes ``begin_polling``."""
        with self.lock:
            instance.pollers -= 1
            missed = instance.pollers == 0 and not instance.channel.asleep()
        if missed:
            self._loop.call_soon_threadsafe(self._look, instance)

    @property
    def in_flight(self) -> int:
        """How many requests instances have and have not answered."""
        return sum([len(instance.channel.in_flight) for instance in self.instances])

    def poll(self, done: Callable[[], bool]) -> None:
        """Looks at the ring in the calling thread until ``done``, for as long as an answer is expected soon. A hand-over to the loop's thread
        and back would cost two wake-ups of a thread."""
        busy = [i for i in self.instances if i.channel.in_flight and i.channel.expects.nanoseconds()]
        if len(busy) != 1:
            return
        (instance,) = busy
        deadline = perf_counter_ns() + instance.channel.expects.nanoseconds()
        self.begin_polling(instance)
        try:
            while not done() and perf_counter_ns() < deadline:
                if instance.channel.ready():
                    if self.drain(instance):
                        return  # it called another model, and the server's loop has to see to that
                else:
                    os.sched_yield()  # the stub may be waiting for this very core
        finally:
            self.end_polling(instance)

    def _hand_over(self, actions: Actions) -> List[Settled]:
        """Does what the scheduler says; returns the requests that are refused."""
        batches, refusals = actions
        dirty = self._dirty
        refused: List[Settled] = []
        if refusals:
            refused += [self._refuse(request, _why(request, reason)) for request, reason in refusals]
        for instance, requests in batches:
            if self._batched:
                together = Batch(len(requests), sum(map(self._items, requests)), perf_counter_ns())
                for request in requests:
                    request.instance, request.batch = instance, together
            else:
                requests[0].instance = instance
            if instance.channel.hand(requests):
                if instance not in dirty:
                    dirty.append(instance)
            else:
                text = f"instance '{instance.name}' has as many open requests as it can have"
                refused += [self._refuse(request, text) for request in requests]
                refused += self._hand_over(self._scheduler.finished(instance, 1, perf_counter_ns()))
        return refused

    def _tick(self) -> List[Settled]:
        """Has the scheduler look if it is time, and sees to it that it will when it is time again. Under the lock."""
        due = self._scheduler.due
        if due is None:
            return []
        refused: List[Settled] = []
        now = perf_counter_ns()
        if due <= now:
            refused = self._hand_over(self._scheduler.tick(now))
            due = self._scheduler.due
        if due is not None:
            self._alarm.set(due)
        return refused

    def _items(self, request: Request) -> int:
        return request.inputs[0][2][0] if self.max_batch_size > 0 and request.inputs else 1

    def _refuse(self, request: Request, text: str) -> Settled:
        request.release()
        request.answered = True
        request.failure = Failure.REJECTED
        return request, Unavailable(text), True

    def _on_alarm(self) -> None:
        with self.lock:
            refused = self._tick()
            self._flush()
        self._settle(refused)

    def _flush_soon(self) -> List[Settled]:
        """Writes what is pending; returns the requests that the scheduler refuses on the way."""
        refused: List[Settled] = []
        if threading.get_ident() != self._loop_thread:
            refused = self._tick()
            self._flush()
        elif not self._flush_due:
            # Once per turn of the loop: the requests of one turn share a record and a wake-up.
            self._flush_due = True
            self._loop.call_soon(self._flush_turn)
        return refused

    def _flush_turn(self) -> None:
        with self.lock:
            self._flush_due = False
            refused = self._tick()
            dirty = self._flush()
        if refused:
            self._settle(refused)
        for instance in dirty:
            self._expect_more(instance)

    def _expect_more(self, instance: Instance) -> None:
        """Something was sent: in the loop's own thread, looks for what comes back for a while."""
        budget = instance.channel.expects.nanoseconds()
        if budget and not instance.pollers and threading.get_ident() == self._loop_thread:
            self.begin_polling(instance)
            self._loop.call_soon(self._poll, instance, perf_counter_ns() + budget)

    def _flush(self) -> List[Instance]:
        dirty, self._dirty = self._dirty, []
        for instance in dirty:
            try:
                instance.channel.flush()
            except ProtocolError as error:
                self._loop.call_soon_threadsafe(instance.on_violation, str(error))
            if instance.channel.stuck and instance not in self._stuck:
                self._stuck.add(instance)
                self._loop.call_soon_threadsafe(self._loop.call_later, _STUCK_SECONDS, self._flush_stuck, instance)
        return dirty

    def _flush_stuck(self, instance: Instance) -> None:
        with self.lock:
            self._stuck.discard(instance)
            if instance.state in (State.READY, State.STOPPING):
                self._dirty.append(instance)
                self._flush()

    def _poll(self, instance: Instance, deadline: int) -> None:
        """One look at a ring in each turn of the loop, for as long as an answer is expected soon."""
        now = perf_counter_ns()
        channel = instance.channel
        if channel.ready():
            self.drain(instance)
            deadline = now + channel.expects.nanoseconds()
        if channel.in_flight and now <= deadline and not instance.broken:
            os.sched_yield()  # the stubs that are to answer may be waiting for this very core
            self._loop.call_soon(self._poll, instance, deadline)
        else:
            self.end_polling(instance)

    # Events of instances

    def instance_ready(self, instance: Instance) -> None:
        with self.lock:
            self._live += 1
            instance.channel.times.free_ns = perf_counter_ns()
            refused = self._hand_over(self._scheduler.add(instance, perf_counter_ns())) + self._tick()
            self._flush()
        self._settle(refused)

    def retire(self, instance: Instance) -> None:
        """From now on the instance is handed nothing; what it was handed it finishes."""
        with self.lock:
            self._scheduler.retire(instance)

    def regroup(self, config: Any) -> None:
        """Takes on a configuration that differs in its instance groups; for the instances themselves see ``instance_change``."""
        self._set_config(config)

    def instance_gone(self, instance: Instance) -> None:
        """Its process ended: what it was executing fails, what it had not started goes to another instance, if there is one."""
        if not instance.broken:
            self.drain(instance)
        with self.lock:
            # Whatever else is in its rings is not believed any more.
            instance.broken = True
            self._live = sum(i.state is State.READY for i in self.instances)
            settled, unstarted = instance.channel.abandon(Unavailable(instance.reason or "the model is being unloaded"))
            for request in unstarted:
                request.instance = None
            settled += self._hand_over(self._scheduler.remove(instance, unstarted, perf_counter_ns())) + self._tick()
            self._flush()
            if not self._live:
                error = Unavailable(self.unavailable_text())
                for request in self._scheduler.drop_all():
                    request.release()
                    request.answered = True
                    request.failure = Failure.BACKEND
                    settled.append((request, error, True))
        self._settle(settled)

    def _settle(self, outcomes: List[Settled]) -> None:
        if self._order is None:
            self._tell(outcomes)
        else:
            with self._order_lock:
                self._tell(self._order.settled(outcomes))

    def _tell(self, outcomes: List[Settled]) -> None:
        decoupled = self.decoupled
        for request, outcome, final in outcomes:
            arrived = perf_counter_ns() if decoupled else 0
            if request.trace is not None:
                request.trace.settled(request, outcome, final)
                if final:
                    request.trace = None  # it ends when the front end lets go of it, too
            try:
                request.respond(outcome, final)
            except Exception:
                # One that cannot be told must not keep the others from being told.
                logger.exception("the outcome of a request could not be delivered")
            self.statistics.settled(request, outcome, final, arrived, perf_counter_ns())

    def pending(self) -> int:
        """How many requests wait to be executed."""
        with self.lock:
            handed = sum(instance.channel.waiting() for instance in self.instances if instance.state is State.READY)
            return self._scheduler.waiting + handed


Settled = Tuple[Request, Optional[Outcome], bool]


def _why(request: Request, reason: Reason) -> str:
    """Why the scheduler refuses a request, as Triton says it."""
    request_id = request.extras[0] if request.extras and request.extras[0] else "<id_unknown>"
    return f"[request id: {request_id}] {reason.value}"


_KILL_SECONDS = 5.0
_STUCK_SECONDS = 0.002
