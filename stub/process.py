"""One model instance: loads the model, then executes what comes down the ring until it is told to finish.

The main thread does all of it. A second thread waits for the parent's end of the control socket to close, and then ends the
process, whatever the model is doing: a stub never outlives its server.
"""

from __future__ import annotations

import logging
import os
import platform
import select
import signal
import socket
import sys
import threading
import traceback
import weakref
from time import perf_counter_ns, sleep
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Set, Tuple

import numpy as np

from ..shm.control import FAILED, GROW, HELLO, LOAD, LOG, NO_SEGMENT, READY, SEGMENT, ControlSocket, close_all
from ..shm.dtype import BY_CODE
from ..shm.errors import OutOfSharedMemory, PeerGone, ProtocolError
from ..shm.message import EXECUTE, FINALIZE, INDIRECT, PROTOCOL_VERSION, RESULTS, ErrorCode, decode_down, packer
from ..shm.polling import MICROSECOND, PollBudget
from ..shm.ring import CHANNEL_BYTES, RECORD_BYTES, STARTED, Consumer, Producer, Words
from ..shm.segment import EAGER_BYTES, Segment
from .error import TritonModelException, headline, with_frames
from .execution import check_returned
from .host import host
from .inference import InferenceRequest, InferenceResponse
from .loader import LoadError, load_class
from .logger import ForwardingHandler
from .memory import StubMemory
from .tensor import Tensor

_SLEEP_MS = 1000
"""Longest sleep between two looks at the ring: the doorbell is fenced, this is the belt to its braces."""

_ANSWER_SECONDS = 30.0
"""How long the parent's loop may take to answer on the control socket."""

_REMEMBERED = 256


