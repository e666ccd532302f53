"""Business logic scripting: the requests that a model makes to other models (spec section 3), at the stub's end.

A call goes up the ring with its tensors by reference; its replies come down it. A thread that waits for one reads the ring itself
(``inbox``); a coroutine's are passed to its event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Set, Tuple, Union

from ..shm.dtype import BY_CODE
from ..shm.errors import OutOfSharedMemory, ProtocolError
from ..shm.message import BLOCKING, HOST_OUTPUTS, STREAM, ErrorCode
from ..shm.polling import PollBudget
from .error import TritonError, TritonModelException
from .inbox import Inbox, Waiter
from .memory import BlockKey, StubMemory
from .outbox import Outbox
from .preferred_memory import TRITONSERVER_MEMORY_CPU
from .request import InferenceRequest
from .response import InferenceResponse
from .response_iterator import ResponseIterator
from .tensor import Tensor, tensor_over

NOT_NOW = "BLS is only supported during the 'execute' function."

_REMEMBERED = 1024

Reply = Tuple[Any, ...]


class Caller:
    """``host.caller`` of a stub.

    Args:
        poll: how long to look for a reply before sleeping.
        blocks_execute: whether ``execute`` cannot return before a call made in this thread is answered.
    """

    def __init__(self, inbox: Inbox, outbox: Outbox, memory: StubMemory, poll: PollBudget, blocks_execute: Callable[[], bool]) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._memory = memory
        self._poll = poll
        self._blocks_execute = blocks_execute
        self._numbers = itertools.count()
        self._open: Dict[int, _Call] = {}
        self._on_host: Set[Tuple[str, int]] = set()
        """Models that take their inputs from host memory only."""
        self.allowed = False
        """Whether models may be called now: from the first execution on, until the end."""

    def execute(self, request: InferenceRequest, stream: bool) -> Union[InferenceResponse, ResponseIterator]:
        """See ``InferenceRequest.exec``."""
        call = self._start(request, stream, waits=not stream)
        if stream:
            return ResponseIterator(call)
        response = call.next()
        assert response is not None
        return response

    def execute_async(
        self, request: InferenceRequest, stream: bool, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[Union[InferenceResponse, ResponseIterator]]:
        """See ``InferenceRequest.async_exec``. The call is made at once; the future is of ``loop``, in whose thread this is."""
        call = self._start(request, stream, waits=False)
        future: asyncio.Future[Union[InferenceResponse, ResponseIterator]] = loop.create_future()
        if stream:
            future.set_result(ResponseIterator(call))
        else:
            future.add_done_callback(lambda done: call.give_up() if done.cancelled() else None)
            call.pass_on(loop, future)
        return future

    def route(self, reply: Reply) -> None:
        """Takes a reply that came down the ring. In the thread that reads it."""
        if len(reply) == 1:
            self._send_again(*reply)
            return
        number, final = reply[:2]
        call = self._open.get(number)
        if final:
            self._open.pop(number, None)
        if call is None:
            self.drop(reply)
        else:
            call.arrived(reply)

    def drop(self, reply: Reply) -> None:
        """Gives back what nobody wants."""
        for segment, offset, _ in reply[2]:
            self._memory.dropped.append((segment, offset))

    def read(self, reply: Reply, device: Optional[int] = None) -> InferenceResponse:
        """The response that a reply is; its outputs on that GPU, if they can be there."""
        _, _, blocks, outputs, error, parameters = reply
        if error:
            code, text = error
            return InferenceResponse._received([], TritonError(text, ErrorCode(code)), "{}")
        bases = self._memory.borrow(blocks)
        tensors = [tensor_over(name, BY_CODE[dtype], shape, bases[i], offset, nbytes) for name, dtype, shape, i, offset, nbytes in outputs]
        for block, base in zip(blocks, bases):
            self._memory.keep(block, base)
        if device is not None:
            tensors = [_moved(tensor, device) for tensor in tensors]
        return InferenceResponse._received(tensors, None, parameters or "{}")

    def _start(self, request: InferenceRequest, stream: bool, waits: bool) -> _Call:
        """``waits``: the thread does nothing else until the response is there."""
        if not self.allowed:
            raise TritonModelException(NOT_NOW)
        if request._exchange is not None:
            raise TritonModelException("a request that came from the server cannot be executed; make an InferenceRequest of its inputs")
        number = next(self._numbers)
        call = _Call(number, self, self._inbox, self._poll)
        flags = (STREAM if stream else 0) | (BLOCKING if waits and self._blocks_execute() else 0)
        wanted = request._preferred_memory
        if wanted is not None:
            if wanted._memory_type is TRITONSERVER_MEMORY_CPU:
                flags |= HOST_OUTPUTS
            else:
                call.device = wanted._device_id
        if True in [tensor._on_device for tensor in request._inputs]:
            call.again = partial(self._send, number, flags, request, goes_on=True, on_device=False)
        self._open[number] = call
        self._send(number, flags, request, goes_on=not waits, on_device=call.again is not None and request._callee() not in self._on_host)
        return call

    def _send(self, number: int, flags: int, request: InferenceRequest, goes_on: bool, on_device: bool) -> None:
        """``on_device``: inputs that are on a GPU stay there."""
        extras = request._extras()
        blocks: Sequence[BlockKey] = ()
        try:
            blocks, inputs = self._memory.place([(tensor._name, tensor) for tensor in request._inputs], goes_on, on_device)
            message = (number, flags, request._model_name, request._model_version, blocks, inputs, sorted(request._requested), extras)
            self._outbox.post((), (message,))
        except (OutOfSharedMemory, TritonModelException) as error:
            self._memory.take_back(blocks)
            self.route((number, True, (), (), (ErrorCode.INTERNAL, str(error)), ""))

    def _send_again(self, number: int) -> None:
        """The model that was called takes its inputs from host memory only, as it will the next time."""
        call = self._open.get(number)
        if call is None or call.again is None:
            raise ProtocolError(f"call {number} is to be made again, but is not open or has nothing on a GPU")
        again, call.again = call.again, None
        request: InferenceRequest = again.args[2]
        if len(self._on_host) >= _REMEMBERED:
            self._on_host.clear()
        self._on_host.add(request._callee())
        again()

    def cancel(self, number: int) -> None:
        """Tells the server that nobody waits for a call any more."""
        self._outbox.post((), ((number,),))


class _Call:
    """One call, until its last reply. A ``response_iterator.Source``."""

    def __init__(self, number: int, caller: Caller, inbox: Inbox, poll: PollBudget) -> None:
        self._number = number
        self._caller = caller
        self._inbox = inbox
        self._poll = poll
        self._replies: Deque[Reply] = deque()
        self._final = False
        self._given_up = False
        self._waiter: Optional[Waiter] = None
        self._notify: Optional[Callable[[], None]] = None
        self.again: Optional[partial[None]] = None
        """Makes the call once more with its inputs in host memory, if it has any elsewhere."""
        self.device: Optional[int] = None
        """The GPU on which the outputs are wanted."""
        # The collection of garbage, and so ``abandon``, may come while this very thread holds it.
        self._lock = threading.RLock()

    def arrived(self, reply: Reply) -> None:
        """A reply came. In the thread that reads the ring, which may be the one that waits."""
        with self._lock:
            if self._given_up:
                self._caller.drop(reply)
            else:
                self._replies.append(reply)
            self._final = self._final or reply[1]
            waiter, notify = self._waiter, self._notify
            self._waiter = self._notify = None
        if waiter is not None:
            self._inbox.routed(waiter)
        if notify is not None:
            self._inbox.got()
            notify()

    def next(self) -> Optional[InferenceResponse]:
        """Waits for the next response; None after the last."""
        while True:
            waiter = Waiter(self._poll)
            with self._lock:
                if self._replies:
                    reply = self._replies.popleft()
                    break
                if self._final:
                    return None
                self._waiter = waiter
            self._inbox.wait(waiter)
        return self._caller.read(reply, self.device)

    async def next_async(self) -> Optional[InferenceResponse]:
        """``next`` for a coroutine."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Optional[InferenceResponse]] = loop.create_future()
        self.pass_on(loop, future)
        return await future

    def pass_on(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        """Sets the next response, or None after the last, as the result of ``future``, which is of ``loop``."""

        def notify() -> None:
            try:
                loop.call_soon_threadsafe(self._settle, loop, future)
            except RuntimeError:  # the model's loop has been closed
                self.abandon()

        with self._lock:
            if not self._replies and not self._final:
                if self._notify is None:  # else that of a wait that was given up, such as by asyncio.wait_for
                    self._inbox.expect()
                self._notify = notify
                return
        self._settle(loop, future)

    def _settle(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        with self._lock:
            reply = self._replies.popleft() if self._replies and not future.done() else None
        if not future.done():
            future.set_result(None if reply is None else self._caller.read(reply, self.device))

    def cancel(self) -> None:
        """Tells the other model that nobody waits for the rest; what it sends all the same can still be taken."""
        if not self._final:
            self._caller.cancel(self._number)

    def abandon(self) -> None:
        """Nobody takes the rest."""
        with self._lock:
            self._given_up = True
            replies: List[Reply] = list(self._replies)
            self._replies.clear()
            expected, self._notify = self._notify is not None, None
        for reply in replies:
            self._caller.drop(reply)
        if expected:
            self._inbox.got()

    def give_up(self) -> None:
        """``cancel`` and ``abandon``: the coroutine that waited was cancelled."""
        self.abandon()
        self.cancel()


def _moved(tensor: Tensor, device: int) -> Tensor:
    """The tensor on that GPU; where it is, if it cannot be there: a preferred memory is a wish."""
    if not tensor._on_device:
        with suppress(TritonModelException):
            return tensor.to(f"cuda:{device}")
    return tensor
