"""What a stub said, as the server goes on with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

from ..shm.cuda.segment import DeviceSegment
from ..shm.dtype import BYTES
from ..shm.errors import ProtocolError
from ..shm.message import IN_REGION
from ..shm.segment import Segment
from .errors import InternalError
from .loans import BlockKey, Loans
from .request import Lease, Loan, Outcome, OutputPlan, Request, Response

if TYPE_CHECKING:
    from .model import Model


class Call(NamedTuple):
    """A request that the model makes to another (``stublet.shm.message``); ``blocks`` hold its inputs."""

    number: int
    flags: int
    model: str
    version: int
    blocks: List[Tuple[Loan, int]]
    inputs: Tuple[Tuple[Any, ...], ...]
    requested: Tuple[str, ...]
    extras: Tuple[Any, ...]

    def is_on_device(self) -> bool:
        """Whether an input is in device memory."""
        return any(isinstance(loan.segment, DeviceSegment) for loan, _ in self.blocks)


Over = Tuple[Optional[Request], Optional[int], Any]
"""What is to be put away: a request whose execution is over, what that took in nanoseconds, and which of its blocks the stub kept; one of which
only the last response was still to come, None and (); or None, None and the key of a block that the stub had kept."""


class News:
    """What was found in a ring. ``settled``: requests with an outcome, and whether it is the last. ``returned``: how many executions are
    over. ``over``: what is to be put away. ``again``: requests that the model wants to execute once more. ``calls`` and ``cancelled_calls``:
    what the model asks of other models, in order of the calls."""

    __slots__ = ("again", "calls", "cancelled_calls", "over", "returned", "settled")

    def __init__(self) -> None:
        self.settled: List[Tuple[Request, Optional[Outcome], bool]] = []
        self.returned = 0
        self.over: List[Over] = []
        self.again: List[Request] = []
        self.calls: List[Call] = []
        self.cancelled_calls: List[int] = []

    @property
    def is_one_answer(self) -> bool:
        """Whether all that was found is the answer of one request, of which the stub kept nothing."""
        if len(self.settled) != 1 or len(self.over) != 1 or self.calls:
            return False
        request, nanoseconds, kept = self.over[0]
        return request is not None and nanoseconds is not None and not kept


def read_response(model: Model, loans: Loans, blocks: Tuple[BlockKey, ...], placed: Tuple[Any, ...], parameters: str) -> Outcome:
    """The response with these outputs, as a message has them; an error if one of them has a shape that it may not have.

    Raises:
        ProtocolError: it has outputs that the model does not have, or in memory that the stub may not name.
    """
    memo = model.memo
    plan: Optional[OutputPlan] = memo.get((placed, len(blocks)))
    if plan is None:
        plan = OutputPlan(model.stub_outputs, placed, len(blocks))
        model.remember((placed, len(blocks)), plan)
    places: List[Tuple[Segment, int]] = []
    leases: List[Lease] = []
    try:
        for key, nbytes in zip(blocks, plan.extents):
            segment, lease = loans.borrow(key, nbytes)
            places.append((segment, key[1]))
            leases.append(lease)
    except ProtocolError:
        for give_back, item in leases:
            give_back(item)
        raise
    response = Response(plan, places, leases, parameters)
    if plan.misshapen:
        response.release()
        return InternalError(f"the response of model '{model.name}' is wrong: {plan.misshapen}")
    return response


def check_in_regions(request: Request, response: Response) -> None:
    """That an output is in a region can only be said where the client has named one.

    Raises:
        ProtocolError: it has not; the response is released.
    """
    wanted = () if request.regions is None else {index for index, *_ in request.regions.writes}
    if not response.plan.in_regions.issubset(wanted):
        response.release()
        raise ProtocolError(f"request {request.key} has no region for an output that is said to be in one")


def check_on_device(request: Request, response: Response) -> None:
    """Outputs may be in device memory only where that is taken, and strings never.

    Raises:
        ProtocolError: one is; the response is released.
    """
    for output in response.plan.outputs:
        on_device = output.block != IN_REGION and isinstance(response.places[output.block][0], DeviceSegment)
        if on_device and (not request.device_outputs or output.dtype is BYTES):
            response.release()
            raise ProtocolError(f"output '{output.name}' of request {request.key} is in device memory, which it may not be")


def read_call(loans: Loans, number: int, *call: Any) -> Call:
    """The call that a message describes.

    Raises:
        ProtocolError: it has inputs in memory that the stub may not name.
    """
    flags, model, version, keys, inputs, requested, extras = call
    extents = [0] * len(keys)
    for _, _, _, block, offset, nbytes in inputs:
        extents[block] = max(extents[block], offset + nbytes)
    blocks: List[Tuple[Loan, int]] = []
    try:
        for key, nbytes in zip(keys, extents):
            segment, lease = loans.borrow(key, nbytes)
            blocks.append((Loan(segment, key[1], nbytes, lease), nbytes))
        if loans.has_devices:
            for name, dtype, _, block, _, _ in inputs:
                if dtype == BYTES.code and isinstance(blocks[block][0].segment, DeviceSegment):
                    raise ProtocolError(f"input '{name}' of call {number} are strings in device memory")
    except ProtocolError:
        for loan, _ in blocks:
            loan.release()
        raise
    return Call(number, flags, model, version, blocks, inputs, requested, extras)
