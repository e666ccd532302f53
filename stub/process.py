"""One model instance: loads the model, then executes what comes down the ring until it is told to finish.

The main thread calls ``execute``. Beside it run a thread that reads the control socket, which also ends the process when the server is
gone, whatever the model is doing; and, if the model is asynchronous, its event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, NoReturn, Optional, Sequence, Tuple

import numpy as np

from ..shm.control import AUTO_COMPLETE, CHECKED, COMPLETED, FAILED, HELLO, LOAD, READY, ControlSocket
from ..shm.errors import OutOfSharedMemory, PeerGone, ProtocolError
from ..shm.message import FAILURE, FINAL, FINALIZE, INDIRECT, PROTOCOL_VERSION, RETURNED, ErrorCode, decode_down
from ..shm.polling import MICROSECOND, PollBudget
from ..shm.ring import CHANNEL_BYTES, OPEN_REQUESTS, STARTED, Consumer, Producer, Words
from ..shm.segment import Segment
from . import auto_complete
from .caller import Caller
from .client_regions import AnyRegion, ClientRegions
from .error import TritonModelException, teller
from .event_loop import EventLoop
from .exchange import Exchange
from .execution import Execution, Executions
from .forked import ForkedCaller, refuse
from .host import host
from .inbox import Inbox, Waiter
from .loader import LoadError, load_class
from .logger import ForwardingHandler, LogLevel
from .memory import StubMemory
from .outbox import Outbox
from .placing import Placing
from .server_link import ServerLink

if TYPE_CHECKING:
    from .cuda.exports import Exports

_SLOT = OPEN_REQUESTS - 1

Batch = Sequence[Tuple[Any, ...]]


class Stub:
    """The runtime of one instance. ``run`` is all of its life."""

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self._link = ServerLink(control)
        self._batches: Deque[Batch] = deque()
        self._finalizing = False
        self._forked = False
        self._loop = EventLoop()
        self._executing = False
        self._is_verbose: Callable[[], bool] = lambda: False
        # Each is counted by one thread only, so that no lock is needed.
        self._coroutines_begun = 0
        self._coroutines_ended = 0
        self._tasks: Dict[int, asyncio.Task[None]] = {}

    def run(self) -> int:
        """Loads, serves, finalizes; returns the exit code."""
        self._control.send((HELLO, PROTOCOL_VERSION, platform.python_version(), np.__version__, sys.executable))
        message, fds = self._control.receive()
        if message[0] == AUTO_COMPLETE and len(message) == 2 and not fds:
            return self._complete(message[1])
        if message[0] != LOAD or len(message) != 2 or len(fds) != 3:
            raise ProtocolError("the first message to a stub is what to load")
        self._set_up(message[1], fds)
        self._link.start()
        if not self._load(message[1]):
            return 2
        self._link.send((READY, hasattr(self._model, "is_ready")))
        self._caller.allowed = True
        self._serve()
        self._caller.allowed = False
        self._loop.stop()
        self._finalize()
        self._outbox.closed = True
        self._link.flush()
        return 0

    def _set_up(self, settings: Dict[str, Any], fds: List[int]) -> None:
        channel, down_bell, up_bell = fds
        segment = Segment.attach(0, channel, CHANNEL_BYTES)
        segment.close()
        words = Words(segment)
        words.check()
        self._words = words.view
        self._cancelled = words.cancelled
        self._is_verbose = lambda: words.verbose
        self._instance: str = settings["args"]["model_instance_name"]
        self._decoupled: bool = settings["decoupled"]
        self._max_concurrent: int = settings["max_concurrent"]
        self._cancel_coroutines: bool = settings["cancel_coroutines"]
        poll_ns = settings["poll_us"] * MICROSECOND
        self._waiter = Waiter(PollBudget(poll_ns))
        self._inbox = Inbox(Consumer(words, "down", down_bell), down_bell, self._route, self._before_sleep, words.shares_core)
        link = self._link
        self._memory = StubMemory(link.segments, link.fetch, self._grow, self._inbox.look, settings["quantum"])
        self._outbox = Outbox(Producer(words, "up", up_bell), self._memory)
        inputs, outputs = settings["inputs"], settings["outputs"]
        regions = ClientRegions(self._memory, link.fetch_region, settings["args"]["model_name"], inputs, outputs, settings["device_inputs"])
        placing = Placing(self._memory, regions, outputs, self._instance, self._warn)
        Exchange.outbox, Exchange.placing = self._outbox, placing
        Exchange.cancelled_flags, Exchange.held_flags, Exchange.decoupled = words.cancelled, words.held, self._decoupled
        tell = teller(settings["expose_tracebacks"])
        self._executions = Executions(self._memory, self._outbox, placing, regions, inputs, outputs, self._instance, link.log, tell)
        self._caller = Caller(self._inbox, self._outbox, self._memory, PollBudget(poll_ns), self._blocks_execute)
        self._memory.make_exports = lambda: self._make_exports(settings)
        link.import_segment = self._import_segment
        link.import_region = self._import_region
        link.on_check = self._check_ready
        link.on_cancel = self._cancel_coroutine
        link.on_shed = lambda keep: link.dropped([*self._memory.shed(keep), *self._memory.shed_exports()])
        self._bind_host(settings)
        host.instance = self._instance
        host.model_config = settings["args"]["model_config"]
        host.allocate = self._allocate
        host.free_memory = self._memory.free_bytes
        host.caller = self._caller
        os.register_at_fork(after_in_child=self._in_forked_child)

    def _make_exports(self, settings: Dict[str, Any]) -> Exports:
        from .cuda.sharing import make_exports

        return make_exports(self._link, self._inbox, self._memory, self._outbox, settings, self._warn)

    def _import_region(self, *region: Any) -> AnyRegion:
        from .cuda.sharing import import_region

        return import_region(self._memory, self._outbox, *region)

    def _import_segment(self, *segment: Any) -> Segment:
        from .cuda.sharing import import_segment

        return import_segment(self._link, self._memory, self._outbox, *segment)

    def _bind_host(self, settings: Dict[str, Any]) -> None:
        link = self._link
        host.log = lambda level, *line: link.log(level, *line) if level != LogLevel.VERBOSE.value or self._is_verbose() else None
        host.ask = link.ask
        host.tell = link.tell
        host.model_dir = settings["model_dir"]
        logging.getLogger().addHandler(ForwardingHandler())
        sys.argv = ["stublet.stub"]

    def _complete(self, settings: Dict[str, Any]) -> int:
        """Runs ``auto_complete_config``, and nothing else."""
        self._link.start()
        self._is_verbose = lambda: settings["verbose"]
        host.instance = settings["model_name"]
        self._bind_host(settings)
        completed = self._reporting(lambda: auto_complete.run(settings), settings)
        if completed is None:
            return 2
        self._link.send((COMPLETED, completed))
        return 0

    def _load(self, settings: Dict[str, Any]) -> bool:
        """Imports, constructs and initializes; False, and the parent told why, when any of it fails."""

        def load() -> bool:
            self._model = load_class(settings["path"], settings["backend_dir"])()
            if hasattr(self._model, "initialize"):
                self._model.initialize(settings["args"])
            self._execute_model = getattr(self._model, "execute", None) or _no_execute(settings["path"])
            return True

        return self._reporting(load, settings) is not None

    def _reporting(self, function: Callable[[], Any], settings: Dict[str, Any]) -> Any:
        """What the function returns; None, and the parent told why, if it raises."""
        tell = teller(settings["expose_tracebacks"])
        try:
            return function()
        except LoadError as error:
            self._link.send((FAILED, str(error), ""))
        except BaseException as error:  # SystemExit too: a model that exits while it loads has not loaded
            text = f"the model called sys.exit({error}) while it was loaded" if isinstance(error, SystemExit) else tell(error)
            self._link.send((FAILED, text, traceback.format_exc()))
        return None

    # Executing

    def _serve(self) -> None:
        waiter, batches, inbox = self._waiter, self._batches, self._inbox
        while True:
            waiter.done = False
            running = self._coroutines_begun - self._coroutines_ended
            if batches and running < self._max_concurrent:
                self._execute(batches.popleft())
            elif self._finalizing and not batches and not running:
                return
            else:
                inbox.wait(waiter)

    def _route(self, record: bytes) -> None:
        """Takes a record that came down the ring. In the thread that leads."""
        message = decode_down(record)
        if message[0] == INDIRECT:
            _, segment, offset, nbytes = message
            (block,) = self._memory.receive([(segment, offset, nbytes)])
            message = decode_down(block.tobytes())
            self._memory.dropped.append((segment, offset))
        if message[0] == FINALIZE:
            self._finalizing = True
            self._inbox.routed(self._waiter)
            return
        _, releases, batches, replies = message
        if releases:
            self._memory.release(releases)
        if batches:
            self._batches.extend(batches)
            self._inbox.routed(self._waiter)
        for reply in replies:
            self._caller.route(reply)

    def _before_sleep(self) -> None:
        while self._memory.dropped and not self._outbox.closed:
            self._outbox.post(())

    def _execute(self, batch: Batch) -> None:
        """One call of ``execute``."""
        self._words[STARTED // 8] = batch[-1][0] + 1
        cancelled = self._cancelled
        # The first one by itself: for most batches that is all, and a generator would take longer than the look.
        if cancelled[batch[0][0] & _SLOT] or (len(batch) > 1 and any(cancelled[message[0] & _SLOT] for message in batch)):
            batch = self._refuse_cancelled(batch)
            if not batch:
                return
        # Nothing here may hold the requests when ``execute`` returns: what does then is the model's.
        holder, execution = self._executions.begin(batch)
        if not holder[0]:
            return
        self._executing = True
        try:
            values = [self._execute_model(holder.pop())]
        except BaseException as error:  # SystemExit too: only os._exit ends an instance
            self._executing = False
            if self._forked:
                _leave(error)
            execution.raised(error)
            return
        self._executing = False
        if self._forked:
            _leave()
        value = values[0]
        if type(value) is not list and hasattr(value, "__await__"):
            values.clear()
            self._run_coroutine(execution, value)
            return
        del value
        if self._decoupled and values[0] is None:
            execution.went_on()
        else:
            execution.returned(values)

    def _refuse_cancelled(self, batch: Batch) -> Batch:
        """Answers the requests that nobody wants any more, which spares the model the work; returns the others."""
        answer = ((), (), (ErrorCode.CANCELLED, "the request was cancelled before it was executed"), "")
        wanted, results = [], []
        for message in batch:
            if self._cancelled[message[0] & _SLOT]:
                results.append((message[0], FINAL | RETURNED | FAILURE, 0, (), *answer))
            else:
                wanted.append(message)
        self._outbox.post(results)
        return wanted

    # Coroutines

    def _run_coroutine(self, execution: Execution, awaitable: Any) -> None:
        """Runs what an ``async def execute`` returned. A decoupled model's goes on in the background; any other's is waited for, unless
        the model may be executed several times at once."""
        if self._decoupled:
            self._loop.run(self._go_on(execution, awaitable))
            execution.went_on()
        else:
            self._coroutines_begun += 1
            self._loop.run(self._await(execution, awaitable))

    async def _go_on(self, execution: Execution, awaitable: Any) -> None:
        self._register(execution)
        try:
            returned = await awaitable
            if self._forked:
                _leave()
            if returned is not None:
                self._warn(f"execute of the decoupled model instance '{self._instance}' returned {type(returned)}, which nobody gets")
        except BaseException as error:
            if self._forked:
                _leave(error)
            execution.failed_later(error)
        finally:
            self._unregister(execution)

    async def _await(self, execution: Execution, awaitable: Any) -> None:
        self._register(execution)
        holder = [awaitable]
        del awaitable
        try:
            values = [await holder.pop()]
            if self._forked:
                _leave()
        except BaseException as error:
            if self._forked:
                _leave(error)
            execution.raised(error)
        else:
            execution.returned(values)
        finally:
            self._unregister(execution)
            self._coroutines_ended += 1
            self._inbox.finish(self._waiter)

    def _register(self, execution: Execution) -> None:
        task = asyncio.current_task()
        assert task is not None
        for exchange in execution.exchanges:
            self._tasks[exchange.key] = task
        if self._cancel_coroutines:
            # The news that nobody waits may have come before the task was there.
            self._cancel_unwanted(task)

    def _unregister(self, execution: Execution) -> None:
        for exchange in execution.exchanges:
            self._tasks.pop(exchange.key, None)

    def _cancel_coroutine(self, key: int) -> None:
        """The server says that nobody wants the answer to a request any more. In the control thread."""

        def cancel() -> None:
            task = self._tasks.get(key)
            if task is not None:
                self._cancel_unwanted(task)

        self._loop.call(cancel)

    def _cancel_unwanted(self, task: asyncio.Task[None]) -> None:
        """Cancels a task, once, if nobody wants the answer to any of its requests. In the loop."""
        keys = [key for key, other in self._tasks.items() if other is task]
        if all(self._cancelled[key & _SLOT] for key in keys):
            for key in keys:
                del self._tasks[key]
            task.cancel()

    def _blocks_execute(self) -> bool:
        """Whether this is a thread without which ``execute`` does not return."""
        thread = threading.current_thread()
        if thread is self._loop.thread:
            return not self._decoupled and self._max_concurrent == 1
        return self._executing and thread is threading.main_thread()

    # Readiness

    def _check_ready(self, number: int) -> None:
        """In the control thread, which must not wait for the model."""
        threading.Thread(target=self._run_check, args=(number,), name="stublet-is-ready", daemon=True).start()

    def _run_check(self, number: int) -> None:
        def tell(answer: Any) -> None:
            self._link.send((CHECKED, number, answer if type(answer) is bool else None))

        async def tell_later(awaitable: Any) -> None:
            try:
                tell(await awaitable)
            except BaseException:
                self._warn(f"is_ready of '{self._instance}' failed", traceback.format_exc())
                tell(None)

        try:
            answer = self._model.is_ready()
        except BaseException:
            self._warn(f"is_ready of '{self._instance}' failed", traceback.format_exc())
            answer = None
        if hasattr(answer, "__await__"):
            self._loop.run(tell_later(answer))
        else:
            tell(answer)

    # The end

    def _finalize(self) -> None:
        if not hasattr(self._model, "finalize"):
            return
        if signal.getsignal(signal.SIGTERM) is _ignore:
            # The server sends it when the time is over.
            signal.signal(signal.SIGTERM, _out_of_time)
        try:
            self._model.finalize()
        except BaseException:
            self._link.log("ERROR", "model.py", 0, f"finalize of '{self._instance}' failed", traceback.format_exc())

    def _in_forked_child(self) -> None:
        """The model forked: what the child must not touch is taken from it."""
        self._forked = True
        self._inbox.forked()
        self._outbox.forked()
        self._memory.forked()
        self._link.forked()
        # multiprocessing ends its workers so. The stub itself takes no notice, and what it does not do they inherit.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        host.caller = ForkedCaller(self._control)
        host.ask = refuse
        host.allocate = lambda nbytes: np.empty(nbytes, np.uint8)

    def _warn(self, text: str, exception: str = "") -> None:
        self._link.log("WARNING", "model.py", 0, text, exception)

    def _allocate(self, nbytes: int) -> np.ndarray:
        """As the model calls it."""
        try:
            return self._memory.empty(nbytes)
        except OutOfSharedMemory as error:
            raise TritonModelException(str(error)) from error

    def _grow(self, nbytes: int) -> Segment:
        link, memory = self._link, self._memory
        try:
            return link.grow(nbytes, memory.arena.add)
        except OutOfSharedMemory:
            unused = memory.shed(0, at_once=True)
            if not unused:
                raise
            # There may be room where blocks of other sizes were.
            link.dropped(unused)
            link.flush()
            return link.grow(nbytes, memory.arena.add)


def _no_execute(path: str) -> Callable[[Any], NoReturn]:
    """Stands in for a missing ``execute``, which is an error of each request, not of loading (spec 2.4)."""

    def execute(_requests: Any) -> NoReturn:
        raise TritonModelException(f"Python model {path} does not implement `execute` method.")

    return execute


def _leave(error: Optional[BaseException] = None) -> NoReturn:
    """Ends a process that the model forked and that came back from ``execute``: it would take the stub's work from it."""
    if error is not None:
        traceback.print_exception(None, error, error.__traceback__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if error is None else 1)


def _ignore(_signum: int, _frame: object) -> None:
    """A handler that does nothing, rather than SIG_IGN, so that programs the model starts have the default action again."""


def _out_of_time(_signum: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise TimeoutError("finalize did not return in time")


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
    stub = Stub(ControlSocket(socket.socket(fileno=control_fd)))
    try:
        return stub.run()
    except PeerGone:
        return 1
