"""Calls of other models from processes that a model forked (spec 0.4), such as the workers of a ``multiprocessing.Pool``.

A forked process cannot use the rings: both sides of a fork would write to the same slots. So each of its calls has a socket of its
own, which reaches the server through the stub's control socket, and tensors travel in the messages:

    process -> server   (model, version, stream, inputs, requested names, extras)      extras as in a call of ``stublet.shm.message``
      input             (name, dtype, shape, bytes)
    server -> process   (final, outputs, error, parameters)                            any number; outputs like inputs

It is the slow way, for a case that is rare.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, List, Optional, Sequence, Tuple

from ..shm.arena import aligned
from ..shm.control import ControlSocket, close_all
from ..shm.errors import OutOfSharedMemory, PeerGone, ProtocolError
from ..shm.message import check_call
from .bls import make_request, refusal
from .errors import InternalError, ServerError
from .news import Call
from .request import Loan, Outcome, Request, Response, drop

if TYPE_CHECKING:
    from .instance import Instance
    from .servable import Servable


class ForkedCaller:
    """One call of a forked process, from the moment its socket arrives until its last outcome is sent. In the server's loop.

    Args:
        fd: the socket, as received with the control message; the caller closes it.

    Raises:
        ProtocolError: it is no socket.
    """

    def __init__(self, instance: Instance, fd: int) -> None:
        self._server = instance.model.server
        self._loop = asyncio.get_running_loop()
        self._socket = ControlSocket(_own_socket(fd))
        self._socket.set_blocking(False)
        self._callee: Optional[Servable] = None
        self._request: Optional[Request] = None
        self._unsent: Deque[Tuple[Optional[Outcome], bool]] = deque()
        self.closed = False
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Ends it; a request that runs is cancelled."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        while self._unsent:
            drop(self._unsent.popleft()[0])
        self._socket.close()
        if self._callee is not None and self._request is not None:
            self._callee.cancel(self._request)

    def _on_readable(self) -> None:
        try:
            message, fds = self._socket.receive()
        except BlockingIOError:
            return
        except (PeerGone, ProtocolError, OSError):  # an OSError: the socket is of another kind, or connected to nothing
            self.close()
            return
        close_all(fds)
        model = message[0]
        try:
            self._submit(*message)
        except (TypeError, ValueError, KeyError, ProtocolError) as error:
            self._send(InternalError(f"malformed call of a forked process: {error}"), True)
        except ServerError as error:
            self._send(refusal(model, error), True)

    def _submit(
        self, model: str, version: int, stream: bool, inputs: Sequence[Tuple[Any, ...]], requested: Tuple[str, ...], extras: Tuple[Any, ...]
    ) -> None:
        if self._request is not None:
            raise ValueError("a second call on one socket")
        callee = self._server.bls.find(model, version, stream)
        placed: List[Tuple[Any, ...]] = []
        offset = 0
        for name, dtype, shape, data in inputs:
            if not isinstance(data, bytes):
                raise ValueError(f"input {name!r}")
            placed.append((name, dtype, shape, 0, offset, len(data)))
            offset += aligned(len(data))
        # As thoroughly as one in a ring: what passes here, the callee's stub takes for right.
        check_call((0, 0, model, version, ((0, 0),), tuple(placed), requested, extras))
        block = callee.allocate(offset)
        loan = Loan(block.segment, block.offset, offset, (block.arena.dropped.append, block))
        try:
            for (_, _, _, data), place in zip(inputs, placed):
                block.write(place[4], data, len(data))
            call = Call(0, 0, model, version, [(loan, offset)], tuple(placed), requested, extras)
            request = make_request(callee, call, self._respond)
        except OutOfSharedMemory as error:
            loan.release()
            raise callee.no_room(error) from error
        except BaseException:
            loan.release()
            raise
        self._callee, self._request = callee, request
        callee.submit(request)

    def _respond(self, outcome: Optional[Outcome], final: bool) -> None:
        try:
            self._loop.call_soon_threadsafe(self._send, outcome, final)
        except RuntimeError:  # the server's loop has ended
            drop(outcome)

    def _send(self, outcome: Optional[Outcome], final: bool) -> None:
        if self.closed:
            drop(outcome)
            return
        self._unsent.append((outcome, final))
        if len(self._unsent) == 1:
            self._send_unsent()

    def _send_unsent(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                outcome, final = unsent[0]
                try:
                    self._socket.send(_told(outcome, final))
                except ValueError as error:
                    text = f"the outputs are more than a forked process can be sent at once: {error}"
                    self._socket.send(_told(InternalError(text), final))
                drop(outcome)
                unsent.popleft()
                if final:
                    self._request = None
                    self.close()
                    return
        except TimeoutError:
            # It takes its time to read.
            self._loop.add_writer(self._socket.fileno(), self._send_unsent)
            return
        except (PeerGone, OSError):
            self.close()
            return
        self._loop.remove_writer(self._socket.fileno())


def _own_socket(fd: int) -> socket.socket:
    """One of its own for what a stub sent."""
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError as error:
        os.close(copy)
        raise ProtocolError(f"the call of a forked process comes with what is no socket: {error.strerror}") from error


def _told(outcome: Optional[Outcome], final: bool) -> Tuple[Any, ...]:
    """An outcome as a message."""
    if isinstance(outcome, Response):
        outputs = [(o.name, o.dtype.code, o.shape, outcome.copy(o)) for o in outcome.plan.outputs]
        return final, outputs, (), outcome.parameters
    return final, (), () if outcome is None else (outcome.code, str(outcome)), ""
