"""The control socket between a parent and each of its stubs: hello, descriptors, logs, and the news of a death.

A ``socketpair`` of type SOCK_SEQPACKET, so that a message is a datagram and the end of the peer an empty one. A message is a
msgpack array whose first element says what it is:

    stub -> parent    (HELLO, protocol, python, numpy, executable)   first of all, so that a mismatch is a sentence
                      (READY, has_is_ready)                    initialize returned
                      (COMPLETED, configuration as JSON)       the answer to AUTO_COMPLETE; the stub exits
                      (FAILED, text, traceback)                the model could not be loaded, or its configuration not completed; the stub
                                                               exits
                      (GROW, nbytes)                           asks for a segment for the stub's arena
                      (LOG, ((level, file, line, text, exception, request id), ...))
                      (ASK, number, what, arguments)           something that the server does for the model; an ANSWER follows
                      (TELL, what, arguments)                  the same without an answer
                      (CHECKED, number, is ready or None)      the answer to CHECK; None: is_ready failed, or gave no bool
                      (FORKED,)                                a process that the model forked wants to make a call: its end of a socket
                      (SHED, ids)                              segments of its arena, and device memory, that it has dropped: its own accord, or
                                                               the answer to SHED
                      (UNMAPPED, id, done)                     after FORGET, for each DEVICE_SEGMENT: it is closed, or could not be
                      (PONG,)                                  the answer to PING
    parent -> stub    (LOAD, settings)                         what to load; descriptors: channel, down bell, up bell
                      (AUTO_COMPLETE, settings)                whose configuration to complete, instead of LOAD
                      (SEGMENT, id, nbytes, for_outputs)       a segment, for the stub's arena or to be read; descriptor: the segment.
                      (NO_ROOM, text)                          instead of the SEGMENT that was asked for: why there is none
                      (SHED, keep)                             asks for the segments of its arena that were in no use since it was last asked,
                                                               but for so many bytes, and for all such device memory
                      (REGION, id, name, offset, nbytes)       shared memory of a client's, registered under that name, to be copied from
                                                               and to; descriptor: the file. Ids are segments'
                      (CUDA_REGION, id, name, nbytes, uuid, handle)    memory of a GPU's of a client's, likewise
                      (DEVICE_SEGMENT, id, nbytes, uuid, handle)       device memory that another stub exports. Ids are segments'
                      (FORGET, ids)                            segments and regions that are no more; of its own device memory: nobody else
                                                               has it open, so that it can be freed
                      (ANSWER, number, error text or None, value)
                      (CHECK, number)                          asks the model's is_ready
                      (CANCEL, key)                            cancels the coroutine of that request
                      (PING,)                                  asks for a PONG, whatever the model does
    to the spawner    (SPAWN, key, interpreter, environment, cores or None, threads or None, sandbox)
                                               descriptors: the stub's control socket, stdout, stderr, and where
                                               faulthandler writes stacks. sandbox: see stub/sandbox.py
                      (TEMPORARY, path)        a directory of the server's, to be removed when the server is gone
    from the spawner  (EXITED, key, status), and from the process itself, before, (SPAWNED, key, pid)

A message too long for a datagram travels in an anonymous file, whose descriptor comes last.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from array import array
from contextlib import suppress
from typing import Any, List, Sequence, Tuple

from .errors import PeerGone, ProtocolError
from .message import pack, unpack_bounded

(
    HELLO, READY, COMPLETED, FAILED, GROW, LOG, ASK, TELL, CHECKED, FORKED,
    LOAD, AUTO_COMPLETE, SEGMENT, REGION, FORGET, ANSWER, CHECK, CANCEL,
    SPAWN, SPAWNED, EXITED, TEMPORARY, NO_ROOM, SHED, PING, PONG, DEVICE_SEGMENT, CUDA_REGION, UNMAPPED,
) = range(29)  # fmt: skip

_DATAGRAM_BYTES = 64 << 10
_IN_FILE = 0xFF
_MAX_FDS = 8
_MOST_BYTES = 256 << 20
"""A longer message is neither sent nor taken: whoever takes it has to hold all of it."""

_F_GET_SEALS = 1034
"""Of fcntl(2), which only files that are memory have."""

_BLOCK_BYTES = 512
"""What st_blocks counts (stat(2))."""
_ANCILLARY_BYTES = socket.CMSG_LEN(_MAX_FDS * array("i").itemsize)

Message = Tuple[Tuple[Any, ...], List[int]]


class ControlSocket:
    """One end of a control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> Tuple[ControlSocket, socket.socket]:
        """Two ends: one for this process, and one to hand on."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(near), far

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_blocking(self, blocking: bool) -> None:
        self._socket.setblocking(blocking)

    def send(self, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
        """Sends one message; the descriptors stay the caller's to close.

        Raises:
            PeerGone: the other end is closed.
            TimeoutError: the other end does not read.
            ValueError: the message is longer than 256 MiB.
        """
        data = pack(message)
        file = None
        if len(data) > _MOST_BYTES:
            raise ValueError(f"a control message of {len(data)} bytes is longer than {_MOST_BYTES}")
        if len(data) > _DATAGRAM_BYTES:
            file = os.memfd_create("stublet-message")
            _write_all(file, data)
            data, fds = pack((_IN_FILE, len(data))), [*fds, file]
        try:
            socket.send_fds(self._socket, [data], fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise PeerGone("the other end of the control socket is closed") from error
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETOOMANYREFS):  # the latter: of the descriptors on their way (unix(7))
                raise
            raise TimeoutError("the other end of the control socket does not read") from error
        finally:
            if file is not None:
                os.close(file)

    def receive(self) -> Message:
        """The next message and its descriptors, which are the caller's from now on.

        Raises:
            PeerGone: the other end is closed.
            ProtocolError: what came is not a message.
            BlockingIOError: nothing came, and the socket does not block.
        """
        try:
            data, ancillary, flags = self._receive()
        except ConnectionResetError:
            # The other end was closed with something unread. That is told once, before the last that it said.
            data, ancillary, flags = self._receive()
        fds = _descriptors(ancillary)
        if not data and not fds:
            raise PeerGone("the other end of the control socket is closed")
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ProtocolError("a control message is longer, or has more descriptors, than agreed")
            message = unpack_bounded(data)
            if message[0] == _IN_FILE:
                message = _read_file(message, fds)
        except ProtocolError:
            close_all(fds)
            raise
        return message, fds

    def _receive(self) -> Tuple[bytes, Sequence[Tuple[int, int, bytes]], int]:
        # Not socket.recv_fds, which (in Python 3.11) does not pass its flags on: descriptors would be inherited by whatever
        # program the model starts.
        return self._socket.recvmsg(_DATAGRAM_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)[:3]

    def close(self) -> None:
        self._socket.close()


def close_all(fds: Sequence[int]) -> None:
    """Closes descriptors that nobody wants."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _descriptors(ancillary: Sequence[Tuple[int, int, bytes]]) -> List[int]:
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_file(message: Tuple[Any, ...], fds: List[int]) -> Tuple[Any, ...]:
    if len(message) != 2 or type(message[1]) is not int or not fds:
        raise ProtocolError("a control message in a file comes with its length and its descriptor")
    file = fds.pop()
    try:
        fcntl.fcntl(file, _F_GET_SEALS)
        about = os.fstat(file)
        if message[1] != about.st_size:
            raise ProtocolError("a control message is shorter than announced")
        if message[1] > about.st_blocks * _BLOCK_BYTES:
            # Whoever wants a message to take that much memory here has to have taken as much.
            raise ProtocolError("a control message is in a file with holes")
        if message[1] > _MOST_BYTES:
            raise ProtocolError(f"a control message of {message[1]} bytes is longer than {_MOST_BYTES}")
        return unpack_bounded(os.pread(file, message[1], 0))
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise ProtocolError(f"a control message in a file cannot be read: {error}") from error
    finally:
        os.close(file)
