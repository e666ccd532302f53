"""A request and its responses as the server holds them: where their tensors lie in shared memory, and who is told."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ..shm.arena import Block, aligned
from ..shm.dtype import BY_CODE, DataType
from ..shm.errors import ProtocolError
from ..shm.message import IN_REGION
from ..shm.segment import Segment
from .errors import ServerError
from .model_config import TensorSpec
from .reshape import reshaped
from .statistics import Failure

if TYPE_CHECKING:
    from .client_memory import RegionUse
    from .instance import Instance
    from .sequence.sequences import Turn
    from .tracing.trace import Trace

Lease = Tuple[Callable[[Any], None], Any]
"""What gives a block back: a function safe to call in any thread, even from a garbage collection, and its argument."""


class Loan:
    """A block that belongs to another than who is given it: another model's arena, or another stub's. It goes back to where it came
    from when its last holder releases it. In any thread."""

    __slots__ = ("_holders", "_lease", "_lock", "offset", "segment", "size")

    def __init__(self, segment: Segment, offset: int, size: int, lease: Lease) -> None:
        self.segment = segment
        self.offset = offset
        self.size = size
        self._lease = lease
        self._holders = 1
        self._lock = threading.Lock()

    @property
    def key(self) -> Tuple[int, int]:
        """What names the block in a message: (segment id, offset)."""
        return self.segment.id, self.offset

    def retain(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            give_back, item = self._lease
            give_back(item)

    def lease(self) -> Lease:
        """One more hold on it, as what gives it back."""
        self.retain()
        return Loan.release, self


Lent = Union[Block, Loan]


class Output(NamedTuple):
    """One output: ``nbytes`` bytes at ``offset`` in block number ``block`` of its response; ``block`` is IN_REGION for one that was written
    to shared memory of the client's, which has no bytes here."""

    name: str
    dtype: DataType
    shape: Tuple[int, ...]
    block: int
    offset: int
    nbytes: int


class OutputPlan:
    """What a response consists of, apart from where its blocks are. The outputs of a model tend to have the same one every time, so
    it is made once for each and kept with the model; compared by identity.

    ``extents``: for each block, the bytes of it that outputs use. ``nbytes``: sum of all outputs that lie in blocks. ``in_regions``: the
    indices of the others. ``misshapen``: what is wrong with the shape of an output that has a ``reshape``, empty if nothing is.
    """

    __slots__ = ("extents", "in_regions", "misshapen", "nbytes", "outputs")

    def __init__(self, specs: Sequence[TensorSpec], placed: Sequence[Tuple[Any, ...]], blocks: int) -> None:
        """Reads the outputs of a message that was decoded.

        Raises:
            ProtocolError: an output that the model does not have.
        """
        extents = [0] * blocks
        outputs = []
        self.misshapen = ""
        for index, code, shape, block, offset, nbytes in placed:
            if index >= len(specs):
                raise ProtocolError(f"output {index} of {len(specs)}")
            spec = specs[index]
            if spec.model_shape is not None:
                seen, shape = shape, reshaped(shape, spec.model_shape, spec.shape)
                if shape is None:
                    self.misshapen = f"output '{spec.name}' has shape {list(seen)}, but its 'reshape' says {list(spec.model_shape)}"
                    shape = seen
            outputs.append(Output(spec.name, BY_CODE[code], shape, block, offset, nbytes))
            if block != IN_REGION:
                extents[block] = max(extents[block], offset + nbytes)
        self.outputs = outputs
        self.extents = extents
        self.nbytes = sum([output.nbytes for output in outputs if output.block != IN_REGION])
        self.in_regions = frozenset([index for index, _, _, block, _, _ in placed if block == IN_REGION])

    def packed(self) -> OutputPlan:
        """The same outputs in one block, one after the other, each aligned. None of them is in a region."""
        plan = object.__new__(OutputPlan)
        plan.outputs, end = [], 0
        for output in self.outputs:
            plan.outputs.append(output._replace(block=0, offset=end))
            end += aligned(output.nbytes)
        plan.extents = [end]
        plan.nbytes, plan.in_regions, plan.misshapen = self.nbytes, self.in_regions, self.misshapen
        return plan


class Response:
    """The outputs of a request, which stay in shared memory until ``release`` or, after ``views``, until the last view is gone.

    ``places``: the segment and the offset in it of each block.
    """

    __slots__ = ("_leases", "parameters", "places", "plan")

    def __init__(self, plan: OutputPlan, places: List[Tuple[Segment, int]], leases: List[Lease], parameters: str) -> None:
        self.plan = plan
        self.places = places
        self._leases = leases
        self.parameters = parameters

    def copy(self, output: Output) -> bytes:
        """The bytes of one output; none for one in a region."""
        if output.block == IN_REGION:
            return b""
        segment, start = self.places[output.block]
        start += output.offset
        return segment.memory[start : start + output.nbytes]

    def release(self) -> None:
        """Gives the memory back. Nothing may read the outputs afterwards."""
        for give_back, block in self._leases:
            give_back(block)
        self._leases = []

    def views(self) -> Iterator[np.ndarray]:
        """The bytes of each output, UINT8 [nbytes] (none for one in a region), without a copy; each block goes back when the last view of
        it is collected."""
        bases: Dict[int, np.ndarray] = {}
        for index, (give_back, block) in enumerate(self._leases):
            segment, start = self.places[index]
            bases[index] = np.ndarray((self.plan.extents[index],), np.uint8, segment.memory, start)
            weakref.finalize(bases[index], give_back, block).atexit = False
        self._leases = []
        for output in self.plan.outputs:
            if output.block == IN_REGION:
                yield np.empty(0, np.uint8)
            else:
                yield bases[output.block][output.offset : output.offset + output.nbytes]

    def lend(self) -> List[Loan]:
        """Its blocks, to be handed to another stub, which gives them back."""
        leases, self._leases = self._leases, []
        return [Loan(segment, offset, extent, lease) for (segment, offset), extent, lease in zip(self.places, self.plan.extents, leases)]


