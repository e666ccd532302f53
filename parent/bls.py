"""Business logic scripting: requests that a model makes to other models of the server (spec section 3).

A call comes out of the caller's ring, becomes a request of the callee, and its outcomes go back down the caller's ring. Tensors are
not copied on the way: the callee is told of the segment in which the caller put them, and the caller of that of the callee.

A call can wait for ever only if every instance that could serve it waits, directly or not, for the call itself. ``cycle_of`` finds
that; it looks at what each instance waits for, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from ..shm.dtype import BY_CODE, BYTES
from ..shm.message import BLOCKING, HOST_OUTPUTS, STREAM
from .errors import InternalError, InvalidArgument, ServerError, Unavailable
from .log import about
from .news import Call, News
from .request import Outcome, Request
from .validation import GivenInput, Placement, check_strings, lay_out, output_indices

if TYPE_CHECKING:
    from .core import Core
    from .instance import Instance
    from .scheduling.rate_limits import RateLimits
    from .servable import Servable

_GRACE_SECONDS = 10.0
"""A call from a thread or a coroutine of the model does not keep ``execute`` from returning, as far as the server can see. Only when it
has waited this long in a cycle is it taken for one that does."""

logger = logging.getLogger(__name__)

Respond = Callable[[Optional[Outcome], bool], None]


class OpenCall(NamedTuple):
    """A call that was not fully answered yet. ``blocking``: the caller's ``execute`` cannot go on before it is."""

    callee: Servable
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
            if caller.channel.loans.has_devices and not callee.takes_device_inputs and call.is_on_device():
                for loan in blocks:
                    loan.release()
                caller.model.ask_again(caller, number)
                return
            request = make_request(callee, call, respond)
            request.device_outputs = (
                callee.answers_on_device and caller.model.opens_device_memory and not call.flags & HOST_OUTPUTS and request.trace is None
            )
            caller.open_calls[number] = OpenCall(callee, request, bool(call.flags & BLOCKING))
            self._check_cycle(caller, number)
            blocks = []
            callee.submit(request)
        except ServerError as error:
            for loan in blocks:
                loan.release()
            respond(refusal(call.model, error), True)

    def find(self, name: str, version: int, stream: bool) -> Servable:
        """The model that a call is for.

        Raises:
            ServerError: none of that name, not ready, or decoupled and the caller takes one response only.
        """
        callee = self._core.find(name, None if version < 0 else version)
        if not callee.takes_requests:
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
        call = caller.open_calls[number]
        limits = self._core.limits
        if limits is None and not any(instance.open_calls for servers in _servers(call) for instance in servers):
            return
        cycle = cycle_of(caller, call, limits) if call.blocking else []
        if cycle:
            raise _never_served(cycle)
        if limits is not None or not call.blocking:
            # Who comes first where resources are limited may change.
            self._loop.call_soon_threadsafe(self._loop.call_later, _GRACE_SECONDS, self._look_again, caller, number, call)

    def _look_again(self, caller: Instance, number: int, call: OpenCall) -> None:
        if caller.open_calls.get(number) is not call:
            return
        cycle = cycle_of(caller, call, self._core.limits)
        if cycle:
            error = _never_served(cycle)
            logger.error("model '%s', instance '%s': %s", caller.model.name, caller.name, error, extra=about(caller.facts))
            call.callee.cancel(call.request, refusal(call.callee.name, error))
        else:
            self._loop.call_later(_GRACE_SECONDS, self._look_again, caller, number, call)


def refusal(model: str, error: ServerError) -> InternalError:
    """What the caller is told when its call cannot be executed, in Triton's words."""
    return InternalError(f"Model {model} - Error when running inference: {error}")


def make_request(callee: Servable, call: Call, respond: Respond) -> Request:
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
    request_id, parameters, correlation_id, flags, timeout, *trace = call.extras
    extras: Tuple[Any, ...] = ()
    if request_id or wanted is not None or parameters != "{}" or correlation_id or flags or timeout:
        extras = (request_id, wanted, parameters, correlation_id, flags, timeout)
    request = Request(call.blocks, inputs, extras, respond, borrowed=True)
    if trace:
        request.trace = callee.server.tracer.child(trace[0], callee.name)
    return request


class _Plan(NamedTuple):
    """What a call means to its callee: inputs as a message describes them; BYTES inputs, with block and offset; the outputs wanted."""

    inputs: Tuple[Tuple[Any, ...], ...]
    strings: List[Tuple[Placement, int, int]]
    wanted: Optional[Tuple[int, ...]]


def _plan(callee: Servable, call: Call) -> _Plan:
    given = [GivenInput(name, BY_CODE[dtype].name, shape, nbytes) for name, dtype, shape, _, _, nbytes in call.inputs]
    layout = lay_out(callee, given)
    shapes = {index: shape for index, _, shape, *_ in layout.inputs}
    inputs, strings = [], []
    for index, place, (_, dtype, _, block, offset, nbytes) in zip(layout.indices, layout.placements, call.inputs):
        inputs.append((index, dtype, shapes[index], block, offset, nbytes))
        if dtype == BYTES.code:
            strings.append((place, block, offset))
    return _Plan(tuple(sorted(inputs)), strings, output_indices(callee, sorted(call.requested)))


def cycle_of(caller: Instance, call: OpenCall, limits: Optional[RateLimits] = None) -> List[str]:
    """The instances that a call of the caller waits for, one after the other, up to one that is named for the second time; empty if the
    call may yet be served.

    For a blocking call only calls count that are known to keep their callers from going on; for any other one, every call does.

    Args:
        limits: an instance may also wait for those who have the resources that it needs.
    """
    if not caller.channel.executing() or _is_over(call):
        return []
    waits = {caller: _servers(call)}  # for each execution that an instance waits for, which is not free, those who may take it up
    free: Set[Instance] = set()
    todo = [server for servers in waits[caller] for server in servers]
    while todo:
        instance = todo.pop()
        if instance in waits or instance in free:
            continue
        calls = [other for other in list(instance.open_calls.values()) if (other.blocking or not call.blocking) and not _is_over(other)]
        if calls and instance.channel.executing():
            waits[instance] = [servers for other in calls for servers in _servers(other)]
        elif limits is not None and not instance.channel.executing() and (holders := limits.in_the_way(instance)):
            waits[instance] = holders
        else:
            free.add(instance)
        todo.extend(server for servers in waits.get(instance, ()) for server in servers)
    while True:
        # Free some time, too, is who waits only for those that are.
        more = {i for i, calls in waits.items() if i not in free and all(not free.isdisjoint(servers) for servers in calls)}
        if caller in more:
            return []
        if not more:
            return _way(caller, waits, free)
        free |= more


def _is_over(call: OpenCall) -> bool:
    return call.request.answered or call.request.returned


def _servers(call: OpenCall) -> List[List[Instance]]:
    """For each execution that the call needs, those who may take it up."""
    return call.callee.servers(call.request)


def _way(caller: Instance, waits: Dict[Instance, List[List[Instance]]], free: Set[Instance]) -> List[str]:
    way = [caller]
    while len(set(way)) == len(way):
        unserved = next(servers for servers in waits[way[-1]] if free.isdisjoint(servers))
        # Where there is a choice, one that was not named yet tells more, and then the caller.
        choice = sorted(unserved, key=lambda server: (server in way, server is not caller))
        way.append(choice[0] if choice else caller)
    return [instance.name for instance in way]


def _never_served(cycle: List[str]) -> Unavailable:
    return Unavailable(
        f"the call can never be served, because each of these instances waits for the next: {' -> '.join(cycle)}; give one of the models "
        "more instances, or break the circle"
    )
