"""One instance of a model: the life of its stub, from hello to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from ..shm.control import (
    ANSWER,
    ASK,
    CANCEL,
    CHECK,
    CHECKED,
    DEVICE_SEGMENT,
    FAILED,
    FORGET,
    FORKED,
    GROW,
    HELLO,
    LOAD,
    LOG,
    PONG,
    READY,
    SEGMENT,
    SHED,
    TELL,
    UNMAPPED,
)
from ..shm.cuda.segment import DeviceSegment
from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.message import PROTOCOL_VERSION
from ..shm.polling import poll_limit
from ..shm.segment import Segment
from .channel import Channel
from .errors import ServerError, Unavailable
from .forked_caller import ForkedCaller
from .lifecycle import Event, State, advance
from .log import about, facts, stub_logger
from .metrics.custom import CustomMetricError
from .output_memory import OutputMemory
from .placement.instance_groups import InstanceSpec
from .placement.placement import Placement
from .request import Outcome
from .stub_process import StubProcess, why_not_loaded
from .supervision.cause import Cause, Death, Kind
from .supervision.deadlines import Limits

if TYPE_CHECKING:
    from .bls import OpenCall
    from .client_regions import ClientRegion
    from .model import Model

STUB_POLL_US = 500

READY_SECONDS = 5.0
"""How long a model's is_ready may take before a check counts as failed (spec 2.9)."""

_MOST_FORKED = 512
"""Calls that processes which the model forked may have open; each takes a descriptor here. The socket of one more is closed."""

logger = logging.getLogger(__name__)


class LoadFailed(Exception):
    """An instance could not be made ready; the text is the reason."""


