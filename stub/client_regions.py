"""Tensors in shared memory of clients, at the stub's end: inputs are copied from there, outputs to there, once each.

A model gets copies of its inputs, as it does of everything that a client sends: what it writes to them is not seen by the client, and what
the client does meanwhile is not seen by the model. The copies lie in the stub's own arena, so sending one on costs no further copy.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..shm import bytes_codec
from ..shm.dtype import BYTES, element_count
from ..shm.errors import OutOfSharedMemory
from ..shm.message import IN_REGION, ErrorCode
from .guarded_copy import Lost, Window
from .memory import StubMemory
from .tensor import Tensor

Place = Tuple[int, int, int]
"""(region, offset, nbytes)."""

Writes = Dict[int, Place]
"""Where outputs go, by their indices in the configuration, and how many bytes they may have."""


class Region(NamedTuple):
    """What a client has registered under ``name``."""

    name: str
    window: Window


class Refused(Exception):
    """A request, or the response to it, is an error because of its regions; ``answer`` is what a result says instead."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.answer = (), (), (code, text), ""


class ClientRegions:
    """Args:
    fetch: waits for a region that the parent has announced.
    model: its name.
    inputs: the names of its inputs, in the order of the configuration.
    outputs: those of its outputs.
    """

    def __init__(
        self, memory: StubMemory, fetch: Callable[[int], Region], model: str, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        self._memory = memory
        self._fetch = fetch
        self._model = model
        self._inputs = inputs
        self._outputs = outputs

    def read(self, reads: Sequence[Place], inputs: Sequence[Tuple[Any, ...]], first: int) -> List[np.ndarray]:
        """Copies of the places that a request names.

        Args:
            inputs: of the request, as a message has them; in which ``first`` is the number of the first place.

        Raises:
            Refused: something is not there, there is no room for it, or it is not what the request says.
        """
        bases = []
        for number, (region_id, offset, nbytes) in enumerate(reads, first):
            region = self._fetch(region_id)
            try:
                base = self._memory.take_in(nbytes)
                region.window.read(offset, _address(base), nbytes)
            except Lost:
                names = [self._inputs[index] for index, _, _, block, _, _ in inputs if block == number]
                raise Refused(ErrorCode.INVALID_ARG, _lost(region, f"input '{names[0]}'" if names else "an input")) from None
            except OutOfSharedMemory as error:
                text = f"the inputs of a request to model '{self._model}' find no room: {error}"
                raise Refused(ErrorCode.UNAVAILABLE, text) from None
            bases.append(base)
        for index, dtype, shape, block, offset, nbytes in inputs:
            if dtype == BYTES.code and block >= first:
                wire = memoryview(bases[block - first])[offset : offset + nbytes]
                wrong = bytes_codec.mismatch(wire, element_count(shape), self._inputs[index], self._model)
                if wrong:
                    raise Refused(ErrorCode.INVALID_ARG, wrong)
        return bases

    def check(self, tensors: Sequence[Tuple[int, Tensor]], writes: Writes) -> None:
        """Checks that every output finds room in its region.

        Raises:
            Refused: one does not.
        """
        for index, tensor in tensors:
            room = writes[index][2]
            if tensor._nbytes > room:
                raise Refused(
                    ErrorCode.INTERNAL,
                    f"shared memory size specified with the request for output '{self._outputs[index]}' ({room} bytes) should be at least "
                    f"{tensor._nbytes} bytes to hold the results",
                )

    def write(self, tensors: Sequence[Tuple[int, Tensor]], writes: Writes) -> List[Tuple[Any, ...]]:
        """Copies outputs to their regions.

        Returns:
            What a message says of them.

        Raises:
            Refused: a region is not there any more.
        """
        described = []
        for index, tensor in tensors:
            region_id, offset, _ = writes[index]
            region = self._fetch(region_id)
            frozen: Optional[Any] = tensor._frozen
            data = tensor._wire() if frozen is None else np.frombuffer(frozen, np.uint8)
            try:
                region.window.write(offset, _address(data), tensor._nbytes)
            except (Lost, OutOfSharedMemory):
                raise Refused(ErrorCode.INVALID_ARG, _lost(region, f"output '{self._outputs[index]}'")) from None
            described.append((index, tensor._dtype.code, tensor._shape, IN_REGION, 0, tensor._nbytes))
        return described


def _lost(region: Region, what: str) -> str:
    return (
        f"shared memory region '{region.name}' no longer has the bytes of {what}: it was truncated after it was registered, or its file "
        "system is full"
    )


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]
