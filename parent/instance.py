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
    FAILED,
    FORGET,
    FORKED,
    GROW,
    HELLO,
    LOAD,
    LOG,
    NO_SEGMENT,
    READY,
    REGION,
    SEGMENT,
    TELL,
)
from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.message import PROTOCOL_VERSION
from ..shm.polling import poll_limit
from ..shm.segment import Segment
from .channel import Channel
from .errors import ServerError, Unavailable
from .forked_caller import ForkedCaller
from .lifecycle import Event, State, advance
from .log import LEVELS, about, facts, stub_logger
from .metrics.custom import CustomMetricError
from .placement.instance_groups import InstanceSpec
from .placement.placement import Placement
from .request import Outcome
from .stub_process import StubProcess

if TYPE_CHECKING:
    from .bls import OpenCall
    from .client_memory import ClientRegion
    from .model import Model

STUB_POLL_US = 500

READY_SECONDS = 5.0
"""How long a model's is_ready may take before a check counts as failed (spec 2.9)."""

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
        self.open_calls: Dict[int, OpenCall] = {}
        """What the model has asked of other models and was not fully answered yet, by the number of the call."""
        self.has_is_ready = False
        self.started_at = 0.0
        """When its process was started, in seconds since 1970."""
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[None] = self._loop.create_future()
        self.loaded.add_done_callback(_retrieve)
        self.facts = facts(model.name, model.version, spec.name)
        self._log = stub_logger(self)
        self.process = StubProcess(self, self._log)
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
    def segments(self) -> List[Segment]:
        """Those of its arena."""
        return list(self.channel.loans.outputs.values())

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
        self.process.start(server.spawner, environment.interpreter, environment.variables, self.placement)
        if server.limits is not None:
            server.limits.admit(self)

    # Life

    def on_spawned(self) -> None:
        self.started_at = time.time()
        if self.state is State.STOPPING:
            self.kill()

    def on_end(self, how: str) -> None:
        was = self.state
        self.state = advance(self.state, Event.EXITED)
        if self.state is State.FAILED and not self.reason:
            serving = self.loaded.done()
            doing = "serving" if serving else "loading the model"
            self.reason = f"Stub process '{self.name}' is not healthy: it ended with {how} while {doing} (pid {self.pid})"
            last = self.process.last_lines()
            if last and not serving:
                self.reason += f"; its last words were:\n{last}"
            logger.error("%s", self.reason, extra=about(self.facts))
        if not self.loaded.done():
            self.loaded.set_exception(LoadFailed(self.reason or f"the stub was stopped ({how})"))
        if self._check is not None and not self._check.done():
            self._check.set_result(None)
        for caller in self._forked:
            caller.close()
        if was is State.READY or was is State.STOPPING:
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
        if was is State.READY:
            self.model.finalize(self)
        elif was is not State.STOPPING:
            self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()

    def on_violation(self, why: str) -> None:
        """The stub broke the protocol: it is ended, and fails what it holds."""
        if self.state not in (State.FAILED, State.STOPPED):
            self.reason = self.reason or f"Stub process '{self.name}' is not healthy: it was ended for a protocol error: {why}"
            logger.error("%s", self.reason, extra=about(self.facts))
            self.kill()

    def _advance(self, event: Event) -> None:
        self.state = advance(self.state, event)

    # The control socket

    def announce(self, segment: Segment) -> None:
        """Tells the stub of a segment with tensors to read. In any thread."""
        self.channel.loans.known.add(segment.id)
        self._tell_segment(segment, for_outputs=False)

    def _announce_region(self, region: ClientRegion) -> None:
        """Tells the stub of shared memory of a client's. In any thread."""
        self.process.tell((REGION, region.id, region.name, region.offset, region.size), [region.fd])

    def forget(self, segments: Iterable[int]) -> None:
        """Tells the stub of segments and regions that are no more, if it knows them. Those of which something is lent to it are told next
        time."""
        if self.state in (State.LOADING, State.READY):
            self._to_forget.update(segments)
            with self.model.lock:
                forgotten = self.channel.loans.forgettable(self._to_forget)
            self._to_forget &= self.channel.loans.known
            if forgotten:
                self.process.tell((FORGET, sorted(forgotten)))

    def set_verbose(self, wanted: bool) -> None:
        """Tells the stub whether lines of level VERBOSE are wanted."""
        if self.state in (State.STARTING, State.LOADING, State.READY, State.STOPPING):
            self.channel.set_verbose(wanted)

    def cancel_coroutine(self, key: int) -> None:
        """Has the coroutine of a request cancelled. In any thread."""
        self.process.tell((CANCEL, key))

    def on_message(self, message: Tuple[Any, ...], fds: Sequence[int]) -> None:
        kind, *parts = message
        if kind == LOG:
            (lines,) = parts
            for level, *line in lines:
                self._log(LEVELS[level], *line)
        elif kind == TELL:
            what, arguments = parts
            self._serve_told(what, arguments)
        elif kind == ASK:
            number, what, arguments = parts
            self._serve_asked(number, what, arguments)
        elif kind == GROW:
            (nbytes,) = parts
            self._grow(nbytes)
        elif kind == CHECKED:
            number, answer = parts
            if self._check is not None and number == self._checks and not self._check.done():
                self._check.set_result(answer if type(answer) is bool else None)
        elif kind == FORKED:
            (fd,) = fds
            self._forked = [caller for caller in self._forked if not caller.closed]
            self._forked.append(ForkedCaller(self, fd))
        elif kind == HELLO:
            protocol, python, numpy, executable = parts
            self._advance(Event.HELLO)
            if protocol != PROTOCOL_VERSION:
                raise ProtocolError(f"the stub speaks protocol {protocol}, this server {PROTOCOL_VERSION}; install one version of stublet")
            started = (self.name, self.pid, python, numpy, executable)
            logger.debug("stub '%s' (pid %s): Python %s, numpy %s, %s", *started, extra=about(self.facts))
            self._load()
        elif kind == READY:
            (self.has_is_ready,) = parts
            self._advance(Event.LOADED)
            if self.state is State.READY:
                self.channel.asleep()
                self._loop.add_reader(self.channel.up_bell, self.model.pump.on_bell, self)
                if self.model.begin_warmup(self):
                    return
                self.model.instance_ready(self)
            self.loaded.set_result(None)
        elif kind == FAILED:
            text, trace = parts
            self._advance(Event.LOAD_FAILED)
            self.reason = text
            if trace:
                logger.error("model '%s', instance '%s' did not load", self.model.name, self.name, extra=about(self.facts, str(trace)))
            self.loaded.set_exception(LoadFailed(text))
        else:
            raise ProtocolError(f"no control message begins with {kind!r}")

    def _load(self) -> None:
        model, backend = self.model, self.model.server.options.backend
        try:
            outputs = Segment.create(model.server.next_segment_id(), backend.shm_default_byte_size)
        except OutOfSharedMemory as error:
            self.reason = f"Unable to initialize shared memory: {error}"
            self.kill()
            return
        settings = {
            **model.file.settings(),
            "args": {
                "model_config": model.config_json,
                "model_instance_kind": self.spec.kind,
                "model_instance_name": self.name,
                "model_instance_device_id": str(self.spec.device),
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
        }
        channel = self.channel
        assert channel.segment.fd is not None
        self.process.tell((LOAD, settings), [channel.segment.fd, channel.down_bell, channel.up_bell])
        channel.segment.close()
        # At once: a model that loads fast would not find them and ask for more.
        self._give(outputs)
        for segment in model.segments:
            self.announce(segment)

    def _grow(self, nbytes: int) -> None:
        """Gives the stub's arena another segment."""
        if type(nbytes) is not int or nbytes <= 0:
            raise ProtocolError(f"the stub asks for {nbytes!r} bytes of shared memory")
        try:
            segment = Segment.create(self.model.server.next_segment_id(), nbytes)
        except OutOfSharedMemory as error:
            logger.error("model '%s', instance '%s': %s", self.model.name, self.name, error, extra=about(self.facts))
            self.process.tell((SEGMENT, NO_SEGMENT, nbytes, True))
            return
        self._give(segment)

    def _give(self, segment: Segment) -> None:
        # Its descriptor stays open: the stub's tensors may be handed on to other stubs.
        self.channel.loans.outputs[segment.id] = segment
        self.channel.loans.known.add(segment.id)
        self._tell_segment(segment, for_outputs=True)

    def _tell_segment(self, segment: Segment, for_outputs: bool) -> None:
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
        if self.state is not State.READY:
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
