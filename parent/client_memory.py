"""Shared memory of clients: regions that a client registers, and that its requests then name instead of carrying tensors (spec 6.11).

The server holds a descriptor of the client's file, or a handle of its memory on a GPU, and never touches a page of it. The stubs that execute
requests with tensors in a region are told of it and copy from and to it (``stublet.stub.client_regions``).
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple, Type

from .client_regions import ClientRegion, CudaRegion, SystemRegion, file_name, find_gpu, open_file
from .errors import AlreadyExists, InvalidArgument, NotFound, Unsupported

_DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."


class RegionSlice(NamedTuple):
    """Where in a client's region a tensor lies, as its request says: name of the region, offset in it and size, in bytes."""

    region: str
    offset: int
    nbytes: int


Read = Tuple[ClientRegion, int, int]
"""(region, offset, nbytes) of inputs."""

Write = Tuple[int, ClientRegion, int, int]
"""(index of the output in the configuration, region, offset, nbytes)."""


class RegionUse:
    """The regions that one request reads and writes, which stay registered until ``release``. Made by ``ClientMemory.use``."""

    __slots__ = ("_memory", "_released", "reads", "writes")

    def __init__(self, memory: ClientMemory, reads: List[Read], writes: List[Write]) -> None:
        self._memory = memory
        self._released = False
        self.reads = reads
        self.writes = writes

    def regions(self) -> List[ClientRegion]:
        """One for each read and each write."""
        return [read[0] for read in self.reads] + [write[1] for write in self.writes]

    def message(self) -> Tuple[Any, ...]:
        """As a message has it (``stublet.shm.message``)."""
        reads = [(region.id, offset, nbytes) for region, offset, nbytes in self.reads]
        return reads, [(output, region.id, offset, nbytes) for output, region, offset, nbytes in self.writes]

    def part(self, reads: List[Read], writes: List[Write]) -> RegionUse:
        """What a request uses that is made on behalf of this one, which is not over yet: of the same regions."""
        use = RegionUse(self._memory, reads, writes)
        self._memory.join(use.regions())
        return use

    def release(self) -> None:
        """The request is over. Again, it does nothing. In any thread."""
        if not self._released:
            self._released = True
            self._memory.leave(self.regions())


