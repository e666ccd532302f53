"""Where the tensors on their way through an ensemble lie, and how they become the inputs of a step and the outputs of the answer.

Nothing is copied: a step is told of the block that whoever made the tensor put it in. What that takes depends on shapes only, which
repeat, so it is worked out once for each combination of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Hashable, List, NamedTuple, Optional, Sequence, Tuple

from ...shm.dtype import BY_CODE, BYTES
from ...shm.message import IN_REGION
from ..client_memory import Read, RegionUse, Write
from ..errors import Unsupported
from ..request import Lease, Lent, Loan, Outcome, OutputPlan, Request, Response
from ..validation import GivenInput, Placement, check_strings, lay_out
from .composing import matches

if TYPE_CHECKING:
    from ..servable import Servable


class Tensor(NamedTuple):
    """``nbytes`` bytes at ``offset`` of block ``block`` of its source; the numbers behind those of the blocks are of places in regions of
    the client's."""

    dtype: int
    shape: Tuple[int, ...]
    block: int
    offset: int
    nbytes: int


class Source:
    """Tensors that arrived together. ``shape``: two sources of which it is the same differ only in where their blocks are. ``loans``:
    those blocks. ``places``: regions of the client's that tensors lie in."""

    __slots__ = ("_describe", "loans", "parameters", "places", "shape")

    def __init__(
        self, shape: Hashable, loans: List[Loan], places: Sequence[Read], describe: Callable[[], Dict[str, Tensor]], parameters: str = ""
    ) -> None:
        self.shape = shape
        self.loans = loans
        self.places = places
        self.parameters = parameters
        self._describe = describe

    def tensors(self) -> Dict[str, Tensor]:
        """By their names in the ensemble; one that the client or the model left out is not there."""
        return self._describe()

    def release(self) -> None:
        """Gives up the blocks, so far as no step holds them."""
        for loan in self.loans:
            loan.release()


def of_request(ensemble: Servable, request: Request) -> Source:
    """The inputs of a request, which is no longer the owner of its blocks."""

    def describe() -> Dict[str, Tensor]:
        return {ensemble.inputs[index].name: Tensor(*rest) for index, *rest in request.inputs}

    reads = request.regions.reads if request.regions is not None else ()
    return Source((request.inputs, len(request.blocks)), [_lent(block) for block, _ in request.blocks], reads, describe)


def _lent(block: Lent) -> Loan:
    if isinstance(block, Loan):
        return block
    # The arena is the ensemble's, and those who give the block back do not know its lock.
    return Loan(block.segment, block.offset, block.size, (block.arena.dropped.append, block))


def of_response(response: Response, names: Dict[str, str], writes: Dict[str, Read]) -> Source:
    """The outputs of a step, whose memory is the source's from now on.

    Args:
        names: those that they have in the ensemble.
        writes: where in regions of the client's some of them were to be put, by the model's names.
    """
    plan = response.plan
    loans = response.lend()
    if not plan.in_regions:
        return Source(plan, loans, (), lambda: _tensors(plan, names), response.parameters)
    in_regions = [output.name for output in plan.outputs if output.block == IN_REGION]
    places = [writes[name] for name in in_regions]
    behind = {name: len(loans) + number for number, name in enumerate(in_regions)}
    return Source(plan, loans, places, lambda: _tensors(plan, names, behind), response.parameters)


def _tensors(plan: OutputPlan, names: Dict[str, str], behind: Optional[Dict[str, int]] = None) -> Dict[str, Tensor]:
    found = {}
    for name, dtype, shape, block, offset, nbytes in plan.outputs:
        if name in names:
            number = block if block != IN_REGION or behind is None else behind[name]
            found[names[name]] = Tensor(dtype.code, shape, number, offset, nbytes)
    return found


class StepPlan(NamedTuple):
    """What makes a request to a step. ``inputs``: as a message has them. ``blocks``: which block of which source, and the bytes of it that
    are used. ``reads``: which place of which source. ``strings``: inputs whose bytes have to be looked at: block and offset in it."""

    inputs: Tuple[Tuple[Any, ...], ...]
    blocks: List[Tuple[int, int, int]]
    reads: List[Tuple[int, int]]
    strings: List[Tuple[Placement, int, int]]