Outcome = Union[Response, ServerError]


def drop(outcome: Optional[Outcome]) -> None:
    """Gives back the memory of an outcome that nobody wants."""
    if isinstance(outcome, Response):
        outcome.release()


class Batch:
    """Requests that are executed together. ``items``: batch items of all of them. ``left``: how many the stub has not returned.

    ``handed_ns``: when they were handed over. ``begun_ns``, ``computed_ns``: as of a request, 0 until they are known. ``counted``: the
    execution is in the statistics."""

    __slots__ = ("begun_ns", "computed_ns", "counted", "handed_ns", "items", "left")

    def __init__(self, requests: int, items: int, handed_ns: int) -> None:
        self.left = requests
        self.items = items
        self.handed_ns = handed_ns
        self.begun_ns = 0
        self.computed_ns = 0
        self.counted = False


class Request:
    """One inference on its way.

    ``blocks``, each with the bytes of it that are used, hold its inputs; the request holds them until ``execute`` is over. ``inputs``
    and ``extras`` are as in a message (``stublet.shm.message``). ``borrowed`` says that the blocks are those of another stub,
    whose contents must not be changed. ``regions``: what of it lies in shared memory of the client's, in use until the request is over.

    ``respond`` is called with each outcome and whether it is the last one: exactly once with True. For a decoupled model, the last
    call may have no outcome (None); for any other there is one call, and it has one. It is called in whatever thread the outcome
    becomes known, and must not block.
    """

    __slots__ = (
        "answered", "batch", "begun_ns", "blocks", "borrowed", "cached_ns", "computed_ns", "device_outputs", "execute_ns", "extras", "failure", "finished", "input_ns", "inputs",
        "instance", "key", "priority", "regions", "respond", "responded_ns", "responses", "retried", "returned", "streamed", "submitted_ns",
        "trace", "turn", "warmup",
    )  # fmt: skip

    def __init__(
        self,
        blocks: Sequence[Tuple[Lent, int]],
        inputs: Sequence[Tuple[Any, ...]],
        extras: Tuple[Any, ...],
        respond: Callable[[Optional[Outcome], bool], None],
        borrowed: bool = False,
        regions: Optional[RegionUse] = None,
    ) -> None:
        self.blocks = blocks
        self.inputs = inputs
        self.extras = extras
        self.respond = respond
        self.borrowed = borrowed
        self.regions = regions
        self.device_outputs = False
        """Its outputs may be in device memory."""
        self.priority = 0
        """As the client wants it: 1 is the highest, 0 the model's default."""
        self.batch: Optional[Batch] = None
        """Those that it is executed with, where requests are executed together."""
        self.trace: Optional[Trace] = None
        """Is told what happens, if the request is traced."""
        self.turn: Optional[Turn] = None
        """What it is in its sequence, once it was handed over."""
        self.answered = False
        """``respond`` was told the last outcome."""
        self.finished = False
        """The stub has nothing more to say of it."""
        self.returned = False
        """``execute`` is over for it."""
        self.streamed = False
        """Of a decoupled model: something of its answer is known."""
        self.retried = False
        """It was being executed by an instance that died, and goes to another."""
        self.instance: Optional[Instance] = None
        """Who it was handed to, under the number ``key``."""
        self.key = 0
        self.submitted_ns = 0
        """When it was submitted, as all times here by ``perf_counter_ns``; see ``statistics``, which is what they are for."""
        self.begun_ns = 0
        self.computed_ns = 0
        self.execute_ns = 0
        """What the stub says that ``execute`` took."""
        self.input_ns = 0
        """What the copying of its inputs took, before it was submitted."""
        self.cached_ns = 0
        """What it took to find the answer in the response cache, if it was there."""
        self.warmup = False
        """It is for the instance that it was handed to, and for nobody else's statistics."""
        self.failure: Optional[Failure] = None
        """Why there is no success to be counted."""
        self.responses = 0
        self.responded_ns = 0
        """Of a decoupled model: how many responses ``respond`` was told, and when it had been told the last of them."""

    @property
    def is_over(self) -> bool:
        """Whether the stub has nothing more to do with it, nor to say of it."""
        return self.finished and self.returned

    @property
    def can_be_retried(self) -> bool:
        """Whether it can be executed by another instance though one has begun with it."""
        return not (self.answered or self.returned or self.streamed or self.retried or self.warmup)

    def retry(self) -> None:
        """It is to be executed once more, from the start."""
        self.retried = True
        self.finished = False
        self.batch = None
        self.begun_ns = self.computed_ns = self.execute_ns = 0

    def release(self) -> None:
        """Gives its blocks back, and the regions free. Under the lock of the model that it was submitted to."""
        for block, _ in self.blocks:
            block.release()
        if self.regions is not None:
            self.regions.release()


Settled = Tuple[Request, Optional[Outcome], bool]
"""A request, what came of it, and whether nothing more will."""
