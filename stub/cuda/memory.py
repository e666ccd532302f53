"""Device memory that tensors lie in: a library's, one of this process's own, or lent by another.

A tensor refers to one of these, and so does every capsule made of it; when the last of them is gone, so is the memory. What is lent goes
back only after every stream that may read it has come to the end of what it was given before: whoever gets the memory next would
otherwise write to what is still being read.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from ...shm.cuda.driver import ANY_STREAM, LEGACY_STREAM, PER_THREAD_STREAM, CudaError, Driver, NoDriver
from ..error import TritonModelException
from .devices import Device, Devices, here
from .releases import releases

if TYPE_CHECKING:
    from ...shm.dtype import DataType
    from .segment import ImportedSegment
    from .tensor import DeviceTensor


class Readers:
    """The streams on which memory may be read that is to be used again: the legacy default stream, and those that were named."""

    __slots__ = ("_anywhere", "_streams")

    def __init__(self) -> None:
        self._streams: Dict[int, Any] = {LEGACY_STREAM: None}  # with what keeps each
        self._anywhere = False

    def add(self, stream: Optional[int]) -> None:
        """One more, which whoever asks uses just now; None for any."""
        if stream is None or stream in (ANY_STREAM, PER_THREAD_STREAM):
            self._anywhere = True
        elif stream not in self._streams:
            self._streams[stream] = _keeper_of(stream)

    def wait(self, driver: Driver) -> None:
        """Returns when all have come to the end of what they were given."""
        event = driver.create_event()
        try:
            for stream in self._streams:
                driver.record(event, stream)
                driver.wait_for(event)
        except CudaError:
            # One was destroyed. Should the context be lost, as the error may say in either case, the next call says it again.
            self._anywhere = True
        finally:
            driver.destroy_event(event)
        if self._anywhere:
            driver.finish_all()


def _keeper_of(stream: int) -> Any:
    """What keeps a stream: to name one that was destroyed is undefined (cuda_runtime_api.h, cudaStreamDestroy). CuPy destroys its own with
    the last reference, often together with the array that is read there; torch and JAX keep theirs. It would be no better to wait for
    the whole context instead: that spoils whatever graph is just being captured."""
    cupy: Any = sys.modules.get("cupy")
    with suppress(Exception):  # it is not there, or just being imported, or cannot use the GPU: then it is not who asks
        current = cupy.cuda.get_current_stream()
        if current.ptr == stream:
            return current
    return None


class DeviceMemory:
    """``nbytes`` bytes on a device. ``owner``: what keeps them. ``readers``: to be told who may read them."""

    __slots__ = ("__weakref__", "_address", "_device", "_devices", "_owner", "_readers", "nbytes")

    def __init__(
        self, devices: Devices, device: Device, address: int, nbytes: int, owner: Any = None, readers: Optional[Readers] = None
    ) -> None:
        self.nbytes = nbytes
        self._readers = readers
        self._devices: Optional[Devices] = devices
        self._device: Optional[Device] = device
        self._address = address
        self._owner = owner

    @property
    def devices(self) -> Devices:
        """The devices of this process.

        Raises:
            TritonModelException: it has none.
        """
        assert self._devices is not None
        return self._devices

    @property
    def device(self) -> Device:
        """Where it is.

        Raises:
            TritonModelException: not where this process can see it.
        """
        assert self._device is not None
        return self._device

    def address(self, stream: Optional[int] = LEGACY_STREAM) -> int:
        """Of its first byte, to be read by work on that stream; with None, by work on any.

        Raises:
            TritonModelException: it cannot be had in this process.
        """
        if self._readers is not None:
            self._readers.add(stream)
        return self._address

    def tensor(self, name: str, dtype: DataType, shape: Sequence[int], offset: int, nbytes: int) -> DeviceTensor:
        """A tensor in ``nbytes`` bytes of it."""
        from .tensor import DeviceTensor

        return DeviceTensor.of(name, dtype, shape, self, offset, nbytes)

    @classmethod
    def allocate(cls, devices: Devices, device: Device, nbytes: int) -> DeviceMemory:
        """Memory of this process's own, freed when it is gone.

        Raises:
            TritonModelException: the device has no room for it.
        """
        releases.start()
        with devices.on(device) as driver:
            address = driver.allocate(max(nbytes, 1))
        readers = Readers()
        memory = cls(devices, device, address, nbytes, readers=readers)

        def free() -> None:
            with devices.on(device) as driver:
                readers.wait(driver)  # which freeing may do, and need not (cuda.h)
                driver.free(address)

        weakref.finalize(memory, releases.later, free).atexit = False
        return memory


class Lease:
    """A block that was lent, until it is given back: when its memory is ``gone``, and the server was told that it was kept (``settle``)."""

    __slots__ = ("_gone", "_settled", "_turn", "key", "place", "readers")

    def __init__(self, key: Tuple[int, int]) -> None:
        self.key = key
        self.place: Optional[Tuple[Devices, Device]] = None
        """Set when this process has looked where the block is: only then can something have read it."""
        self.readers = Readers()
        self._gone = self._settled = False
        self._turn: List[None] = [None]  # whoever takes it gives the block back: both sides may find that it is time

    def gone(self) -> None:
        """The last view of it is gone. In any thread, also in the collection of garbage."""
        self._gone = True
        if self._settled:
            self._give_back()

    def settle(self) -> bool:
        """The request that it came with is answered: whether the server is to be told that the block is kept. If so, its release follows."""
        if self._gone and self.place is None:
            return False
        self._settled = True
        if self._gone:
            self._give_back()
        return True

    def _give_back(self) -> None:
        try:
            self._turn.pop()
        except IndexError:
            return
        releases.give_back(self)

    def fence(self) -> None:
        """Returns when nothing reads the block any more."""
        if self.place is None:
            return
        devices, device = self.place
        with devices.on(device) as driver:
            self.readers.wait(driver)


class LentMemory(DeviceMemory):
    """A block of a segment of device memory, opened when somebody asks for its address."""

    __slots__ = ("_offset", "_segment", "lease")

    def __init__(self, segment: ImportedSegment, offset: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._devices = self._device = self._owner = self._readers = None
        self._address = 0
        self._segment = segment
        self._offset = offset
        self.lease = Lease((segment.id, offset))
        releases.start()
        weakref.finalize(self, self.lease.gone).atexit = False

    @property
    def devices(self) -> Devices:
        try:
            return here()
        except TritonModelException as error:
            if isinstance(error.__cause__, NoDriver):  # not that of the instance, if this is a process that it forked
                self._segment.refuse(str(error.__cause__))
            raise

    @property
    def device(self) -> Device:
        if self._device is None:
            self._device = self._segment.find(self.devices)
        return self._device

    def address(self, stream: Optional[int] = LEGACY_STREAM) -> int:
        lease = self.lease
        lease.readers.add(stream)
        if lease.place is None:
            devices, device = self.devices, self.device
            self._address = self._segment.open(devices, device) + self._offset
            lease.place = devices, device
        return self._address
