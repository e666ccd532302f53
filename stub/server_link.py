"""The control socket at the stub's end, read by a thread of its own: segments, questions and answers, and the end of the server."""

from __future__ import annotations

import itertools
import os
import queue
import select
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Callable, Deque, Dict, List, NoReturn, Optional, Sequence, Tuple, Union

from ..shm.control import (
    ANSWER,
    ASK,
    CANCEL,
    CHECK,
    CUDA_REGION,
    DEVICE_SEGMENT,
    FORGET,
    GROW,
    LOG,
    NO_ROOM,
    PING,
    PONG,
    REGION,
    SEGMENT,
    SHED,
    TELL,
    UNMAPPED,
    ControlSocket,
    close_all,
)
from ..shm.errors import OutOfSharedMemory, PeerGone, ProtocolError
from ..shm.segment import EAGER_BYTES, Segment, SegmentTable
from .client_regions import AnyRegion, Region
from .error import TritonModelException
from .window import Window

_ANSWER_SECONDS = 30.0
"""How long the parent's loop may take to send a segment that it has announced."""

_DROPS = "metric.drop_"
_LINES_AT_ONCE = 32
_LEAST_LINES_BYTES = 48 << 10


class ServerLink:
    """``start`` it once the first message has been read. ``on_check`` is called with the number of a readiness check, ``on_cancel`` with
    the key of a request whose coroutine is to be cancelled, ``on_shed`` with how many bytes of the arena are to be kept at least,
    ``import_segment`` with what the parent says of device memory."""

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self.segments = SegmentTable()
        """The parent's segments and those of other stubs."""
        self._unmapped: Dict[int, Tuple[int, int]] = {}
        """Descriptors and sizes of segments to read for which there was no room."""
        self._regions: Dict[int, AnyRegion] = {}
        self._arrived = threading.Condition()
        # Segments, or why there is none.
        self._for_arena: queue.SimpleQueue[Union[Segment, str]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._answers: Dict[int, queue.SimpleQueue[Tuple[Optional[str], Any]]] = {}
        self._untold: Deque[Tuple[Any, ...]] = deque()
        self._sending = threading.Lock()
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._full = False
        self._forked = False
        self.import_segment: Callable[..., Segment]
        self.import_region: Callable[..., AnyRegion]
        self.on_check: Callable[[int], None] = _ignore
        self.on_cancel: Callable[[int], None] = _ignore
        self.on_shed: Callable[[int], None] = _ignore

    def start(self) -> None:
        """Starts the thread."""
        self._control.set_blocking(False)
        threading.Thread(target=self._run, name="stublet-control", daemon=True).start()

    # Segments

    def fetch(self, segment_id: int) -> Segment:
        """Waits for a segment to read, which the parent sent before it named it.

        Raises:
            ProtocolError: it did not come.
            OutOfSharedMemory: it came, but this process has no room to map it. It may have later.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: segment_id in self.segments or segment_id in self._unmapped, _ANSWER_SECONDS):
                raise ProtocolError(f"the server did not send segment {segment_id} within {_ANSWER_SECONDS:.0f} seconds")
            if segment_id in self._unmapped:
                self._map(segment_id)
            found: Segment = self.segments[segment_id]
            return found

    def _map(self, segment_id: int) -> None:
        """Raises OutOfSharedMemory: there is still no room."""
        fd, nbytes = self._unmapped[segment_id]
        self.segments[segment_id] = Segment.attach(segment_id, os.dup(fd), nbytes, map_pages=False)
        del self._unmapped[segment_id]
        os.close(fd)

    def fetch_region(self, region_id: int) -> AnyRegion:
        """Waits for shared memory of a client's, which the parent sent before it named it.

        Raises:
            ProtocolError: it did not come.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: region_id in self._regions, _ANSWER_SECONDS):
                raise ProtocolError(f"the server did not send region {region_id} within {_ANSWER_SECONDS:.0f} seconds")
            return self._regions[region_id]

    def grow(self, nbytes: int, add: Callable[[Segment], None]) -> Segment:
        """A segment for the arena.

        Args:
            add: takes those that came unasked and are too small.

        Raises:
            OutOfSharedMemory: the server has no room for one.
        """
        asked = False
        while True:
            try:
                # Not with a timeout of 0, for which SimpleQueue may wait for ever: it takes what is left of it for negative, and so for none.
                segment = self._for_arena.get(timeout=_ANSWER_SECONDS) if asked else self._for_arena.get_nowait()
            except queue.Empty:
                if asked:
                    raise ProtocolError(f"the server did not send a segment within {_ANSWER_SECONDS:.0f} seconds") from None
                self._send((GROW, nbytes))
                asked = True
                continue
            if isinstance(segment, str):
                raise OutOfSharedMemory(f"Failed to increase the shared memory pool size to {nbytes} bytes. {segment}")
            if segment.size >= nbytes:
                return segment
            add(segment)

    # What is said to the server

    def send(self, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
        """Sends a message behind everything that was told or logged."""
        with self._sending:
            self._send_untold(wait=True)
            self._send(message, fds)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Asks the server and waits for its answer. In any thread.

        Raises:
            TritonModelException: with the server's text, if it refuses.
        """
        number = next(self._numbers)
        answer: queue.SimpleQueue[Tuple[Optional[str], Any]] = queue.SimpleQueue()
        self._answers[number] = answer
        self.send((ASK, number, what, arguments))
        error, value = answer.get()
        if error is not None:
            raise TritonModelException(error)
        return value

    def tell(self, what: str, *arguments: Any) -> None:
        """Tells the server something. Waits for nothing and nobody: in any thread, and in the collection of garbage."""
        if not (self._forked and what.startswith(_DROPS)):
            self._post((TELL, what, arguments))

    def dropped(self, segments: Sequence[int]) -> None:
        """Tells the server which segments of the arena are no more, and which device memory is in no use, like ``tell``."""
        self._post((SHED, segments))

    def unmapped(self, segment: int, done: bool) -> None:
        """Tells the server that device memory of another's is not open here any more, or could not be closed, like ``tell``."""
        self._post((UNMAPPED, segment, done))

    def log(self, level: str, file: str, line: int, text: str, exception: str = "", request_id: str = "") -> None:
        """Tells the log a line, like ``tell``; ``exception`` is a traceback, ``request_id`` what it is about."""
        self._post((LOG, (level, file, line, text, exception, request_id)))

    def flush(self) -> None:
        """Sends everything that was told or logged."""
        with self._sending:
            self._send_untold(wait=True)

    def forked(self) -> None:
        """In a process that was forked from the stub: what was queued is the stub's to send, and what it drops is not dropped."""
        self._untold.clear()
        self._full = False
        self._sending = threading.Lock()
        self._forked = True

    def _post(self, message: Tuple[Any, ...]) -> None:
        self._untold.append(message)
        if self._full:
            return  # the thread sends it, when there is room again
        # Whoever holds the lock looks at the queue again when it has let go.
        while self._untold and self._sending.acquire(False):
            try:
                if not self._send_untold(wait=False):
                    return
            finally:
                self._sending.release()

    def _send_untold(self, wait: bool) -> bool:
        """Sends what is queued, lines of the log together; False if the socket is full, and the thread sends the rest when it is not."""
        untold = self._untold
        while untold or self._full:
            # Before the last look at the queue: who finds it set leaves what he has there.
            self._full = False
            if not untold:
                continue
            taken = [untold.popleft()]
            message: Tuple[Any, ...] = taken[0]
            if message[0] == LOG:
                size = len(message[1][3])
                while untold and untold[0][0] == LOG and len(taken) < _LINES_AT_ONCE and size < _LEAST_LINES_BYTES:
                    taken.append(untold.popleft())
                    size += len(taken[-1][1][3])
                message = (LOG, [line for _, line in taken])
            if not self._try_send(message, (), wait):
                untold.extendleft(reversed(taken))
                self._full = True
                with suppress(BlockingIOError):
                    os.write(self._woken, b"\0")
                return False
        return True

    def _send(self, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
        self._try_send(message, fds, wait=True)

    def _try_send(self, message: Sequence[Any], fds: Sequence[int], wait: bool) -> bool:
        while True:
            try:
                self._control.send(message, fds)
                return True
            except PeerGone:
                return True
            except TimeoutError:
                if not wait:
                    return False
                writable = select.poll()
                writable.register(self._control.fileno(), select.POLLOUT)
                writable.poll(_ANSWER_SECONDS * 1000)

    # The thread

    def _run(self) -> NoReturn:
        events = select.poll()
        control, wake = self._control.fileno(), self._wake
        events.register(wake, select.POLLIN)
        while True:
            events.register(control, select.POLLIN | (select.POLLOUT if self._untold else 0))
            ready = dict(events.poll(None))
            if wake in ready:
                with suppress(BlockingIOError):
                    os.read(wake, 4096)
            if ready.get(control, 0) & select.POLLOUT and self._sending.acquire(False):
                try:
                    self._send_untold(wait=False)
                finally:
                    self._sending.release()
            if ready.get(control, 0) & ~select.POLLOUT:
                self._receive()

    def _receive(self) -> None:
        try:
            message, fds = self._control.receive()
        except BlockingIOError:
            return
        except PeerGone:
            # A stub never outlives its server, whatever the model is doing.
            os._exit(1)
        kind, *parts = message
        if kind == SEGMENT:
            self._take_segment(fds, *parts)
        elif kind == NO_ROOM:
            self._for_arena.put(parts[0])
        elif kind == SHED:
            self.on_shed(parts[0])
        elif kind == REGION:
            region_id, name, offset, nbytes = parts
            with self._arrived:
                self._regions[region_id] = Region(name, Window(fds[0], offset, nbytes))
                self._arrived.notify_all()
        elif kind == CUDA_REGION:
            device_region = self.import_region(*parts[1:])
            with self._arrived:
                self._regions[parts[0]] = device_region
                self._arrived.notify_all()
        elif kind == DEVICE_SEGMENT:
            device_segment = self.import_segment(*parts)
            with self._arrived:
                self.segments[device_segment.id] = device_segment
                self._arrived.notify_all()
        elif kind == FORGET:
            for segment_id in parts[0]:
                forgotten = self.segments.pop(segment_id, None)
                if forgotten is not None:
                    forgotten.close()
                with self._arrived:
                    unmapped = self._unmapped.pop(segment_id, None)
                if unmapped is not None:
                    os.close(unmapped[0])
                region = self._regions.pop(segment_id, None)
                if region is not None:
                    region.close()
        elif kind == ANSWER:
            number, error, value = parts
            self._answers.pop(number).put((error, value))
        elif kind == PING:
            self._post((PONG,))
        elif kind == CHECK:
            self.on_check(parts[0])
        elif kind == CANCEL:
            self.on_cancel(parts[0])
        else:
            close_all(fds)

    def _take_segment(self, fds: List[int], segment_id: int, nbytes: int, for_outputs: bool) -> None:
        spare = os.dup(fds[0])
        try:
            # A large segment of requests is reserved as it fills: there is nothing yet behind its pages.
            segment = Segment.attach(segment_id, fds[0], nbytes, map_pages=for_outputs or nbytes <= EAGER_BYTES)
        except OutOfSharedMemory as error:
            if for_outputs:
                os.close(spare)
                self._for_arena.put(str(error))
                self.dropped((segment_id,))
                return
            with self._arrived:
                self._unmapped[segment_id] = spare, nbytes
                self._arrived.notify_all()
            return
        os.close(spare)
        if for_outputs:
            # The stub's own blocks may come back to it, as the output of a model that it called.
            self.segments[segment_id] = segment
            self._for_arena.put(segment)
            return
        with self._arrived:
            self.segments[segment_id] = segment
            self._arrived.notify_all()


def _ignore(_number: int) -> None:
    return
