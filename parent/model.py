"""One version of one model: its configuration, its instances, and the way of a request through them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from ..shm.arena import Arena, Block
from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.segment import Segment
from . import model_config
from .errors import Unavailable
from .instance import Instance, LoadFailed
from .lifecycle import State
from .repository import ModelFiles
from .request import Outcome, Request
from .scheduler import DefaultScheduler, Dispatches

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)


class Model:
    """``load`` starts its stubs; ``submit`` sends a request; ``stop`` ends it.

    ``submit``, ``allocate`` and ``drain`` may be called in any thread: ``lock`` guards the arena, the scheduler and the rings.
    """

    def __init__(self, server: Core, files: ModelFiles, version: int, config: Any) -> None:
        self.server = server
        self.name = files.name
        self.directory = files.path
        self.version = version
        self.config = config
        self.config_dict = model_config.as_dict(config)
        self.config_json = json.dumps(self.config_dict, separators=(",", ":"))
        self.path = os.path.join(files.path, str(version), config.default_model_filename)
        self.inputs = model_config.tensor_specs(config, config.input)
        self.outputs = model_config.tensor_specs(config, config.output)
        self.max_batch_size: int = config.max_batch_size
        self.decoupled: bool = config.model_transaction_policy.decoupled
        self.interpreter, self.environment = _interpreter_of(config, files.path)
        self.lock = threading.Lock()
        self.segments: List[Segment] = []
        self.arena = Arena(self._grow, server.options.backend.shm_growth_byte_size)
        self.instances: List[Instance] = []
        self.reason = ""
        self.memo: Dict[Any, Any] = {}
        """What a front end has worked out about this model and wants to remember; it goes with the model."""
        self._scheduler: DefaultScheduler[Instance, Request] = DefaultScheduler()
        self._dirty: List[Instance] = []
        self._flush_due = False
        self._stopping = False
        self._live = 0
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    @property
    def ready(self) -> bool:
        """Whether a request would be served: an instance is live, and the model is not being unloaded."""
        return not self._stopping and any(instance.state is State.READY for instance in self.instances)

    async def load(self) -> None:
        """Starts every instance and waits until all of them serve.

        Raises:
            LoadFailed: one of them did not load; the others are ended.
        """
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
                    logger.warning("instance '%s' (pid %s) did not end in time and is killed", instance.name, instance.pid)
                instance.kill()
        if ends:
            await asyncio.wait(ends, timeout=_KILL_SECONDS)
        for segment in self.segments:
            segment.close()

    def _busy(self) -> bool:
        return bool(self._scheduler.queue) or any(i.in_flight and i.state is State.READY for i in self.instances)

    # Requests

    def allocate(self, nbytes: int) -> Block:
        """A block of the request arena.

        Raises:
            Unavailable: there is no room for it.
        """
        try:
            with self.lock:
                return self.arena.allocate(nbytes)
        except OutOfSharedMemory as error:
            raise self.no_room(error) from error

    def no_room(self, error: OutOfSharedMemory) -> Unavailable:
        """What a client is told when its inputs find no room."""
        return Unavailable(f"the inputs of a request to model '{self.name}' find no room: {error}")

    def submit(self, request: Request) -> None:
        """Queues a request; ``request.done`` will be called.

        Raises:
            Unavailable: no instance is live.
        """
        with self.lock:
            if not self._live or self._stopping:
                request.block.release()
                raise Unavailable(self.unavailable_text())
            self._hand_over(self._scheduler.enqueue(request))
            if not self._dirty:
                return
            if threading.get_ident() != self._loop_thread:
                self._flush()
            elif not self._flush_due:
                # Once per turn of the loop: the requests of one turn share a record and a wake-up.
                self._flush_due = True
                self._loop.call_soon(self._flush_turn)

    def remember(self, key: Any, value: Any) -> None:
        """Puts something in ``memo``; when there is too much, all of it goes."""
        if len(self.memo) >= _REMEMBERED:
            self.memo.clear()
        self.memo[key] = value

    def unavailable_text(self) -> str:
        """Why a request cannot be served."""
        if self._stopping:
            return f"Request for unknown model: '{self.name}' is not found"
        reasons = [instance.reason for instance in self.instances if instance.reason]
        return reasons[0] if reasons else f"Request for unknown model: '{self.name}' has no available versions"

    def drain(self, instance: Instance) -> None:
        """Takes the replies that are there, hands the instance what comes next, and tells the requests' owners."""
        with self.lock:
            if instance.broken:
                return
            done: List[Tuple[Request, Outcome]] = []
            try:
                instance.drain(done)
            except ProtocolError as error:
                instance.broken = True
                self._loop.call_soon_threadsafe(instance.condemn, str(error))
            if done:
                self._hand_over(self._scheduler.finished(instance, len(done)))
                if self._dirty:
                    self._flush()
        _settle(done)

    def on_bell(self, instance: Instance) -> None:
        """The stub rang: it wrote while this side slept."""
        instance.silence()
        self._look(instance)

    def _look(self, instance: Instance) -> None:
        """Drains, and relies on the bell again, or, when more has come meanwhile, looks again after the loop's other callbacks."""
        self.drain(instance)
        if not (instance.broken or instance.pollers or instance.asleep()):
            self._loop.call_soon(self._look, instance)

    def begin_polling(self, instance: Instance) -> None:
        """From now on the calling thread looks at the instance's ring itself and the stub need not ring."""
        with self.lock:
            instance.pollers += 1
            instance.awake()

    def end_polling(self, instance: Instance) -> None:
        """Undoes ``begin_polling``."""
        with self.lock:
            instance.pollers -= 1
            missed = instance.pollers == 0 and not instance.asleep()
        if missed:
            self._loop.call_soon_threadsafe(self._look, instance)

    def _hand_over(self, dispatches: Dispatches[Instance, Request]) -> None:
        dirty = self._dirty
        for instance, request in dispatches:
            instance.hand(request)
            if instance not in dirty:
                dirty.append(instance)

    def _flush_turn(self) -> None:
        with self.lock:
            self._flush_due = False
            dirty = self._flush()
        for instance in dirty:
            budget = instance.poll.nanoseconds()
            if budget and not instance.pollers:
                self.begin_polling(instance)
                self._loop.call_soon(self._poll, instance, perf_counter_ns() + budget)

    def _flush(self) -> List[Instance]:
        dirty, self._dirty = self._dirty, []
        for instance in dirty:
            try:
                instance.flush()
            except (ProtocolError, OutOfSharedMemory) as error:
                self._loop.call_soon_threadsafe(instance.condemn, str(error))
        return dirty

    def _poll(self, instance: Instance, deadline: int) -> None:
        """One look at a ring in each turn of the loop, for as long as an answer is expected soon."""
        now = perf_counter_ns()
        if instance.ready():
            self.drain(instance)
            deadline = now + instance.poll.nanoseconds()
        if instance.in_flight and now <= deadline and not instance.broken:
            self._loop.call_soon(self._poll, instance, deadline)
        else:
            self.end_polling(instance)

    # Events of instances

    def instance_ready(self, instance: Instance) -> None:
        with self.lock:
            self._live += 1
            self._hand_over(self._scheduler.add(instance))
            self._flush()

    def instance_gone(self, instance: Instance) -> None:
        """Its process ended: what it was executing fails, what it had not started goes to another instance, if there is one."""
        with self.lock:
            self._live = sum(i.state is State.READY for i in self.instances)
            settled, unstarted = instance.abandoned()
            self._hand_over(self._scheduler.remove(instance, unstarted))
            self._flush()
            queue = self._scheduler.queue
            if not self._live:
                error = Unavailable(self.unavailable_text())
                while queue:
                    request = queue.popleft()
                    request.block.release()
                    settled.append((request, error))
        _settle(settled)

    def _grow(self, nbytes: int) -> Segment:
        segment = Segment.create(self.server.next_segment_id(), nbytes, as_it_fills=True)
        self.segments.append(segment)
        for instance in self.instances:
            if instance.state in (State.LOADING, State.READY):
                instance.announce(segment)
        return segment


def _settle(outcomes: List[Tuple[Request, Outcome]]) -> None:
    for request, outcome in outcomes:
        try:
            request.done(outcome)
        except Exception:
            # One that cannot be told must not keep the others from being told.
            logger.exception("the outcome of a request could not be delivered")


_KILL_SECONDS = 5.0
_REMEMBERED = 1024


def _interpreter_of(config: Any, directory: str) -> Tuple[Optional[str], Dict[str, Optional[str]]]:
    """The interpreter that the model asks for, and the variables that make its environment the active one (spec 2.13)."""
    environment = model_config.environment_of(config, directory)
    if environment is None:
        return None, {}
    path, libraries = os.environ.get("PATH", ""), os.environ.get("LD_LIBRARY_PATH", "")
    variables: Dict[str, Optional[str]] = {
        "VIRTUAL_ENV": environment,
        "PATH": f"{environment}/bin:{path}",
        "LD_LIBRARY_PATH": f"{environment}/lib:{libraries}" if libraries else f"{environment}/lib",
        "PYTHONHOME": None,
    }
    return os.path.join(environment, "bin", "python"), variables