class Instance:
    """``start`` makes the stub; from then on ``state`` says how it is. Methods named ``on_`` run in the server's loop."""

    def __init__(self, model: Model, spec: InstanceSpec, placement: Placement) -> None:
        self.model = model
        self.name = spec.name
        self.spec = spec
        self.placement = placement
        self.state = State.STARTING
        self.reason = ""
        self.pollers = 0
        self.broken = False
        """The stub broke the protocol of the rings: nothing in them is believed any more."""
        self.violated = False
        """It was ended for breaking the protocol, of its rings or of its control socket."""
        self.open_calls: Dict[int, OpenCall] = {}
        """What the model has asked of other models and was not fully answered yet, by the number of the call."""
        self.has_is_ready = False
        self.in_reserve = False
        """It does not serve when it has loaded, but waits until it is needed."""
        self.restarts = 0
        """How many others were at its place before, and died."""
        self._listening = False
        self.started_at = 0.0
        """When its process was started, in seconds since 1970."""
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[None] = self._loop.create_future()
        self.loaded.add_done_callback(_retrieve)
        self.facts = facts(model.name, model.version, spec.name)
        self.process = StubProcess(self, stub_logger(self))
        self.memory = OutputMemory(self, model.instance_limit)
        self._check: Optional[asyncio.Future[Optional[bool]]] = None
        self._checks = 0
        self._forked: List[ForkedCaller] = []
        self._to_forget: Set[int] = set()

    @property
    def pid(self) -> Optional[int]:
        return self.process.pid

    @property
    def executing(self) -> int:
        """How many requests it was handed and has not answered."""
        return len(self.channel.in_flight)

    @property
    def limits(self) -> Limits:
        """How long it may take, and hang."""
        return self.model.supervisor.supervision.limits

    @property
    def segments(self) -> List[Segment]:
        """Those of its arena, in host memory."""
        return [segment for segment in self.channel.loans.outputs.values() if not isinstance(segment, DeviceSegment)]

    @property
    def device_segments(self) -> List[DeviceSegment]:
        """What it exports of device memory."""
        return [segment for segment in self.channel.loans.outputs.values() if isinstance(segment, DeviceSegment)]

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when the process is gone and everything of it is settled."""
        return self.process.ended

    def start(self) -> None:
        """Asks the fork server for the process. News of it arrives as events.

        Raises:
            OutOfSharedMemory: no room for its memory.
            OSError: no descriptor is to be had.
        """
        self.channel = Channel(self.model, self.announce, self._announce_region)
        self.channel.set_verbose(logger.isEnabledFor(logging.DEBUG))
        environment, server = self.model.environment, self.model.server
        try:
            self.process.start(server.spawner, environment.interpreter, environment.variables, self.placement, self.model.sandbox)
        except OSError:
            self.channel.close()
            raise
        if server.limits is not None:
            server.limits.admit(self)

    # Life

    def on_spawned(self) -> None:
        self.started_at = time.time()
        self.model.server.watcher.watch(self)

    def on_end(self, death: Death) -> None:
        self.state = advance(self.state, Event.EXITED)
        if self.state is State.FAILED and not self.reason:
            summary = death.summary(self.name, "serving" if self.loaded.done() else "loading the model", self.model.name)
            self.reason = death.for_client(summary, self.model.server.options.expose_tracebacks)
            logger.error("%s", death.for_log(summary), extra=about(self.facts, death.stack))
        if not self.loaded.done():
            self.loaded.set_exception(LoadFailed(self.reason or f"the stub was stopped ({death.cause.text})"))
        if self._check is not None and not self._check.done():
            self._check.set_result(None)
        for caller in self._forked:
            caller.close()
        self.model.server.watcher.ended(self)
        self.model.supervisor.ended(self)
        if self._listening:
            self._loop.remove_reader(self.channel.up_bell)
            self.model.instance_gone(self)
        # Only now: the last calls that it made may have been found just now.
        for call in list(self.open_calls.values()):
            call.callee.cancel(call.request)
        lost = list(self.channel.loans.outputs)
        self.channel.close()
        self.model.server.instance_gone(self, lost)

    def finalize(self) -> None:
        """Tells the stub to finish what it was handed, call finalize, and exit; one that has not loaded has nothing to finish, and one
        that was told is at it."""
        was = self.state
        self._advance(Event.STOP)
        if was.talks and was is not State.STOPPING:
            self.model.finalize(self)
        elif was is not State.STOPPING:
            self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()

    def on_violation(self, why: str) -> None:
        """The stub broke the protocol: it is ended, and fails what it holds."""
        if self.state.alive:
            self.violated = True
            self.process.condemn(Cause(Kind.PROTOCOL_ERROR, f"it was ended for a protocol error: {why}"))
            self.kill()

    def warmed_up(self, failure: str = "") -> None:
        """It has executed the samples for its warm-up, or there were none: it serves, or is kept in reserve.

        Args:
            failure: why it has not loaded after all.
        """
        if self.state is State.WARMING and failure:
            self.reason = failure
            self._advance(Event.LOAD_FAILED)
            self.loaded.set_exception(LoadFailed(failure))
            self.kill()
        elif not self.loaded.done():
            if self.state is State.WARMING and self.in_reserve:
                self._advance(Event.RESERVE)
            elif self.state is State.WARMING:
                self.serve()
            self.loaded.set_result(None)

    def become(self, spec: InstanceSpec) -> None:
        """Takes the name of another of its kind, whose place it takes."""
        self.spec, self.name = spec, spec.name
        self.facts = facts(self.model.name, self.model.version, spec.name)

    def serve(self) -> None:
        """From now on it gets requests."""
        self.in_reserve = False
        self._advance(Event.SERVE)
        self.model.instance_ready(self)

    def retire(self) -> None:
        """From now on it gets no new requests; what it has it finishes."""
        if self.state is State.READY:
            self._advance(Event.RETIRE)

    def await_successor(self) -> None:
        """It has ended when it should not, and another will take its place."""
        self._advance(Event.RESTART)

    def give_up(self) -> None:
        """No other will."""
        self._advance(Event.GIVE_UP)

    def _advance(self, event: Event) -> None:
        self.state = advance(self.state, event)

    # The control socket

    def announce(self, segment: Segment) -> None:
        """Tells the stub of a segment with tensors to read. In any thread."""
        self.channel.loans.known.add(segment.id)
        self._tell_segment(segment, for_outputs=False)

    def _announce_region(self, region: ClientRegion) -> None:
        """Tells the stub of shared memory of a client's. In any thread."""
        self.process.tell(*region.announcement())

    def forget(self, segments: Iterable[int]) -> None:
        """Tells the stub of segments and regions that are no more, if it knows them. Those of which something is lent to it are told next
        time."""
        if self.state.learns:
            self._to_forget.update(segments)
            with self.model.lock:
                forgotten = self.channel.loans.forgettable(self._to_forget)
            self._to_forget &= self.channel.loans.known
            if forgotten:
                self.process.tell((FORGET, sorted(forgotten)))

    def set_verbose(self, wanted: bool) -> None:
        """Tells the stub whether lines of level VERBOSE are wanted."""
        if self.state.alive:
            self.channel.set_verbose(wanted)

    def cancel_coroutine(self, key: int) -> None:
        """Has the coroutine of a request cancelled. In any thread."""
        self.process.tell((CANCEL, key))

    def on_message(self, message: Tuple[Any, ...], fds: Sequence[int]) -> None:
        kind, *parts = message
        if kind == LOG:
            (lines,) = parts
            self.process.log(lines)
        elif kind == TELL:
            what, arguments = parts
            self._serve_told(what, arguments)
        elif kind == ASK:
            number, what, arguments = parts
            self._serve_asked(number, what, arguments)
        elif kind == GROW:
            (nbytes,) = parts
            self.memory.on_grow(nbytes)
        elif kind == SHED:
            (segments,) = parts
            self.memory.on_shed(segments)
        elif kind == UNMAPPED:
            number, done = parts
            self.model.server.device_memory.retired.unmapped(self, number, done)
        elif kind == PONG:
            self.model.server.watcher.answered(self)
        elif kind == CHECKED:
            number, answer = parts
            if self._check is not None and number == self._checks and not self._check.done():
                self._check.set_result(answer if type(answer) is bool else None)
        elif kind == FORKED:
            (fd,) = fds
            self._forked = [caller for caller in self._forked if not caller.closed]
            if len(self._forked) < _MOST_FORKED:
                self._forked.append(ForkedCaller(self, fd))
        elif kind == HELLO:
            protocol, python, numpy, executable = parts
            self._advance(Event.HELLO)
            self.process.find_cgroup()
            if protocol != PROTOCOL_VERSION:
                raise ProtocolError(f"the stub speaks protocol {protocol}, this server {PROTOCOL_VERSION}; install one version of stublet")
            started = (self.name, self.pid, python, numpy, executable)
            logger.debug("stub '%s' (pid %s): Python %s, numpy %s, %s", *started, extra=about(self.facts))
            self._load()
        elif kind in (READY, FAILED) and self.loaded.done():
            raise ProtocolError("the stub says twice how its model has loaded")
        elif kind == READY:
            (self.has_is_ready,) = parts
            self._advance(Event.LOADED)
            if self.state is not State.WARMING:
                self.loaded.set_result(None)  # it is being stopped
                return
            self.channel.asleep()
            self._loop.add_reader(self.channel.up_bell, self.model.pump.on_bell, self)
            self._listening = True
            if not self.model.begin_warmup(self):
                self.warmed_up()
        elif kind == FAILED:
            text, trace = why_not_loaded(*parts)
            self._advance(Event.LOAD_FAILED)
            self.reason = text
            if trace:
                logger.error("model '%s', instance '%s' did not load", self.model.name, self.name, extra=about(self.facts, trace))
            self.loaded.set_exception(LoadFailed(text))
        else:
            raise ProtocolError(f"no control message begins with {kind!r}")

    def _load(self) -> None:
        model, backend = self.model, self.model.server.options.backend
        try:
            outputs = Segment.create(model.server.next_segment_id(), backend.shm_default_byte_size)
        except OutOfSharedMemory as error:
            self.reason = f"Unable to initialize shared memory: {error}"
            self.process.condemn(Cause(Kind.NO_MEMORY, f"it was ended because there is no shared memory for it: {error}"))
            self.kill()
            return
        settings = {
            **model.file.settings(),
            "args": {
                "model_config": model.config_json,
                "model_instance_kind": self.spec.kind,
                "model_instance_name": self.name,
                "model_instance_device_id": str(self.placement.device),
                "model_repository": model.directory,
                "model_version": str(model.version),
                "model_name": model.name,
            },
            "inputs": [*(spec.name for spec in model.inputs), *model.added_inputs],
            "outputs": [spec.name for spec in model.stub_outputs],
            "decoupled": model.decoupled,
            "max_concurrent": model.max_concurrent,
            "cancel_coroutines": model.cancel_coroutines,
            "poll_us": STUB_POLL_US if poll_limit(STUB_POLL_US) and self.placement.has_cores else 0,
            "quantum": backend.shm_growth_byte_size,
            "device_inputs": model.takes_device_inputs,
            "device_segment_bytes": backend.gpu_ipc_segment_byte_size,
            "device_limit_bytes": backend.gpu_ipc_limit_byte_size,
            "expose_tracebacks": model.server.options.expose_tracebacks,
        }
        channel = self.channel
        assert channel.segment.fd is not None
        self.process.tell((LOAD, settings), [channel.segment.fd, channel.down_bell, channel.up_bell])
        channel.segment.close()
        # At once: a model that loads fast would not find them and ask for more.
        self.give(outputs)
        for segment in model.segments:
            self.announce(segment)

    def give(self, segment: Segment) -> None:
        """Gives the stub's arena a segment."""
        # Its descriptor stays open: the stub's tensors may be handed on to other stubs.
        self.channel.loans.outputs[segment.id] = segment
        self.channel.loans.known.add(segment.id)
        self._tell_segment(segment, for_outputs=True)

    def shed(self) -> None:
        """Has the stub give back what it does not use of its arena."""
        if self.state.learns:
            self.memory.shed()

    def _tell_segment(self, segment: Segment, for_outputs: bool) -> None:
        if isinstance(segment, DeviceSegment):
            self.process.tell((DEVICE_SEGMENT, segment.id, segment.size, segment.uuid, segment.handle))
            return
        assert segment.fd is not None
        self.process.tell((SEGMENT, segment.id, segment.size, for_outputs), [segment.fd])

    # What the model asks of the server

    def _serve_told(self, what: str, arguments: Sequence[Any]) -> None:
        try:
            self.model.server.told(self, what, arguments)
        except CustomMetricError as error:
            logger.warning("model '%s', instance '%s': %s", self.model.name, self.name, error, extra=about(self.facts))

    def _serve_asked(self, number: int, what: str, arguments: Sequence[Any]) -> None:
        if type(number) is not int:
            raise ProtocolError(f"question number {number!r}")
        task = self._loop.create_task(self._answer(number, what, arguments))
        self.model.server.keep(task)

    async def _answer(self, number: int, what: str, arguments: Sequence[Any]) -> None:
        error, value = None, None
        try:
            value = await self.model.server.asked(self, what, arguments)
        except (ServerError, CustomMetricError) as failure:
            error = str(failure)
        except Exception:
            logger.exception("model '%s', instance '%s': '%s' failed", self.model.name, self.name, what, extra=about(self.facts))
            error = "internal error: the server's log has the details"
        if not self.ended.done():
            self.process.tell((ANSWER, number, error, value))

    async def check_ready(self) -> None:
        """Asks the model's ``is_ready``. Checks made while one is under way share it.

        Raises:
            Unavailable: it does not say True, not in time, or the stub has ended.
        """
        joined = self._check is not None and not self._check.done()
        if not joined:
            self._checks += 1
            self._check = self._loop.create_future()
            self.process.tell((CHECK, self._checks))
        assert self._check is not None
        try:
            answer = await asyncio.wait_for(asyncio.shield(self._check), READY_SECONDS)
        except asyncio.TimeoutError:
            waited_for = "in-flight is_ready()" if joined else "user-defined is_ready()"
            raise Unavailable(f"Timed out waiting for {waited_for} response") from None
        if self.state not in (State.READY, State.DRAINING):
            raise Unavailable(self.reason)
        if not answer:
            raise Unavailable(f"Model '{self.name}' is not ready (user-defined check failed).")

    # Calls of other models

    def reply(self, call: int, outcome: Optional[Outcome], final: bool) -> None:
        """Passes an outcome on to the stub. In any thread, not under the lock of a model."""
        self.model.reply(self, call, outcome, final)


def _retrieve(future: asyncio.Future[None]) -> None:
    """An instance that fails while nobody waits for it any more is no complaint of asyncio's."""
    if not future.cancelled():
        future.exception()
