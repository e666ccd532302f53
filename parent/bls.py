"""Business logic scripting: requests that a model makes to other models of the server (spec section 3).

A call comes out of the caller's ring, becomes a request of the callee, and its outcomes go back down the caller's ring. Tensors are
not copied on the way: the callee is told of the segment in which the caller put them, and the caller of that of the callee.

A call can wait for ever only if every instance that could serve it waits, directly or not, for the call itself. ``cycle_of`` finds
that; it looks at what each instance waits for, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Callable, List, NamedTuple, Optional, Set, Tuple

from ..shm.dtype import BY_CODE, BYTES
from ..shm.message import BLOCKING, STREAM
from .channel import Call, News
from .errors import InternalError, InvalidArgument, ServerError, Unavailable
from .lifecycle import State
from .request import Outcome, Request
from .validation import GivenInput, Placement, check_strings, lay_out, output_indices

if TYPE_CHECKING:
    from .core import Core
    from .instance import Instance
    from .model import Model

_GRACE_SECONDS = 10.0
"""A call from a thread or a coroutine of the model does not keep ``execute`` from returning, as far as the server can see. Only when it
has waited this long in a cycle is it taken for one that does."""

logger = logging.getLogger(__name__)

Respond = Callable[[Optional[Outcome], bool], None]


class OpenCall(NamedTuple):
    """A call that was not fully answered yet. ``blocking``: the caller's ``execute`` cannot go on before it is."""

    callee: Model
    request: Request
    blocking: bool


class Router:
    """Passes calls on. ``route`` may be called in any thread, but not under the lock of a model."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._loop = asyncio.get_running_loop()

    def route(self, caller: Instance, news: News) -> None:
        """Submits the calls of one drain, and cancels those that the model no longer wants."""
        for call in news.calls:
            self._submit(caller, call)
        for number in news.cancelled_calls:
            open_call = caller.open_calls.get(number)
            if open_call is not None:
                open_call.callee.cancel(open_call.request)

    def _submit(self, caller: Instance, call: Call) -> None:
        number = call.number

        def respond(outcome: Optional[Outcome], final: bool) -> None:
            caller.reply(number, outcome, final)

        blocks = [loan for loan, _ in call.blocks]
        try:
            callee = self.find(call.model, call.version, bool(call.flags & STREAM))
            request = make_request(callee, call, respond)
            caller.open_calls[number] = OpenCall(callee, request, bool(call.flags & BLOCKING))
            self._check_cycle(caller, number)
            blocks = []
            callee.submit(request)
        except ServerError as error:
            for loan in blocks:
                loan.release()
            respond(refusal(call.model, error), True)

    def find(self, name: str, version: int, stream: bool) -> Model:
        """The model that a call is for.

        Raises:
            ServerError: none of that name, not ready, or decoupled and the caller takes one response only.
        """
        callee = self._core.find(name, None if version < 0 else version)
        if not callee.ready:
            raise Unavailable(f"Failed for execute the inference request. Model '{name}' is not ready.")
        if callee.decoupled and not stream:
            raise InvalidArgument(
                f"Model {name} is using the decoupled. The current BLS request call doesn't support models using the decoupled transaction "
                "policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for decoupled models.'"
            )
        return callee

    def _check_cycle(self, caller: Instance, number: int) -> None:
        """Refuses a call that can never be served, at once if ``execute`` waits for it, else when it has waited for a while.

        Raises:
            Unavailable: naming the cycle.
        """
        callee, _, blocking = caller.open_calls[number]
        if not any(instance.open_calls for instance in callee.instances):
            return
        cycle = cycle_of(caller, every_call=not blocking)
        if not cycle:
            return
        if blocking:
            raise _never_served(cycle)
        self._loop.call_soon_threadsafe(self._loop.call_later, _GRACE_SECONDS, self._give_up, caller, number)

    def _give_up(self, caller: Instance, number: int) -> None:
        call = caller.open_calls.get(number)
        cycle = cycle_of(caller, every_call=True) if call is not None else []
        if call is None or not cycle:
            return
        error = _never_served(cycle)
        logger.error("model '%s', instance '%s': %s", caller.model.name, caller.name, error)
        call.callee.cancel(call.request, refusal(call.callee.name, error))


def refusal(model: str, error: ServerError) -> InternalError:
    """What the caller is told when its call cannot be executed, in Triton's words."""
    return InternalError(f"Model {model} - Error when running inference: {error}")


