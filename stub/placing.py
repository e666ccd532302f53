"""From an InferenceResponse to what a message says of it: pruned to the outputs that are wanted, placed in shared memory."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from .client_regions import ClientRegions, InRegions
from .memory import StubMemory
from .response import InferenceResponse
from .tensor import Tensor

Answer = Tuple[Any, Any, Any, str]
"""(blocks, outputs, error, parameters) of a result."""

NOTHING: Answer = ((), (), (), "")


class Placing:
    """Args:
    outputs: the names of the model's outputs, in the order of the configuration.
    warn: tells the log something that is wrong with the model.
    """

    def __init__(
        self, memory: StubMemory, regions: ClientRegions, outputs: Sequence[str], instance: str, warn: Callable[[str], None]
    ) -> None:
        self._memory = memory
        self._regions = regions
        self._outputs: Dict[str, int] = {name: i for i, name in enumerate(outputs)}
        self._instance = instance
        self._warn = warn
        self._unknown: Set[str] = set()

    def answer(
        self, response: InferenceResponse, wanted: Set[str], goes_on: bool, in_regions: Optional[InRegions] = None, on_device: int = 0
    ) -> Answer:
        """Places the outputs of ``response`` whose names are in ``wanted``.

        Args:
            goes_on: the model may still change what it sends, because ``execute`` is not over.
            in_regions: what of the request lies in regions of the client's.
            on_device: whether outputs that are on a GPU may stay there.

        Raises:
            OutOfSharedMemory: no room.
            Refused: an output does not go to its region, or the client took an input away.
        """
        error = response._error
        if error is not None:
            return (), (), (error.code(), error.message()), ""
        outputs = self._outputs
        tensors = [(outputs[t._name], t) for t in response._output_tensors if t._name in wanted]
        if len(tensors) != len(response._output_tensors):
            self._note_unknown(response)
        parameters = "" if response._parameters == "{}" else response._parameters
        if in_regions is not None:
            return self._to_regions(tensors, goes_on, in_regions, parameters)
        blocks, described = self._memory.place(tensors, goes_on, on_device)
        return blocks, described, (), parameters

    def _to_regions(self, tensors: List[Tuple[int, Tensor]], goes_on: bool, in_regions: InRegions, parameters: str) -> Answer:
        writes = in_regions.writes
        here = [(index, tensor) for index, tensor in tensors if index not in writes]
        there = [(index, tensor) for index, tensor in tensors if index in writes]
        blocks: List[Any] = []
        try:
            self._regions.check(there, writes)
            blocks, described = self._memory.place(here, goes_on)
            described += self._regions.write(there, writes)
            in_regions.check()
            return blocks, described, (), parameters
        except BaseException:
            self._memory.take_back(blocks)
            raise

    def take_back(self, answer: Answer) -> None:
        """The answer is not going to be sent."""
        self._memory.take_back(answer[0])

    def _note_unknown(self, response: InferenceResponse) -> None:
        """Says once of each output that the configuration does not have that nobody will get it."""
        for name in {tensor._name for tensor in response._output_tensors} - self._outputs.keys() - self._unknown:
            self._unknown.add(name)
            self._warn(f"the output '{name}' of '{self._instance}' is not in its configuration and is dropped")