class ClientMemory:
    """The registry. All its methods may be called in any thread, but for the coroutine, which is for the server's loop.

    For a request with tensors in regions, a front end

    1. describes each such input as ``GivenInput(name, datatype, shape, nbytes, RegionSlice(region, offset, nbytes))``: ``lay_out`` gives
       it no place in the request's block, and lists the slices in ``Layout.slices``;
    2. passes ``use(layout.slices, writes)`` to the ``Request`` as ``regions``, with ``writes`` a list of (index of the output in the
       configuration, RegionSlice); if ``use`` raises, the request's block is still the caller's to give back. The request takes care of
       the rest, whatever becomes of it;
    3. finds, in the response, outputs whose ``block`` is ``stublet.shm.message.IN_REGION``: their data type, shape and ``nbytes`` are
       there, their bytes are with the client (``Response.copy`` and ``Response.views`` have none).

    Args:
        allowed: whether clients may register anything.
        next_id: gives ids that no segment and no other region has.
        forget: tells the stubs of regions that are no more; called in any thread, perhaps under the lock of a model.
    """

    def __init__(self, allowed: bool, next_id: Callable[[], int], forget: Callable[[Sequence[int]], None]) -> None:
        self._allowed = allowed
        self._next_id = next_id
        self._forget = forget
        self._lock = threading.Lock()
        self._turn = asyncio.Lock()
        self._regions: Dict[str, ClientRegion] = {}

    # Registered by clients

    def register_system(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Registers ``byte_size`` bytes at ``offset`` of the shared memory object ``key``.

        Raises:
            Unsupported: it is not allowed.
            AlreadyExists: the name is taken.
            InvalidArgument: the key is empty or reserved, or the object has no such bytes.
            InternalError: there is no such object, or it cannot be read and written.
        """
        self._check_allowed()
        bare = file_name(name, key)
        with self._lock:
            self._check_new(name)
            fd = open_file(key, bare)
            held = os.fstat(fd).st_size
            if offset < 0 or byte_size <= 0 or offset + byte_size > held:
                os.close(fd)
                raise InvalidArgument(f"failed to register shared memory region '{name}': invalid args")
            self._regions[name] = SystemRegion(self._next_id(), name, key, fd, offset, byte_size)

    def unregister_system(self, name: str = "") -> None:
        """Ends the registration of a region of system memory, or of all; one that requests use goes, and is listed, until they are over. A
        name that is not registered is no error.

        Raises:
            Unsupported: nothing can be registered.
        """
        self._unregister(SystemRegion, name)

    def system_status(self, name: str = "") -> List[Dict[str, Any]]:
        """What is registered under the name, or in all.

        Raises:
            NotFound: nothing of that name, or it is memory of a GPU.
        """
        return self._status(SystemRegion, name)

    def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Registers ``byte_size`` bytes of a GPU's memory, from the beginning of what the handle is of. Takes about a second.

        Args:
            raw_handle: a cudaIpcMemHandle_t.
            device_id: number of the GPU, as the server sees them.

        Raises:
            Unsupported: it is not allowed.
            AlreadyExists: the name is taken.
            InvalidArgument: the handle is none, or that GPU has no such memory.
        """
        self._check_allowed()
        with self._lock:
            self._check_new(name)
        uuid = find_gpu(name, raw_handle, device_id, byte_size)
        with self._lock:
            self._check_new(name)
            self._regions[name] = CudaRegion(self._next_id(), name, raw_handle, device_id, uuid, byte_size)

    async def register_cuda_in_turn(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """``register_cuda`` for clients, of whom those that wait for their turn must not hold the threads that others need."""
        async with self._turn:
            await asyncio.get_running_loop().run_in_executor(None, self.register_cuda, name, raw_handle, device_id, byte_size)

    def unregister_cuda(self, name: str = "") -> None:
        """Ends the registration of a region of a GPU's memory, or of all, as ``unregister_system`` does.

        Raises:
            Unsupported: nothing can be registered.
        """
        self._unregister(CudaRegion, name)

    def cuda_status(self, name: str = "") -> List[Dict[str, Any]]:
        """What is registered under the name, or in all.

        Raises:
            NotFound: nothing of that name, or it is memory of the system.
        """
        return self._status(CudaRegion, name)

    def _unregister(self, kind: Type[ClientRegion], name: str) -> None:
        self._check_allowed()
        with self._lock:
            for region in [region for region in self._regions.values() if isinstance(region, kind) and name in ("", region.name)]:
                region.unwanted = True
                self._drop_unused(region)

    def _status(self, kind: Type[ClientRegion], name: str) -> List[Dict[str, Any]]:
        with self._lock:
            found = self._regions.get(name)
            if name and found is None:
                raise NotFound(f"Unable to find {kind.kind.lower()} shared memory region: '{name}'")
            if found is not None and not isinstance(found, kind):
                raise NotFound(f"The region named '{name}' is registered as {found.kind} shared memory, not {kind.kind} shared memory")
            regions = [found] if found is not None else [region for region in self._regions.values() if isinstance(region, kind)]
            return [region.status() for region in regions]

    def cuda_sizes(self) -> Dict[int, int]:
        """How many bytes each region of a GPU's memory has, by id."""
        with self._lock:
            return {region.id: region.size for region in self._regions.values() if isinstance(region, CudaRegion)}

    # Used by requests

    def check(self, place: RegionSlice) -> None:
        """Checks what a request says of a tensor.

        Raises:
            NotFound: no such region.
            InvalidArgument: the tensor does not lie in it.
        """
        with self._lock:
            self._find(place)

    def use(self, reads: Sequence[RegionSlice], writes: Sequence[Tuple[int, RegionSlice]]) -> RegionUse:
        """Holds the regions that a request names, until the request is over.

        Args:
            reads: where its inputs are.
            writes: where outputs are to go, with their indices in the configuration.

        Raises:
            NotFound: no such region.
            InvalidArgument: a tensor does not lie in its region.
        """
        with self._lock:
            found = [(self._find(place), place.offset, place.nbytes) for place in reads]
            targets = [(index, self._find(place), place.offset, place.nbytes) for index, place in writes]
            use = RegionUse(self, found, targets)
            for region in use.regions():
                region.users += 1
        return use

    def join(self, regions: Sequence[ClientRegion]) -> None:
        """One more request uses these, which are in use."""
        with self._lock:
            for region in regions:
                region.users += 1

    def leave(self, regions: Sequence[ClientRegion]) -> None:
        """A request is over that used these."""
        with self._lock:
            for region in regions:
                region.users -= 1
                if region.unwanted:
                    self._drop_unused(region)

    def close(self) -> None:
        """Gives every descriptor back: the server has ended."""
        with self._lock:
            for region in self._regions.values():
                region.close()
            self._regions.clear()

    def _find(self, place: RegionSlice) -> ClientRegion:
        region = self._regions.get(place.region)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{place.region}'")
        region.check(place.offset, place.nbytes)
        return region

    def _drop_unused(self, region: ClientRegion) -> None:
        if region.users == 0 and self._regions.get(region.name) is region:
            del self._regions[region.name]
            region.close()
            self._forget([region.id])

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Unsupported(_DISABLED)

    def _check_new(self, name: str) -> None:
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
