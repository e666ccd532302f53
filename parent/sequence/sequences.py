"""The sequences of a model: what their requests must be, what is added to them when they are handed over, and what is kept of their answers.

A request is handed over with the control inputs and the states of its sequence beside its own inputs, in blocks that go back with them. What
``Turn`` remembers of it is how it was before, for a request that the model wants to execute again (spec 2.8).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Dict, Hashable, List, Optional, Sequence, Tuple, Union

from ...shm.arena import Block, aligned
from ...shm.bytes_codec import LENGTH_BYTES
from ...shm.dtype import BYTES, element_count
from ...shm.errors import OutOfSharedMemory
from ..errors import InvalidArgument, ServerError, Unsupported
from ..model_config import TensorSpec
from ..request import Lent, Outcome, Request, Response
from ..scheduling.refusals import missing_start, refusal_of
from ..statistics import Failure
from .batcher import SequenceBatcher
from .config import START, batcher_for, controls_of
from .controls import Controls
from .state import SequenceMemory, StateOutputs
from .state_config import read_initial, states_of

if TYPE_CHECKING:
    from ..servable import Servable

_LONGEST_ID = 128
"""Of a correlation ID that is a string."""

_NO_EXTRAS: Tuple[Any, ...] = ("", None, "{}", 0, 0, 0)

_ZEROS = bytes(1 << 20)

Input = Tuple[int, int, Tuple[int, ...], int, int, int]
"""As a message describes it."""

_Head = Tuple[int, int]
"""The index and the data type of an input."""


class Turn:
    """A request of a sequence that was handed over. ``blocks``, ``inputs`` and ``requested`` are the request's own; ``memory`` is where the
    states go, if there are any; ``held``: the model is to wait with the next response when it gets the request again."""

    __slots__ = ("blocks", "held", "inputs", "memory", "requested", "sequences")

    def __init__(self, sequences: Sequences, request: Request) -> None:
        self.sequences = sequences
        self.blocks = request.blocks
        self.inputs = request.inputs
        self.requested: Optional[Tuple[int, ...]] = request.extras[1]
        self.memory: Optional[SequenceMemory] = None
        self.held = False


class Sequences:
    """All methods but ``read_initial_states`` are called under the model's lock.

    Args:
        most: requests that may wait, 0 for any number.
    """

    def __init__(self, model: Servable, most: int = 0) -> None:
        config = model.config
        self._model = model
        self._controls = controls_of(config)
        self._values = Controls(self._controls, model.name)
        self._states = states_of(config)
        self._first: List[bytes] = []
        self._outputs = StateOutputs(self._states, [spec.name for spec in model.outputs])
        self._memories: Dict[Hashable, SequenceMemory] = {}
        self._ids = itertools.count(1)
        self.iterative: bool = config.sequence_batching.iterative_sequence
        self.scheduler: SequenceBatcher[Any, Request] = batcher_for(config, self._ended, most)
        direct = config.sequence_batching.WhichOneof("strategy_choice") != "oldest"
        self._rows = direct and config.max_batch_size > 1 and any(control.kind == "READY" for control in self._controls)
        """A model that is told which rows of a batch have a request gets all of them, up to the last that has one."""
        self.inputs = [control.name for control in self._controls] + [state.input for state in self._states]
        """The names of the inputs that are added."""
        own = {spec.name for spec in model.outputs}
        hidden = [state for state in self._states if state.output not in own]
        self.outputs = [TensorSpec(state.output, state.dtype, state.shape, False) for state in hidden]
        """Those that the model has beside those of its clients."""
        dtypes = [control.dtype for control in self._controls] + [state.dtype for state in self._states]
        self._heads = [(len(model.inputs) + i, dtype.code) for i, dtype in enumerate(dtypes)]
        every = [spec.name for spec in (*model.outputs, *self.outputs)]
        self._state_indices = [every.index(state.output) for state in self._states]

    def read_initial_states(self) -> None:
        """Reads the files that the configuration names.

        Raises:
            OSError, ValueError: as ``state_config.read_initial``.
        """
        self._first = read_initial(self._states, self._model.name, self._model.directory)

    # Requests

    def admit(self, request: Request) -> None:
        """Checks a request that arrives, and gives one its sequence that is one of its own.

        Raises:
            InvalidArgument, Unsupported: in Triton's words.
        """
        model = self._model
        if model.max_batch_size > 0 and request.inputs and request.inputs[0][2][0] != 1:
            raise InvalidArgument(
                f"inference request to model '{model.name}' must specify batch-size 1 due to requirements of sequence batcher"
            )
        request_id, requested, parameters, sequence, flags, *rest = request.extras or _NO_EXTRAS
        if not sequence:
            if not self.iterative:
                raise InvalidArgument(f"inference request to model '{model.name}' must specify a non-zero or non-empty correlation ID")
            sequence = next(number for number in self._ids if not self.scheduler.is_known(number))
            flags |= START
        if isinstance(sequence, str) and len(sequence) > _LONGEST_ID:
            raise Unsupported(f"string correlation ID cannot be longer than {_LONGEST_ID} characters")
        if not flags & START and not self.scheduler.expects(sequence):
            raise InvalidArgument(missing_start(sequence, model.name))
        self._values.check(sequence)
        request.extras = (request_id, requested, parameters, sequence, flags, *rest)

    def dress(self, requests: Sequence[Request]) -> List[Request]:
        """Adds to a batch that is now handed over what the model is to be told with it.

        Raises:
            OutOfSharedMemory: there is no room for it; the requests hold what was added to them so far.
        """
        for request in requests:
            self._dress(request)
        return self._in_rows(requests) if self._rows else list(requests)

    def _dress(self, request: Request) -> None:
        turn = request.turn
        if turn is None:
            turn = request.turn = Turn(self, request)
        request_id, requested, parameters, sequence, flags, *rest = request.extras
        pieces = [*self._values.values(sequence, flags)]
        shapes: List[Tuple[int, ...]] = [(1, 1) if self._model.max_batch_size > 0 else (1,)] * len(pieces)
        if self._states:
            turn.memory = self._memory(sequence, bool(flags & START))
            kept = turn.memory.states
            # Those that are what they were at first are written beside the controls; the others lie where the stub put them.
            pieces += [b"" if state is not None else first for state, first in zip(kept, self._first)]
            shapes += [spec.first_shape if state is None else state.shape for spec, state in zip(self._states, kept)]
            if requested is not None:
                requested = tuple(sorted({*requested, *self._state_indices}))
                request.extras = (request_id, requested, parameters, sequence, flags, *rest)
        added: List[Tuple[Lent, int]] = []
        described = self._write(self._heads, pieces, shapes, len(turn.blocks), added)
        if turn.memory is not None:
            at = len(self._controls)
            for number, state in enumerate(turn.memory.states):
                if state is not None:
                    index, code, shape, _, _, _ = described[at + number]
                    described[at + number] = (index, code, shape, len(turn.blocks) + len(added), state.offset, state.nbytes)
                    state.loan.retain()
                    added.append((state.loan, state.loan.size))
        own = turn.inputs
        if request.regions is not None and added:
            # What lies in memory of the client's is numbered after the blocks.
            count, more = len(turn.blocks), len(added)
            own = [(i, code, shape, block + more if block >= count else block, *rest) for i, code, shape, block, *rest in own]
        request.blocks = (*turn.blocks, *added)
        request.inputs = (*own, *described)
        # What the model writes to a state, or to an input that it may get again, is seen by nobody else.
        request.borrowed = request.borrowed or bool(self._states) or self.iterative

    def _write(
        self,
        heads: Sequence[_Head],
        pieces: Sequence[Union[bytes, int]],
        shapes: Sequence[Tuple[int, ...]],
        number: int,
        added: List[Tuple[Lent, int]],
    ) -> List[Input]:
        """Puts tensors in a block that is added to a request as its ``number``-th; how a message describes them. A piece is the bytes of
        one, or so many zeros.

        Raises:
            OutOfSharedMemory: there is no room for it.
        """
        if not pieces:
            return []
        sizes = [piece if isinstance(piece, int) else len(piece) for piece in pieces]
        size = sum(map(aligned, sizes))
        block = self._model.arena.allocate(size)
        described: List[Input] = []
        offset = 0
        for (index, code), piece, nbytes, shape in zip(heads, pieces, sizes, shapes):
            try:
                _write(block, offset, piece, nbytes)
            except OutOfSharedMemory:
                block.release()
                raise
            described.append((index, code, shape, number, offset, nbytes))
            offset += aligned(nbytes)
        added.append((block, size))
        return described

    def _memory(self, sequence: Hashable, starts: bool) -> SequenceMemory:
        memory = self._memories.get(sequence)
        if memory is None or starts:
            if memory is not None:
                memory.close()
            memory = self._memories[sequence] = SequenceMemory(len(self._states))
        return memory

    def _in_rows(self, requests: Sequence[Request]) -> List[Request]:
        """The requests at the places of their sequences; in the rows between them, what stands for none."""
        rows = {self.scheduler.place_of(request.extras[3]): request for request in requests}
        empty: List[Request] = []
        try:
            for place in range(max(rows)):
                if place not in rows:
                    rows[place] = self._empty_row(requests[0])
                    empty.append(rows[place])
        except OutOfSharedMemory:
            for row in empty:
                row.release()
            raise
        batch = requests[0].batch
        if batch is not None:
            batch.left += len(empty)
        return [rows[place] for place in sorted(rows)]

    def _empty_row(self, like: Request) -> Request:
        """Zeros in the shapes of another request, that say that they are none."""
        assert like.turn is not None
        own = like.turn.inputs
        heads = [*((index, code) for index, code, *_ in own), *self._heads]
        shapes = [self._row_shape(*each) for each in own]
        zeros = [element_count(shape) * LENGTH_BYTES if head[1] == BYTES.code else head[5] for head, shape in zip(own, shapes)]
        pieces: List[Union[bytes, int]] = [*zeros]
        pieces += [*self._values.values(0, 0, ready=False), *self._first]
        shapes += [(1, 1)] * len(self._controls) + [state.first_shape for state in self._states]
        blocks: List[Tuple[Lent, int]] = []
        row = Request(blocks, tuple(self._write(heads, pieces, shapes, 0, blocks)), (), _nobody)
        row.answered = True
        row.instance, row.batch, row.submitted_ns = like.instance, like.batch, like.submitted_ns
        return row

    def _row_shape(self, index: int, code: int, shape: Tuple[int, ...], _block: int, _offset: int, nbytes: int) -> Tuple[int, ...]:
        """That of an input of another request, unless there cannot be so many strings in it: of those in memory of a client's nobody has
        looked at more than their shape."""
        if code != BYTES.code or element_count(shape) * LENGTH_BYTES <= nbytes:
            return shape
        spec = self._model.inputs[index]
        return tuple([1 if wanted == -1 else dim for dim, wanted in zip(shape, spec.model_shape or spec.shape)])

    def handed(self, requests: Sequence[Request]) -> None:
        """A batch was handed over: has the model wait with what it says to a request whose client wanted that before."""
        for request in requests:
            if request.turn is not None and request.turn.held and request.instance is not None:
                request.instance.channel.hold(request, True)

    # Answers

    def took(self, request: Request, response: Response) -> Outcome:
        """Keeps the states of a response; what is left for the client."""
        turn = request.turn
        if turn is None or turn.memory is None:
            return response
        outcome = self._outputs.take(response, turn.requested, turn.memory)
        if not isinstance(outcome, Response):
            request.failure = Failure.BACKEND
        return outcome

    def again(self, request: Request, now: int) -> Optional[ServerError]:
        """The model wants to execute a request once more. Why that cannot be, or None.

        Its own blocks must be held once more; those that were added are not.
        """
        turn, batch = request.turn, request.batch
        assert turn is not None and batch is not None
        self._model.statistics.given_back(batch)
        request.blocks, request.inputs = turn.blocks, turn.inputs
        request_id, requested, parameters, sequence, flags, *rest = request.extras
        request.extras = (request_id, requested, parameters, sequence, flags & ~START, *rest)
        request.instance = None
        request.returned = request.finished = False
        request.computed_ns = request.execute_ns = 0
        reason = self.scheduler.again(request, now)
        return None if reason is None else refusal_of(request, reason, self._model.name)

    def _ended(self, sequence: Hashable) -> None:
        memory = self._memories.pop(sequence, None)
        if memory is not None:
            memory.close()


def _write(block: Block, offset: int, piece: Union[bytes, int], nbytes: int) -> None:
    if not isinstance(piece, int):
        block.write(offset, piece, nbytes)
        return
    while nbytes:
        count = min(nbytes, len(_ZEROS))
        block.write(offset, _ZEROS[:count], count)
        offset, nbytes = offset + count, nbytes - count


def _nobody(_outcome: Optional[Outcome], _final: bool) -> None:
    """Whom an empty row is answered to."""
