"""What a process that the model forked can do: call other models, and log (spec 0.4).

The rings belong to the stub: two processes that write to one slot destroy it. So each call of a forked process has a socket of its own
to the server, and its tensors travel in messages (the server's side says how: ``forked_caller`` in the parent).
"""

from __future__ import annotations

import asyncio
import select
from contextlib import suppress
from typing import Any, List, Optional, Sequence, Union

import numpy as np

from ..shm.control import FORKED, ControlSocket
from ..shm.dtype import BY_CODE
from ..shm.errors import PeerGone
from ..shm.message import ErrorCode
from .error import TritonError, TritonModelException
from .request import InferenceRequest
from .response import InferenceResponse
from .response_iterator import ResponseIterator
from .tensor import Tensor

_LOOK_AGAIN_MS = 1000


class ForkedCaller:
    """``host.caller`` of a forked process.

    Args:
        control: the stub's control socket, of which the process has a copy.
    """

    def __init__(self, control: ControlSocket) -> None:
        self._control = control

    def execute(self, request: InferenceRequest, stream: bool) -> Union[InferenceResponse, ResponseIterator]:
        """See ``InferenceRequest.exec``."""
        call = _ForkedCall(self._control, request, stream)
        if stream:
            return ResponseIterator(call)
        response = call.next()
        assert response is not None
        return response

    def execute_async(
        self, request: InferenceRequest, stream: bool, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[Union[InferenceResponse, ResponseIterator]]:
        """See ``InferenceRequest.async_exec``."""
        return loop.run_in_executor(None, self.execute, request, stream)


class _ForkedCall:
    """One call and its socket. A ``response_iterator.Source``."""

    def __init__(self, control: ControlSocket, request: InferenceRequest, stream: bool) -> None:
        self._socket, far = ControlSocket.pair()
        inputs = [(t._name, t._dtype.code, t._shape, t._wire().tobytes()) for t in request._inputs]
        extras = request._extras()
        with far, suppress(PeerGone):  # which ``next`` will find, too
            _send(control, (FORKED,), [far.fileno()])
            self._socket.send((request._model_name, request._model_version, stream, inputs, sorted(request._requested), extras))
        self._open = True

    def next(self) -> Optional[InferenceResponse]:
        """Waits for the next response; None after the last."""
        if not self._open:
            return None
        try:
            (final, outputs, error, parameters), _ = self._socket.receive()
        except PeerGone:
            self.abandon()
            text = (
                "An error occurred while performing BLS request. The server, or the instance that forked this process, has ended, or too many "
                "calls of forked processes are open."
            )
            return InferenceResponse._received([], TritonError(text), "{}")
        if final:
            self.abandon()
        if error:
            code, text = error
            return InferenceResponse._received([], TritonError(text, ErrorCode(code)), "{}")
        tensors: List[Tensor] = []
        for name, dtype, shape, data in outputs:
            tensors.append(Tensor._over(name, BY_CODE[dtype], shape, np.frombuffer(bytearray(data), np.uint8), 0, len(data)))
        return InferenceResponse._received(tensors, None, parameters or "{}")

    async def next_async(self) -> Optional[InferenceResponse]:
        """``next`` for a coroutine."""
        return await asyncio.get_running_loop().run_in_executor(None, self.next)

    def cancel(self) -> None:
        """Tells the other model that nobody waits for the rest: here, by hanging up."""
        self.abandon()

    def abandon(self) -> None:
        """Nobody takes the rest."""
        if self._open:
            self._open = False
            self._socket.close()


def _send(control: ControlSocket, message: Sequence[Any], fds: Sequence[int]) -> None:
    """Sends on the stub's socket, which does not block, as soon as there is room."""
    while True:
        try:
            control.send(message, fds)
            return
        except TimeoutError:
            writable = select.poll()
            writable.register(control.fileno(), select.POLLOUT)
            writable.poll(_LOOK_AGAIN_MS)


def refuse(what: str, *_: Any) -> Any:
    """``host.ask`` of a forked process.

    Raises:
        TritonModelException: always.
    """
    raise TritonModelException(f"'{what}' can be asked only by the process of the instance itself, not by one that it forked")