def plan_step(model: Servable, sources: Sequence[Source], inputs: Dict[str, str], batched: Dict[str, bool]) -> StepPlan:
    """The request to a model whose inputs, named as its own, are these tensors of the ensemble.

    Args:
        batched: of the tensors, whether their first dimension is that of a batch.

    Raises:
        InvalidArgument: the model does not take them, in Triton's words.
    """
    found = _find(sources)
    given: List[GivenInput] = []
    places: List[Tuple[int, Tensor]] = []
    specs = {spec.name: spec for spec in model.inputs}
    for own, tensor in inputs.items():
        if tensor in found:
            position, one = found[tensor]
            shape = fitted(one.shape, specs[own].shape, model.max_batch_size > 0, batched[tensor])
            given.append(GivenInput(own, BY_CODE[one.dtype].name, shape, one.nbytes))
            places.append((position, one))
    layout = lay_out(model, given)
    blocks: Dict[Tuple[int, int], int] = {}
    reads: List[Tuple[int, int]] = []
    for position, one in places:
        if one.block < len(sources[position].loans):
            key = position, one.block
            blocks[key] = max(blocks.get(key, 0), one.offset + one.nbytes)
    shapes = {index: shape for index, _, shape, *_ in layout.inputs}
    numbers = {key: number for number, key in enumerate(blocks)}
    message, strings = [], []
    for index, placement, (position, one) in zip(layout.indices, layout.placements, places):
        number = numbers.get((position, one.block))
        if number is None:
            reads.append((position, one.block - len(sources[position].loans)))
            number = len(blocks) + len(reads) - 1
        elif one.dtype == BYTES.code:
            strings.append((placement, number, one.offset))
        message.append((index, one.dtype, shapes[index], number, one.offset, one.nbytes))
    extents = [(position, block, nbytes) for (position, block), nbytes in blocks.items()]
    return StepPlan(tuple(sorted(message)), extents, reads, strings)


def make_request(
    model: Servable,
    plan: StepPlan,
    sources: Sequence[Source],
    extras: Tuple[Any, ...],
    respond: Callable[[Optional[Outcome], bool], None],
    borrowed: bool,
    use: Optional[RegionUse],
    writes: List[Write],
) -> Request:
    """A request to a step, which holds what it needs of its sources.

    Args:
        borrowed: the blocks are not for this step alone.
        use: the regions that the request of the client uses.
        writes: which outputs of the step are to be put into them.

    Raises:
        InvalidArgument: a string tensor is none.
    """
    blocks: List[Tuple[Lent, int]] = [(sources[position].loans[block], nbytes) for position, block, nbytes in plan.blocks]
    for placement, number, offset in plan.strings:
        loan = blocks[number][0]
        start = loan.offset + offset
        check_strings(model, placement, memoryview(loan.segment.memory)[start : start + placement.nbytes])
    for loan, _ in blocks:
        loan.retain()
    regions = None
    if use is not None and (plan.reads or writes):
        regions = use.part([sources[position].places[number] for position, number in plan.reads], writes)
    return Request(blocks, plan.inputs, extras, respond, borrowed=borrowed, regions=regions)


class AnswerPlan(NamedTuple):
    """What makes a response of the ensemble: which blocks of which sources it has."""

    outputs: OutputPlan
    blocks: List[Tuple[int, int]]


def plan_answer(
    ensemble: Servable, sources: Sequence[Source], wanted: Optional[Sequence[int]], batched: Dict[str, bool], writes: Sequence[int]
) -> AnswerPlan:
    """The response with those outputs that are wanted and there.

    Args:
        wanted: their indices, None for all.
        writes: the indices of those that the client wants in regions of its own.

    Raises:
        Unsupported: one of these is an input of the ensemble, which nobody puts there.
    """
    found = _find(sources)
    blocks: Dict[Tuple[int, int], int] = {}
    placed: List[Tuple[Any, ...]] = []
    for index, spec in enumerate(ensemble.outputs):
        if spec.name not in found or (wanted is not None and index not in wanted):
            continue
        position, tensor = found[spec.name]
        shape = fitted(tensor.shape, spec.shape, ensemble.max_batch_size > 0, batched[spec.name])
        if tensor.block >= len(sources[position].loans) and index in writes:
            placed.append((index, tensor.dtype, shape, IN_REGION, 0, tensor.nbytes))
        elif tensor.block >= len(sources[position].loans) or index in writes:
            raise Unsupported(
                f"output '{spec.name}' of ensemble '{ensemble.name}' is one of its inputs, and stays where that is: it cannot be moved to or "
                "from shared memory"
            )
        else:
            number = blocks.setdefault((position, tensor.block), len(blocks))
            placed.append((index, tensor.dtype, shape, number, tensor.offset, tensor.nbytes))
    return AnswerPlan(OutputPlan(ensemble.outputs, placed, len(blocks)), list(blocks))


def make_response(plan: AnswerPlan, sources: Sequence[Source], parameters: str) -> Response:
    """A response of the ensemble, which holds what it needs of its sources."""
    leases: List[Lease] = []
    places = []
    for position, block in plan.blocks:
        loan = sources[position].loans[block]
        places.append((loan.segment, loan.offset))
        leases.append(loan.lease())
    return Response(plan.outputs, places, leases, parameters)


def fitted(shape: Tuple[int, ...], spec: Sequence[int], batching: bool, batched: bool) -> Tuple[int, ...]:
    """The shape with which a tensor passes from one model to another, of which only one may batch: one item, or a batch of one.

    Args:
        spec: what the receiver expects; with the dimension of the batch if it is ``batching``.
        batched: whether the sender's first dimension is that of a batch.
    """
    if batching and not batched and matches(spec[1:], shape):
        return (1, *shape)
    if batched and not batching and shape[:1] == (1,) and matches(spec, shape[1:]):
        return shape[1:]
    return shape


def _find(sources: Sequence[Source]) -> Dict[str, Tuple[int, Tensor]]:
    return {name: (position, tensor) for position, source in enumerate(sources) for name, tensor in source.tensors().items()}