def make_request(callee: Model, call: Call, respond: Respond) -> Request:
    """The request of a call, checked as a client's is.

    Raises:
        InvalidArgument: what is wrong, in Triton's words.
        Unavailable: an input is nowhere any more.
    """
    if not all(loan.segment.shareable for loan, _ in call.blocks):
        raise Unavailable("an input lies in the memory of a model that has been unloaded meanwhile; make a copy of it")
    # The calls of a model have much in common, so what was checked once is remembered.
    plan: Optional[_Plan] = callee.memo.get((call.inputs, call.requested))
    if plan is None:
        plan = _plan(callee, call)
        callee.remember((call.inputs, call.requested), plan)
    inputs, strings, wanted = plan
    for place, block, offset in strings:
        loan, _ = call.blocks[block]
        start = loan.offset + offset
        check_strings(callee, place, memoryview(loan.segment.memory)[start : start + place.nbytes])
    request_id, parameters, correlation_id, flags, timeout = call.extras
    extras: Tuple[Any, ...] = ()
    if request_id or wanted is not None or parameters != "{}" or correlation_id or flags or timeout:
        extras = (request_id, wanted, parameters, correlation_id, flags, timeout)
    return Request(call.blocks, inputs, extras, respond, borrowed=True)


class _Plan(NamedTuple):
    """What a call means to its callee: inputs as a message describes them; BYTES inputs, with block and offset; the outputs wanted."""

    inputs: Tuple[Tuple[Any, ...], ...]
    strings: List[Tuple[Placement, int, int]]
    wanted: Optional[Tuple[int, ...]]


def _plan(callee: Model, call: Call) -> _Plan:
    given = [GivenInput(name, BY_CODE[dtype].name, shape, nbytes) for name, dtype, shape, _, _, nbytes in call.inputs]
    layout = lay_out(callee, given)
    inputs, strings = [], []
    for index, place, (_, dtype, shape, block, offset, nbytes) in zip(layout.indices, layout.placements, call.inputs):
        inputs.append((index, dtype, shape, block, offset, nbytes))
        if dtype == BYTES.code:
            strings.append((place, block, offset))
    return _Plan(tuple(sorted(inputs)), strings, output_indices(callee, sorted(call.requested)))


def cycle_of(caller: Instance, every_call: bool) -> List[str]:
    """The instances in whose circle the caller waits for itself; empty if one of its calls may yet be served.

    Args:
        every_call: take every call for one that keeps its caller from going on, not only those that are known to.
    """
    waiting: List[str] = []
    if _goes_on(caller, set(), waiting, every_call):
        return []
    return [*reversed(waiting), caller.name]


def _goes_on(instance: Instance, seen: Set[Instance], waiting: List[str], every_call: bool) -> bool:
    """Whether the instance will be free for another request some time; if not, ``waiting`` has the names of those that wait."""
    if instance in seen:
        return False
    seen.add(instance)
    calls = [call for call in list(instance.open_calls.values()) if every_call or call.blocking]
    if not calls or not instance.channel.executing():
        return True
    for callee, request, _ in calls:
        if request.answered or request.returned:
            return True
        servers = [i for i in callee.instances if i.state is State.READY] if request.instance is None else [request.instance]
        if any(_goes_on(server, seen, waiting, every_call) for server in servers):
            return True
    waiting.append(instance.name)
    return False


def _never_served(cycle: List[str]) -> Unavailable:
    return Unavailable(
        f"the call can never be served, because each of these instances waits for the next: {' -> '.join(cycle)}; give one of the models "
        "more instances, or break the circle"
    )
