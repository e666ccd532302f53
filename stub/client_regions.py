"""Tensors in shared memory of clients, at the stub's end: large inputs are viewed where they are, outputs are copied there, once.

Memory of a GPU is given to a model as it is there if the model takes such inputs, else it is copied to the arena.
What a model writes to its inputs is not seen by the client, for they are in a copy-on-write mapping. What it keeps of them when its request
is over becomes its own. Small inputs, strings, and those that lie where an array should not are copied to the stub's own arena.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ..shm import bytes_codec
from ..shm.arena import LARGE_BYTES
from ..shm.dtype import BYTES, element_count
from ..shm.errors import OutOfSharedMemory
from ..shm.message import IN_REGION, ErrorCode
from .bus_guard import GuardedMapping
from .error import TritonModelException
from .memory import StubMemory
from .tensor import Tensor
from .window import Lost, Window

if TYPE_CHECKING:
    from .cuda.region import DeviceRegion

_ALIGNMENT = 64
"""Of the first element of an array, as DLPack wants it."""
_VIEWS = 4
"""So many views of the same bytes may there be at a time; those beyond are of copies."""

Place = Tuple[int, int, int]
"""(region, offset, nbytes)."""

Writes = Dict[int, Place]
"""Where outputs go, by their indices in the configuration, and how many bytes they may have."""


class Region(NamedTuple):
    """What a client has registered under ``name``."""

    name: str
    window: Window

    def close(self) -> None:
        """It is no more."""
        self.window.close()


AnyRegion = Union[Region, "DeviceRegion"]


class Look(NamedTuple):
    """A view that a model has of ``nbytes`` bytes at ``offset`` of a region, which begin at ``address``. ``what``: to be named in an error."""

    region: Region
    mapping: GuardedMapping
    address: int
    offset: int
    nbytes: int
    what: str

    def check(self) -> None:
        """Raises Refused if not everything that the model saw was the client's."""
        try:
            self.region.window.check(self.offset, self.nbytes)
        except Lost:
            pass
        else:
            if not self.mapping.lost:
                return
        raise Refused(ErrorCode.INVALID_ARG, _lost(self.region.name, self.what))

    def keep(self) -> None:
        """The model keeps it: from now on it has bytes of its own."""
        with suppress(OSError):  # no memory: then it sees what the client does
            self.mapping.freeze(self.address, self.address + self.nbytes)


class InRegions(NamedTuple):
    """What of a request lies in regions. ``looks``: for each block of inputs in one, the view of it, or None for a copy."""

    looks: List[Optional[Look]]
    writes: Writes

    def check(self) -> None:
        """Raises Refused if not everything that the model saw was the client's."""
        for look in self.looks:
            if look is not None:
                look.check()


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
    on_device: whether the model takes inputs in memory of a GPU.
    """

    def __init__(
        self,
        memory: StubMemory,
        fetch: Callable[[int], AnyRegion],
        model: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        on_device: bool = False,
    ) -> None:
        self._memory = memory
        self._fetch = fetch
        self._model = model
        self._inputs = inputs
        self._outputs = outputs
        self._on_device = on_device

    def read(self, reads: Sequence[Place], inputs: Sequence[Tuple[Any, ...]], first: int) -> Tuple[List[Any], List[Optional[Look]]]:
        """The places that a request names: UINT8, each a view or a copy, or a ``cuda.memory.DeviceMemory``.

        Args:
            inputs: of the request, as a message has them; in which ``first`` is the number of the first place.

        Raises:
            Refused: something is not there, there is no room for it, or it is not what the request says.
        """
        bases: List[Any] = []
        looks: List[Optional[Look]] = []
        strings = {block for _, dtype, _, block, _, _ in inputs if dtype == BYTES.code}
        for number, (region_id, offset, nbytes) in enumerate(reads, first):
            region = self._fetch(region_id)
            names = [self._inputs[index] for index, _, _, block, _, _ in inputs if block == number]
            what = f"input '{names[0]}'" if names else "an input"
            try:
                if not isinstance(region, Region):
                    bases.append(self._from_device(region, offset, nbytes, number in strings, what))
                    looks.append(None)
                    continue
                found = None
                if nbytes >= LARGE_BYTES and number not in strings and region.window.place(offset) % _ALIGNMENT == 0:
                    found = self._view(region, offset, nbytes, what)
                base, look = found or (self._memory.take_in(nbytes), None)
                if look is None:
                    region.window.read(offset, base)
            except Lost:
                raise Refused(ErrorCode.INVALID_ARG, _lost(region.name, what)) from None
            except OutOfSharedMemory as error:
                text = f"the inputs of a request to model '{self._model}' find no room: {error}"
                raise Refused(ErrorCode.UNAVAILABLE, text) from None
            bases.append(base)
            looks.append(look)
        for index, dtype, shape, block, offset, nbytes in inputs:
            if dtype == BYTES.code and block >= first:
                wire = memoryview(bases[block - first])[offset : offset + nbytes]
                wrong = bytes_codec.mismatch(wire, element_count(shape), self._inputs[index], self._model)
                if wrong:
                    raise Refused(ErrorCode.INVALID_ARG, wrong)
        return bases, looks

    def _from_device(self, region: DeviceRegion, offset: int, nbytes: int, strings: bool, what: str) -> Any:
        try:
            if self._on_device and not strings:
                return region.lend(offset, nbytes)
            base = self._memory.take_in(nbytes)
            region.read(offset, base)
            return base
        except TritonModelException as error:
            raise Refused(ErrorCode.INVALID_ARG, _unusable(region.name, what, error)) from error

    def _view(self, region: Region, offset: int, nbytes: int, what: str) -> Optional[Tuple[np.ndarray, Look]]:
        window = region.window
        window.check(offset, nbytes)
        for index in range(_VIEWS):
            mapping = window.private(index)
            if mapping is None:
                break
            base = self._memory.view_client(mapping.memory, window.place(offset), nbytes)
            if base is not None:
                return base, Look(region, mapping, _address(base), offset, nbytes, what)
        return None

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
            what = f"output '{self._outputs[index]}'"
            if not isinstance(region, Region):
                try:
                    if tensor._on_device:
                        region.copy(offset, tensor)  # type: ignore[arg-type]
                    else:
                        region.write(offset, _bytes_of(tensor))
                except TritonModelException as error:
                    raise Refused(ErrorCode.INVALID_ARG, _unusable(region.name, what, error)) from error
            else:
                try:
                    region.window.write(offset, _bytes_of(tensor.cpu()))
                except (Lost, OutOfSharedMemory):
                    raise Refused(ErrorCode.INVALID_ARG, _lost(region.name, what)) from None
            described.append((index, tensor._dtype.code, tensor._shape, IN_REGION, 0, tensor._nbytes))
        return described


def _lost(region: str, what: str) -> str:
    return (
        f"shared memory region '{region}' no longer has the bytes of {what}: it was truncated after it was registered, or its file "
        "system is full"
    )


def _unusable(region: str, what: str, error: Exception) -> str:
    return f"shared memory region '{region}' cannot be used for {what}: {error}"


def _bytes_of(tensor: Tensor) -> np.ndarray:
    """UINT8 [nbytes], as they were when it was first sent."""
    frozen: Optional[Any] = tensor._frozen
    return tensor._wire() if frozen is None else np.frombuffer(frozen, np.uint8)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]
