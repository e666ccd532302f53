"""Device memory that tensors lie in: a library's, one of this process's own, or lent by another.

A tensor refers to one of these, and so does every capsule made of it; when the last of them is gone, so is the memory. What is lent goes
back only after every stream that was told of it has come to the end of what it was given before: whoever gets the memory next would
otherwise write to what is still being read.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Set, Tuple

from ...shm.cuda.driver import LEGACY_STREAM, CudaError
from .devices import Device, Devices, here
from .releases import releases

if TYPE_CHECKING:
    from ...shm.dtype import DataType
    from .segment import ImportedSegment
    from .tensor import DeviceTensor


class DeviceMemory:
    """``nbytes`` bytes on a device. ``owner``: what keeps them."""

    __slots__ = ("__weakref__", "_address", "_device", "_devices", "_owner", "nbytes")

    def __init__(self, devices: Devices, device: Device, address: int, nbytes: int, owner: Any = None) -> None:
        self.nbytes = nbytes
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
        memory = cls(devices, device, address, nbytes)

        def free() -> None:
            with devices.on(device) as driver:
                driver.free(address)  # waits for whatever reads it

        weakref.finalize(memory, releases.later, free).atexit = False
        return memory


class Lease:
    """A block that was lent, until it is given back: when its memory is ``gone``, and the server was told that it was kept (``settle``)."""

    __slots__ = ("_gone", "_settled", "_turn", "anywhere", "key", "place", "streams")

    def __init__(self, key: Tuple[int, int]) -> None:
        self.key = key
        self.place: Optional[Tuple[Devices, Device]] = None
        """Set when this process has looked where the block is: only then can something have read it."""
        self.streams: Set[int] = set()
        """Those that may read it."""
        self.anywhere = False
        """Other streams may as well."""
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
            event = driver.create_event()
            try:
                for stream in self.streams:
                    driver.record(event, stream)
                    driver.wait_for(event)
            except CudaError as error:
                if error.context_is_lost:
                    raise
                self.anywhere = True  # the stream was destroyed meanwhile
            finally:
                driver.destroy_event(event)
            if self.anywhere:
                driver.finish_all()


class LentMemory(DeviceMemory):
    """A block of a segment of device memory, opened when somebody asks for its address."""

    __slots__ = ("_offset", "_segment", "lease")

    def __init__(self, segment: ImportedSegment, offset: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._devices = self._device = self._owner = None
        self._address = 0
        self._segment = segment
        self._offset = offset
        self.lease = Lease((segment.id, offset))
        releases.start()
        weakref.finalize(self, self.lease.gone).atexit = False

    @property
    def devices(self) -> Devices:
        return here()

    @property
    def device(self) -> Device:
        if self._device is None:
            self._device = self._segment.find(self.devices)
        return self._device

    def address(self, stream: Optional[int] = LEGACY_STREAM) -> int:
        lease = self.lease
        if stream is None:
            lease.anywhere = True
        else:
            lease.streams.add(stream)
        if lease.place is None:
            devices, device = self.devices, self.device
            self._address = self._segment.open(devices, device) + self._offset
            lease.place = devices, device
        return self._address