class StubProcess:
    """The runtime of one instance. ``run`` is all of its life."""

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self._control_lock = threading.Lock()
        self._pack = packer()
        self._handled = 0
        self._unknown_outputs: Set[str] = set()
        self._plans: Dict[Tuple[Any, ...], Tuple[Any, ...]] = {}

    def run(self) -> int:
        """Loads, serves, finalizes; returns the exit code."""
        version = platform.python_version()
        self._control.send((HELLO, PROTOCOL_VERSION, version, np.__version__, sys.executable))
        try:
            message, fds = self._control.receive()
            if message[0] != LOAD or len(message) != 2 or len(fds) != 3:
                raise ProtocolError("the first message to a stub is what to load")
        except PeerGone:
            return 1
        threading.Thread(target=_die_with_parent, args=(self._control.fileno(),), name="stublet-parent", daemon=True).start()
        self._set_up(message[1], fds)
        if not self._load(message[1]):
            return 2
        try:
            self._take_announced()
            self._control.send((READY,))
            self._serve()
            self._finalize()
        except PeerGone:
            return 1
        return 0

    def _set_up(self, settings: Dict[str, Any], fds: List[int]) -> None:
        channel, down_bell, up_bell = fds
        words = Words(Segment.attach(0, channel, CHANNEL_BYTES))
        words.check()
        self._words = words.view
        self._down = Consumer(words, "down", down_bell)
        self._up = Producer(words, "up", up_bell)
        self._bell = select.poll()
        self._bell.register(down_bell, select.POLLIN)
        self._poll = PollBudget(settings["poll_us"] * MICROSECOND)
        self._memory = StubMemory(self._fetch, self._grow, settings["quantum"])
        self._instance: str = settings["args"]["model_instance_name"]
        self._inputs: Sequence[str] = settings["inputs"]
        self._outputs: Dict[str, int] = {name: i for i, name in enumerate(settings["outputs"])}
        self._output_names: Sequence[str] = settings["outputs"]
        self._all_outputs: Set[str] = set(settings["outputs"])
        host.log = self._log
        host.allocate = self._memory.empty
        host.model_dir = os.path.dirname(settings["path"])
        logging.getLogger().addHandler(ForwardingHandler())
        sys.argv = ["stublet.stub"]

    def _load(self, settings: Dict[str, Any]) -> bool:
        """Imports, constructs and initializes; False, and the parent told why, when any of it fails."""
        try:
            self._model = load_class(settings["path"])()
            if hasattr(self._model, "initialize"):
                self._model.initialize(settings["args"])
        except LoadError as error:
            self._control.send((FAILED, str(error), ""))
        except BaseException as error:  # SystemExit too: a model that exits while it loads has not loaded
            exiting = isinstance(error, SystemExit)
            text = f"the model called sys.exit({error}) while it was loaded" if exiting else with_frames(error)
            self._control.send((FAILED, text, traceback.format_exc()))
        else:
            self._execute_model = getattr(self._model, "execute", None) or _no_execute(settings["path"])
            return True
        return False

    def _serve(self) -> None:
        down = self._down
        while True:
            record = down.pop()
            if record is None:
                record = self._wait()
                if record is None:
                    continue
            message = decode_down(record)
            if message[0] == INDIRECT:
                _, segment, offset, nbytes = message
                block = self._memory.base(segment, offset, nbytes)
                message = decode_down(block.tobytes())
                self._memory.dropped.append((segment, offset))
            if message[0] == FINALIZE:
                return
            if message[0] == EXECUTE:
                _, releases, batches = message
                if releases:
                    self._memory.release(releases)
                for batch in batches:
                    self._send(self._execute(batch))

    def _wait(self) -> Optional[bytes]:
        """The next record, or None after a sleep without one: polls for a while if that paid lately, then sleeps until the bell."""
        down = self._down
        started = perf_counter_ns()
        deadline = started + self._poll.nanoseconds()
        pause = os.sched_yield
        while perf_counter_ns() < deadline:
            if down.ready():
                break
            pause()  # lets whoever shares this core go first, and costs half a microsecond when nobody does
        else:
            if self._memory.dropped:
                self._send([])
            if down.lie_down():
                self._bell.poll(_SLEEP_MS)
                down.stay_awake()
                down.silence()
        self._poll.waited(perf_counter_ns() - started)
        return down.pop()

    def _execute(self, batch: Sequence[Tuple[Any, ...]]) -> List[Tuple[Any, ...]]:
        """One call of ``execute``; a result for each request."""
        self._handled += len(batch)
        self._words[STARTED // 8] = self._handled
        requests, refs = self._requests(batch)
        took, answers = self._call(requests)
        # Whatever still views a block after this is the model's.
        del requests
        let_go = self._memory.let_go
        return [
            (key, took, ref() is not None and let_go((segment, offset), ref), *answer)
            for (key, segment, offset, *_), ref, answer in zip(batch, refs, answers)
        ]

    def _requests(self, batch: Sequence[Tuple[Any, ...]]) -> Tuple[List[InferenceRequest], List[weakref.ref]]:
        """The requests of a message, and a weak reference to the block of each."""
        requests, refs = [], []
        for _, segment, offset, nbytes, inputs, extras in batch:
            base = self._memory.base(segment, offset, nbytes)
            refs.append(weakref.ref(base))
            plan = self._plans.get(inputs) or self._plan(inputs)
            tensors = [Tensor._over(name, dtype, shape, base, start, size) for name, dtype, shape, start, size in plan]
            if extras:
                requested = extras[1]
                names = self._all_outputs if requested is None else {self._output_names[i] for i in requested}
                requests.append(InferenceRequest._received(tensors, names, extras[0], *extras[2:]))
            else:
                requests.append(InferenceRequest._received(tensors, self._all_outputs))
        return requests, refs

    def _call(self, requests: List[InferenceRequest]) -> Tuple[int, List[Tuple[Any, ...]]]:
        """(nanoseconds in ``execute``, an answer for each request). Nothing of the requests outlives it but what the model keeps."""
        # Taken before: the list is the model's to change.
        wanted = [request._requested for request in requests]
        answers: List[Tuple[Any, ...]] = []
        started = perf_counter_ns()
        try:
            responses = check_returned(self._execute_model(requests), len(wanted))
            took = perf_counter_ns() - started
            for response, names in zip(responses, wanted):
                answers.append(self._answer(response, names))
        except BaseException as error:  # SystemExit too: only os._exit ends an instance
            took = perf_counter_ns() - started
            for blocks, *_ in answers:
                self._memory.take_back(blocks)
            answers = [self._failure(error)] * len(wanted)
        return took, answers

    def _plan(self, inputs: Tuple[Any, ...]) -> Tuple[Any, ...]:
        """The inputs of a message with names and types instead of numbers. Those of a model repeat, so they are remembered."""
        plan = tuple((self._inputs[name], BY_CODE[dtype], shape, start, size) for name, dtype, shape, start, size in inputs)
        if len(self._plans) >= _REMEMBERED:
            self._plans.clear()
        self._plans[inputs] = plan
        return plan

    def _answer(self, response: InferenceResponse, wanted: Set[str]) -> Tuple[Any, ...]:
        """(blocks, outputs, error, parameters) of one response."""
        error = response._error
        if error is not None:
            return (), (), (error.code(), error.message()), ""
        outputs = self._outputs
        tensors = [(outputs[t._name], t) for t in response._output_tensors if t._name in wanted]
        if len(tensors) != len(response._output_tensors):
            self._note_unknown(response)
        placed = self._memory.place(tensors)
        parameters = response._parameters
        return placed.blocks, placed.outputs, (), "" if parameters == "{}" else parameters

    def _note_unknown(self, response: InferenceResponse) -> None:
        """Says once of each output that the configuration does not have that nobody will get it."""
        for name in {tensor._name for tensor in response._output_tensors} - self._all_outputs - self._unknown_outputs:
            self._unknown_outputs.add(name)
            self._log("WARNING", "model.py", 0, f"the output '{name}' of '{self._instance}' is not in its configuration and is dropped")

    def _failure(self, error: BaseException) -> Tuple[Any, ...]:
        """The whole batch failed: the traceback goes to the log, the message to the client."""
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        file, line = (frame.tb_frame.f_code.co_filename, frame.tb_lineno) if frame is not None else ("model.py", 0)
        text = f"Failed to process the request(s) for model '{self._instance}', message: {headline(error)}"
        self._log(
            "ERROR", os.path.basename(file), line, text + "\n" + "".join(traceback.format_exception(None, error, error.__traceback__))
        )
        # The frames hold the requests, and so their memory, for as long as the exception lives.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        return (), (), (ErrorCode.INTERNAL, text), ""

    def _send(self, results: Sequence[Tuple[Any, ...]]) -> None:
        memory = self._memory
        releases = []
        while memory.dropped:
            releases.append(memory.dropped.popleft())
        record = self._pack((RESULTS, releases, results))
        if len(record) > RECORD_BYTES:
            record = self._pack((INDIRECT, *memory.write(record), len(record)))
        while not self._up.push(record):
            # Every slot is taken: the parent is behind. If it is gone, the watching thread ends this process.
            self._up.ring()
            sleep(0.001)
        self._up.ring()

    def _finalize(self) -> None:
        if not hasattr(self._model, "finalize"):
            return
        try:
            self._model.finalize()
        except BaseException:
            self._log("ERROR", "model.py", 0, f"finalize of '{self._instance}' failed\n{traceback.format_exc()}")

    def _log(self, level: str, file: str, line: int, text: str) -> None:
        self._control.send((LOG, level, file, line, text))

    def _fetch(self, segment_id: int) -> Segment:
        """Reads the control socket until the segment is there, which the parent sent before it named it."""
        with self._control_lock:
            while segment_id not in self._memory.segments:
                self._keep(self._receive_segment())
            found: Segment = self._memory.segments[segment_id]
            return found

    def _grow(self, nbytes: int) -> Segment:
        with self._control_lock:
            self._control.send((GROW, nbytes))
            while True:
                segment = self._receive_segment()
                if segment is not None and segment.size >= nbytes:
                    return segment
                self._keep(segment)

    def _take_announced(self) -> None:
        """Maps what the parent has sent so far, so that the first request finds it mapped."""
        readable = select.poll()
        readable.register(self._control.fileno(), select.POLLIN)
        with self._control_lock:
            while readable.poll(0):
                self._keep(self._receive_segment())

    def _keep(self, segment: Optional[Segment]) -> None:
        """A segment for outputs that came unasked, as the first one does."""
        if segment is not None:
            self._memory.arena.add(segment)

    def _receive_segment(self) -> Optional[Segment]:
        """One segment from the control socket; returned if it is for outputs, put in the table if it holds requests."""
        if not _readable(self._control.fileno(), _ANSWER_SECONDS):
            raise ProtocolError(f"the server did not send a segment within {_ANSWER_SECONDS:.0f} seconds")
        message, fds = self._control.receive()
        if message[0] != SEGMENT or len(message) != 4:
            close_all(fds)
            raise ProtocolError(f"a segment was due, message {message[0]!r} came")
        _, segment_id, nbytes, for_outputs = message
        if segment_id == NO_SEGMENT:
            raise OutOfSharedMemory(f"Failed to increase the shared memory pool size to {nbytes} bytes. There is no room for it.")
        # A large segment of requests is reserved as it fills: there is nothing yet behind its pages.
        segment = Segment.attach(segment_id, fds[0], nbytes, map_pages=for_outputs or nbytes <= EAGER_BYTES)
        if not for_outputs:
            self._memory.segments[segment_id] = segment
            return None
        return segment


def _no_execute(path: str) -> Callable[[Any], NoReturn]:
    """Stands in for a missing ``execute``, which is an error of each request, not of loading (spec 2.4)."""

    def execute(_requests: Any) -> NoReturn:
        raise TritonModelException(f"Python model {path} does not implement `execute` method.")

    return execute


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _die_with_parent(control_fd: int) -> NoReturn:
    hang_up = select.poll()
    hang_up.register(control_fd, 0)
    while not hang_up.poll(None):
        continue
    os._exit(1)


def _ignore(_signum: int, _frame: object) -> None:
    """A handler that does nothing, rather than SIG_IGN, so that programs the model starts have the default action again."""


def main(control_fd: int) -> int:
    """Runs the stub whose control socket is that descriptor; returns the exit code."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        # A Ctrl-C in the terminal reaches every process of it, but the server decides when its models end.
        signal.signal(signum, _ignore)
        signal.siginterrupt(signum, False)
    # A program that the model starts shall not keep the socket open after the stub's end.
    os.set_inheritable(control_fd, False)
    for stream in (sys.stdout, sys.stderr):
        # Pipes to the server's log: each line when it is printed.
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    stub = StubProcess(ControlSocket(socket.socket(fileno=control_fd)))
    try:
        return stub.run()
    except PeerGone:
        return 1
