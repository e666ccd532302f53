"""One instance of a model: its stub process, its rings, and what it has been lent."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import signal
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Set, Tuple

from ..shm.arena import Block
from ..shm.control import FAILED, GROW, HELLO, LOAD, LOG, NO_SEGMENT, READY, SEGMENT, ControlSocket
from ..shm.errors import OutOfSharedMemory, PeerGone, ProtocolError
from ..shm.message import EXECUTE, FINALIZE, INDIRECT, PROTOCOL_VERSION, RESULTS, decode_up, packer
from ..shm.polling import PollBudget, poll_limit
from ..shm.ring import CHANNEL_BYTES, RECORD_BYTES, Consumer, Producer, Words
from ..shm.segment import Segment, SegmentTable
from . import errors
from .lifecycle import Event, IllegalTransition, State, advance
from .log import stub_logger
from .model_config import InstanceSpec
from .request import Lease, Outcome, OutputPlan, Request, Response
from .stub_output import LineReader

if TYPE_CHECKING:
    from .model import Model

_HAND_OVER_NS = 20_000
"""What an answer takes beside the execution that the stub reports, when nobody sleeps."""

STUB_POLL_US = 500
PARENT_POLL_US = 100

logger = logging.getLogger(__name__)


class LoadFailed(Exception):
    """An instance could not be made ready; the text is the reason."""


class Instance:
    """``start`` makes the stub; from then on ``state`` says how it is. Methods named ``on_`` run in the server's loop; those that touch
    the rings (``hand``, ``flush``, ``drain``) are called under the model's lock, in any thread."""

    def __init__(self, model: Model, spec: InstanceSpec) -> None:
        self.model = model
        self.name = spec.name
        self.spec = spec
        self.state = State.STARTING
        self.reason = ""
        self.pid: Optional[int] = None
        self.in_flight: Dict[int, Request] = {}
        self.pollers = 0
        self.broken = False
        """The stub broke the protocol of the rings: nothing in them is believed any more."""
        self.poll = PollBudget(poll_limit(PARENT_POLL_US))
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[None] = self._loop.create_future()
        self.loaded.add_done_callback(_retrieve)
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._handed = 0
        self._pending: List[Tuple[Any, ...]] = []
        self._lent: Dict[Tuple[int, int], Block] = {}
        self._kept: Set[Tuple[int, int]] = set()
        self._releases: Deque[Tuple[int, int]] = deque()
        self._segments = SegmentTable()
        self._pack = packer()
        self._pidfd: Optional[int] = None
        self._unwritten_finalize = False
        self._log = stub_logger(self)

    def start(self) -> None:
        """Asks the fork server for the process. News of it arrives as events.

        Raises:
            OutOfSharedMemory: no room for its memory.
        """
        server = self.model.server
        self._channel = Segment.create(0, CHANNEL_BYTES)
        words = Words(self._channel)
        words.format()
        self._words = words
        # Non-blocking at both ends: a bell that is read twice is no reason to wait.
        self._down_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.up_bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._down = Producer(words, "down", self._down_bell)
        self._up = Consumer(words, "up", self.up_bell)
        self._control, far = ControlSocket.pair()
        self._stdout = LineReader(self._loop, lambda line: self._log(logging.INFO, "stdout", 0, line))
        self._stderr = LineReader(self._loop, lambda line: self._log(logging.WARNING, "stderr", 0, line))
        self._control.set_blocking(False)
        self._loop.add_reader(self._control.fileno(), self._on_control)
        with far:
            server.spawner.spawn(
                self, self.model.interpreter, self.model.environment, (far.fileno(), self._stdout.write_end, self._stderr.write_end)
            )
        self._stdout.close_write_end()
        self._stderr.close_write_end()

    # Life

    def on_spawned(self, pid: int) -> None:
        self.pid = pid
        with suppress(OSError):  # it has ended already, or the container's system calls do not include this one
            self._pidfd = os.pidfd_open(pid)
        if self.state is State.STOPPING:
            self.kill()

    def on_exit(self, status: Optional[int]) -> None:
        """The process ended: with that exit code, or, negative, by that signal; None when nobody could wait for it."""
        how = _describe_exit(status)
        self._loop.remove_reader(self._control.fileno())
        with suppress(PeerGone, BlockingIOError, ProtocolError, IllegalTransition, TypeError, ValueError, KeyError):
            while True:
                # What it said last, its reason above all.
                self._handle(*self._control.receive())
        self._stdout.finish()
        self._stderr.finish()
        was = self.state
        self.state = advance(self.state, Event.EXITED)
        if self.state is State.FAILED and not self.reason:
            doing = "loading the model" if was is not State.READY else "serving"
            self.reason = f"Stub process '{self.name}' is not healthy: it ended with {how} while {doing} (pid {self.pid})"
            last = self._stderr.last_lines()
            if last and was is not State.READY:
                self.reason += f"; its last words were:\n{last}"
            logger.error("%s", self.reason)
        if not self.loaded.done():
            self.loaded.set_exception(LoadFailed(self.reason or f"the stub was stopped ({how})"))
        if was is State.READY or was is State.STOPPING:
            self._loop.remove_reader(self.up_bell)
            self.model.instance_gone(self)
        self._close()
        if not self.ended.done():
            self.ended.set_result(None)

    def abandoned(self) -> Tuple[List[Tuple[Request, Outcome]], List[Request]]:
        """After the end: the requests that it answered or was executing, with the outcome of each, and those that it had not started."""
        settled: List[Tuple[Request, Outcome]] = []
        if not self.broken:
            with suppress(ProtocolError):
                self.drain(settled)
        started = self._words.started
        unstarted = []
        for key, request in self.in_flight.items():
            if key < started:
                settled.append((request, errors.Unavailable(self.reason or "the model is being unloaded")))
                self._lent.pop(request.block.key).release()
            else:
                unstarted.append(request)
                self._lent.pop(request.block.key)
        self.in_flight.clear()
        self._pending.clear()
        for block in self._lent.values():
            block.release()
        self._lent.clear()
        self._kept.clear()
        return settled, unstarted

    def finalize(self) -> None:
        """Tells the stub to finish what it was handed, call finalize, and exit; one that has not loaded has nothing to finish."""
        was = self.state
        self._advance(Event.STOP)
        if was is State.READY:
            with self.model.lock:
                self._unwritten_finalize = True
                self.flush()
        else:
            self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            elif self.pid is not None and not self.ended.done():
                os.kill(self.pid, signal.SIGKILL)

    def condemn(self, why: str) -> None:
        """The stub broke the protocol: it is ended, and fails what it holds."""
        if self.state not in (State.FAILED, State.STOPPED):
            self.reason = self.reason or f"Stub process '{self.name}' is not healthy: it was ended for a protocol error: {why}"
            logger.error("%s", self.reason)
            self.kill()

    def announce(self, segment: Segment) -> None:
        """Sends a segment of the model's request arena. In any thread."""
        self._tell_segment(segment, for_outputs=False)

    def _close(self) -> None:
        self._control.close()
        for fd in (self._down_bell, self.up_bell, self._pidfd):
            if fd is not None:
                os.close(fd)
        self._pidfd = None
        self._channel.close()

    def _advance(self, event: Event) -> None:
        self.state = advance(self.state, event)

    # The control socket

    def _on_control(self) -> None:
        try:
            self._handle(*self._control.receive())
        except BlockingIOError:
            return
        except PeerGone:
            # The fork server will say how the process ended; until then there is nothing more to read.
            self._loop.remove_reader(self._control.fileno())
        except (ProtocolError, IllegalTransition) as error:
            self.condemn(str(error))
        except OutOfSharedMemory as error:
            self.reason = f"Unable to initialize shared memory: {error}"
            self.kill()
        except (TypeError, ValueError, KeyError) as error:
            self.condemn(f"malformed control message: {error}")

    def _handle(self, message: Tuple[Any, ...], fds: List[int]) -> None:
        for fd in fds:
            os.close(fd)
        kind, *parts = message
        if kind == LOG:
            level, file, line, text = parts
            self._log(_LEVELS[level], file, line, text)
        elif kind == GROW:
            (nbytes,) = parts
            self._grow(nbytes)
        elif kind == HELLO:
            protocol, python, numpy, executable = parts
            self._advance(Event.HELLO)
            if protocol != PROTOCOL_VERSION:
                raise ProtocolError(f"the stub speaks protocol {protocol}, this server {PROTOCOL_VERSION}; install one version of stublet")
            logger.debug("stub '%s' (pid %s): Python %s, numpy %s, %s", self.name, self.pid, python, numpy, executable)
            self._load()
        elif kind == READY:
            self._advance(Event.LOADED)
            if self.state is State.READY:
                self._up.lie_down()
                self._loop.add_reader(self.up_bell, self.model.on_bell, self)
                self.model.instance_ready(self)
            self.loaded.set_result(None)
        elif kind == FAILED:
            text, trace = parts
            self._advance(Event.LOAD_FAILED)
            self.reason = text
            if trace:
                logger.error("model '%s', instance '%s' did not load:\n%s", self.model.name, self.name, trace.rstrip())
            self.loaded.set_exception(LoadFailed(text))
        else:
            raise ProtocolError(f"no control message begins with {kind!r}")

    def _load(self) -> None:
        model = self.model
        outputs = Segment.create(model.server.next_segment_id(), model.server.options.backend.shm_default_byte_size)
        self._segments[outputs.id] = outputs
        settings = {
            "path": model.path,
            "args": {
                "model_config": model.config_json,
                "model_instance_kind": self.spec.kind,
                "model_instance_name": self.name,
                "model_instance_device_id": str(self.spec.device),
                "model_repository": model.directory,
                "model_version": str(model.version),
                "model_name": model.name,
            },
            "inputs": [spec.name for spec in model.inputs],
            "outputs": [spec.name for spec in model.outputs],
            "poll_us": STUB_POLL_US if poll_limit(STUB_POLL_US) else 0,
            "quantum": model.server.options.backend.shm_growth_byte_size,
        }
        assert self._channel.fd is not None
        self._tell((LOAD, settings), [self._channel.fd, self._down_bell, self.up_bell])
        self._channel.close()
        # At once: a model that loads fast would not find them and ask for more.
        self._tell_segment(outputs, for_outputs=True)
        outputs.close()
        for segment in model.segments:
            self._tell_segment(segment, for_outputs=False)

    def _grow(self, nbytes: int) -> None:
        """Gives the stub's arena another segment."""
        if type(nbytes) is not int or nbytes <= 0:
            raise ProtocolError(f"the stub asks for {nbytes!r} bytes of shared memory")
        try:
            segment = Segment.create(self.model.server.next_segment_id(), nbytes)
        except OutOfSharedMemory as error:
            logger.error("model '%s', instance '%s': %s", self.model.name, self.name, error)
            self._tell((SEGMENT, NO_SEGMENT, nbytes, True), [])
            return
        self._segments[segment.id] = segment
        self._tell_segment(segment, for_outputs=True)
        segment.close()

    def _tell_segment(self, segment: Segment, for_outputs: bool) -> None:
        assert segment.fd is not None
        self._tell((SEGMENT, segment.id, segment.size, for_outputs), [segment.fd])

    def _tell(self, message: Tuple[Any, ...], fds: List[int]) -> None:
        try:
            self._control.send(message, fds)
        except PeerGone:
            return
        except TimeoutError as error:
            self.condemn(str(error))

    # The rings

    def hand(self, request: Request) -> None:
        """Puts a request in the next record."""
        key = self._handed
        self._handed = key + 1
        block = request.block
        self.in_flight[key] = request
        self._lent[block.key] = block
        self._pending.append(((key, block.segment.id, block.offset, request.nbytes, request.inputs, request.extras),))

    def flush(self) -> None:
        """Writes what is pending as one record and rings the bell if the stub sleeps."""
        if self._pending:
            releases = []
            while self._releases:
                releases.append(self._releases.popleft())
            record = self._pack((EXECUTE, releases, self._pending))
            if len(record) > RECORD_BYTES:
                record = self._indirect(record)
            if not self._down.push(record):
                # Cannot be: a record holds at least one request, and no more are handed over than there are slots.
                raise ProtocolError("the stub does not take its records")
            self._pending = []
        if self._unwritten_finalize and self._down.push(self._pack((FINALIZE,))):
            self._unwritten_finalize = False
        self._down.ring()

    def _indirect(self, record: bytes) -> bytes:
        block = self.model.arena.allocate(len(record))
        block.write(0, record, len(record))
        self._lent[block.key] = block
        self._kept.add(block.key)
        return self._pack((INDIRECT, *block.key, len(record)))

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

    def drain(self, done: List[Tuple[Request, Outcome]]) -> None:
        """Takes every record that is there and appends the requests that they answer to ``done``.

        Raises:
            ProtocolError: the stub wrote what it may not; ``done`` has what came before.
        """
        while True:
            record = self._up.pop()
            if record is None:
                return
            message = decode_up(record)
            if message[0] == INDIRECT:
                _, segment_id, offset, nbytes = message
                memory = self._segments.locate(segment_id, offset, nbytes).memory
                message = decode_up(memory[offset : offset + nbytes])
                self._releases.append((segment_id, offset))
                if message[0] != RESULTS:
                    raise ProtocolError("an indirect record names another")
            _, releases, results = message
            for key in releases:
                if key not in self._kept:
                    raise ProtocolError(f"block {key} is given back but was not kept")
                self._kept.remove(key)
                self._lent.pop(key).release()
            for result in results:
                self.poll.waited(result[1] + _HAND_OVER_NS)
                request = self.in_flight.get(result[0])
                if request is None:
                    raise ProtocolError(f"request {result[0]} is answered but was not handed over")
                done.append((request, self._outcome(request, result)))
                del self.in_flight[result[0]]

    def _outcome(self, request: Request, result: Tuple[Any, ...]) -> Outcome:
        _, _nanoseconds, kept, blocks, placed, error, parameters = result
        outcome = errors.BY_CODE[error[0]](error[1]) if error else self._response(blocks, placed, parameters)
        if kept:
            self._kept.add(request.block.key)
        else:
            self._lent.pop(request.block.key).release()
        return outcome

    def _response(self, blocks: Tuple[Tuple[int, int], ...], placed: Tuple[Any, ...], parameters: str) -> Response:
        memo = self.model.memo
        plan: Optional[OutputPlan] = memo.get((placed, len(blocks)))
        if plan is None:
            plan = OutputPlan(self.model.outputs, placed, len(blocks))
            self.model.remember((placed, len(blocks)), plan)
        places: List[Tuple[mmap.mmap, int]] = []
        leases: List[Lease] = []
        try:
            for key, nbytes in zip(blocks, plan.extents):
                place, lease = self._place(key, nbytes)
                places.append(place)
                leases.append(lease)
        except ProtocolError:
            for give_back, item in leases:
                give_back(item)
            raise
        return Response(plan, places, leases, parameters)

    def _place(self, key: Tuple[int, int], nbytes: int) -> Tuple[Tuple[mmap.mmap, int], Lease]:
        """Where a block with outputs is, checked, and what gives it back."""
        segment_id, offset = key
        if segment_id in self._segments:
            return (self._segments.locate(segment_id, offset, nbytes).memory, offset), (self._releases.append, key)
        block = self._lent.get(key)
        if block is None:
            raise ProtocolError(f"block {key} of an output was not lent")
        if nbytes > block.size:
            raise ProtocolError(f"an output lies outside its block {key}")
        block.retain()
        return (block.segment.memory, offset), (block.arena.dropped.append, block)


def _retrieve(future: asyncio.Future[None]) -> None:
    """An instance that fails while nobody waits for it any more is no complaint of asyncio's."""
    if not future.cancelled():
        future.exception()


_LEVELS = {"INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "VERBOSE": logging.DEBUG}


def _describe_exit(status: Optional[int]) -> str:
    if status is None:
        return "an unknown status"
    if status < 0:
        with suppress(ValueError):
            return signal.Signals(-status).name
        return f"signal {-status}"
    return f"exit code {status}"
