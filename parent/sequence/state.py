"""Implicit state (spec 5.4, ``state``): what a model says at the end of one request of a sequence, it is told with the next one.

A state output stays where the stub put it, in shared memory, and is lent to the stub as the state input of the next request: the server
copies no byte of it. The client does not see it, unless it is an output of the model as well.
"""

from __future__ import annotations

import copy
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ...shm.message import IN_REGION
from ..errors import InternalError
from ..request import Lease, Loan, Outcome, Output, OutputPlan, Response
from .state_config import StateSpec

_REMEMBERED = 256


class HeldState(NamedTuple):
    """A state as the last request left it: ``nbytes`` bytes at ``offset`` of a block."""

    loan: Loan
    offset: int
    nbytes: int
    shape: Tuple[int, ...]


class SequenceMemory:
    """The states of one sequence, in the order of the configuration; None for one that is what it was at first. Under the model's lock."""

    __slots__ = ("_closed", "states")

    def __init__(self, states: int) -> None:
        self.states: List[Optional[HeldState]] = [None] * states
        self._closed = False

    def put(self, index: int, state: HeldState) -> None:
        """A state is another now."""
        if self._closed:
            state.loan.release()
            return
        before, self.states[index] = self.states[index], state
        if before is not None:
            before.loan.release()

    def close(self) -> None:
        """The sequence has ended, or begun anew: gives the memory back."""
        self._closed = True
        for index, state in enumerate(self.states):
            if state is not None:
                state.loan.release()
                self.states[index] = None


class _Split(NamedTuple):
    """A response taken apart: ``states``, each with its number; the ``plan`` of what is the client's, and the ``blocks`` that this is in;
    ``wrong``: what is wrong with a state, empty if nothing is."""

    states: List[Tuple[int, Output]]
    plan: OutputPlan
    blocks: List[int]
    wrong: str


class StateOutputs:
    """Takes the states out of responses.

    Args:
        outputs: the names of the outputs of the model, in the order of the configuration; those of states that are not among them are the
            client's never.
    """

    def __init__(self, states: Sequence[StateSpec], outputs: Sequence[str]) -> None:
        self._states = {state.output: (number, state) for number, state in enumerate(states)}
        self._outputs = outputs
        self._splits: Dict[Tuple[Any, ...], _Split] = {}

    def take(self, response: Response, requested: Optional[Tuple[int, ...]], memory: SequenceMemory) -> Outcome:
        """Keeps the states of a response; what is left for the client, an error if a state is none.

        Args:
            requested: the outputs that the client wants, as indices in the configuration; None for all.
        """
        key = (tuple(response.plan.outputs), len(response.places), requested)
        split = self._splits.get(key)
        if split is None:
            split = self._split(response.plan, len(response.places), requested)
            if len(self._splits) >= _REMEMBERED:
                self._splits.clear()
            self._splits[key] = split
        if split.wrong:
            response.release()
            return InternalError(split.wrong)
        if not split.states:
            return response
        loans = response.lend()
        for number, output in split.states:
            loan = loans[output.block]
            loan.retain()
            memory.put(number, HeldState(loan, output.offset, output.nbytes, output.shape))
        leases: List[Lease] = []
        for index, loan in enumerate(loans):
            if index in split.blocks:
                leases.append((Loan.release, loan))
            else:
                loan.release()
        return Response(split.plan, [response.places[index] for index in split.blocks], leases, response.parameters)

    def _split(self, plan: OutputPlan, blocks: int, requested: Optional[Tuple[int, ...]]) -> _Split:
        wanted = {name for index, name in enumerate(self._outputs) if requested is None or index in requested}
        states = [(*self._states[output.name], output) for output in plan.outputs if output.name in self._states]
        wrong = next((text for _, state, output in states for text in _wrong(state, output)), "")
        kept = [output for output in plan.outputs if output.name in wanted]
        used = sorted({output.block for output in kept if output.block != IN_REGION})
        rest = copy.copy(plan)
        rest.outputs = [output if output.block == IN_REGION else output._replace(block=used.index(output.block)) for output in kept]
        rest.extents = [plan.extents[index] for index in used]
        rest.nbytes = sum(output.nbytes for output in rest.outputs if output.block != IN_REGION)
        return _Split([(number, output) for number, _, output in states], rest, used, wrong)


def _wrong(state: StateSpec, output: Output) -> Iterator[str]:
    if output.dtype is not state.dtype:
        yield f"state output '{output.name}' has data type {output.dtype.name}, but its configuration says {state.dtype.name}"
    shape = output.shape
    if len(shape) != len(state.shape) or any(want not in (-1, got) for want, got in zip(state.shape, shape)):
        yield f"state output '{output.name}' has shape {list(shape)}, but its configuration says {list(state.shape)}"
    if output.block == IN_REGION:
        yield f"state output '{output.name}' cannot be written to shared memory of the client's, because the sequence needs it"
