"""Device memory that stubs export, as the server knows it: numbers and handles, lent and given back like blocks of host memory (``Loans``).

No process of the server's ever makes a context on a GPU. Whether processes can open each other's device memory on this machine is found
out once for each GPU, when the first stub exports memory there, by a program that does it and ends.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Sequence, Set
from weakref import WeakKeyDictionary

from ..shm.cuda import check
from ..shm.cuda.segment import DeviceSegment, spelled
from ..shm.errors import ProtocolError
from .errors import InternalError, Unavailable, Unsupported
from .log import about
from .retired_memory import RetiredMemory

if TYPE_CHECKING:
    from .core import Core
    from .instance import Instance

EXPORT, REFUSED = "device.export", "device.refused"

CHECK = (sys.executable, str(Path(check.__file__).resolve()))
"""The program that opens device memory, and says whether it could."""

_CHECK_SECONDS = 30.0
"""A context takes less than a second; a driver that hangs is no reason to hang with it."""

_DYING_SECONDS = 10.0
"""A process that is killed has lost its memory on GPUs before the server can know that it has ended."""

_MOST_SEGMENTS = 1024
_MOST_GPUS = 64
"""An instance that names more makes them up."""

logger = logging.getLogger(__name__)


class _Exporter:
    """An instance that has exported something. ``gpus``: where. ``checking``: held while one of them is looked at, so that it takes one thread."""

    def __init__(self) -> None:
        self.gpus: Set[bytes] = set()
        self.checking = asyncio.Lock()


class DeviceMemory:
    """In the server's loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._verdicts: Dict[bytes, asyncio.Future[str]] = {}
        """By the UUID of the GPU: "ok", or why its memory cannot be shared."""
        self.retired = RetiredMemory(core)
        self._exporters: WeakKeyDictionary[Instance, _Exporter] = WeakKeyDictionary()

    async def export(self, instance: Instance, arguments: Sequence[Any]) -> int:
        """Gives a number to a segment that an instance exports.

        Args:
            arguments: UUID, bytes, handle, and what the segment begins with.

        Raises:
            Unsupported: memory of that GPU cannot be shared.
            Unavailable: it exports too many already.
            InternalError: the arguments are wrong, and the instance is ended.
        """
        try:
            uuid, nbytes, handle, pattern = arguments
            segment = DeviceSegment(self._core.next_segment_id(), nbytes, uuid, handle)
            if type(pattern) is not bytes:
                raise ProtocolError(f"device memory begins with {pattern!r}")
            exporter = self._exporters.setdefault(instance, _Exporter())
            exporter.gpus.add(uuid)
            if len(exporter.gpus) > _MOST_GPUS:
                raise ProtocolError(f"it is on more than {_MOST_GPUS} GPUs")
        except (ProtocolError, TypeError, ValueError) as error:
            instance.on_violation(f"an export of device memory that is none: {error}")
            raise InternalError("malformed export of device memory") from error
        async with exporter.checking:
            if instance.ended.done():
                raise Unavailable("the process that exports it has ended")
            reason = await self._verdict(instance, segment, pattern)
        if reason != "ok":
            raise Unsupported(f"device memory of {spelled(uuid)} cannot be shared between processes: {reason}")
        loans = instance.channel.loans
        if len(instance.device_segments) + len(self.retired.of(instance)) >= _MOST_SEGMENTS:
            raise Unavailable(f"instance '{instance.name}' exports {_MOST_SEGMENTS} pieces of device memory already")
        loans.outputs[segment.id] = segment
        loans.has_devices = True
        return segment.id

    def refused(self, instance: Instance, arguments: Sequence[Any]) -> None:
        """An instance cannot open a segment that it was told of: from now on its model gets inputs, and what it calls others for,
        in host memory.

        Raises:
            ValueError, TypeError: the arguments are wrong.
        """
        number, why = arguments
        if type(number) is not int or type(why) is not str:
            raise ValueError(f"device memory {number!r} is refused")
        model = instance.model
        alive = [other for one in self._core.alive for other in one.instances if other.state.alive]
        exporter = next((other for other in alive if number in other.channel.loans.outputs), None)
        if exporter is None or not model.opens_device_memory:
            return  # one that has ended says nothing of the next
        model.opens_device_memory = False
        text = "instance '%s' cannot open device memory of another: %s; its model gets all tensors in host memory from now on"
        logger.warning(text, instance.name, why, extra=about(instance.facts))
        until = asyncio.get_running_loop().time() + _DYING_SECONDS
        exporter.ended.add_done_callback(lambda _: self._reconsider(instance, until))

    def _reconsider(self, instance: Instance, until: float) -> None:
        """The exporter of what an instance could not open has ended: if it was dying then, that was the reason."""
        if asyncio.get_running_loop().time() < until:
            instance.model.opens_device_memory = True
            text = "the memory that instance '%s' could not open was of a process that has ended: its model gets device memory again"
            logger.info(text, instance.name, extra=about(instance.facts))

    async def _verdict(self, instance: Instance, segment: DeviceSegment, pattern: bytes) -> str:
        """Whether memory of that GPU can be shared, from the first segment that was exported there."""
        uuid = segment.uuid
        while uuid in self._verdicts:
            verdict = await self._verdicts[uuid]
            if verdict:
                return verdict
        loop = asyncio.get_running_loop()
        known = self._verdicts[uuid] = loop.create_future()
        verdict = await loop.run_in_executor(None, _checked, segment, pattern)
        untried, _, reason = verdict.partition(" ")
        if instance.ended.done() or untried == "full":
            # What it exported has gone with it, or there was no room for a look, which says nothing: the next one finds out.
            del self._verdicts[uuid]
            known.set_result("")
            if untried == "full":
                text = "tensors on %s go through host memory for now: whether CUDA IPC works here cannot be tried while the GPU is full: %s"
                logger.warning(text, spelled(uuid), reason)
                return reason
        else:
            if verdict == "ok":
                logger.info("tensors on %s are passed between processes by CUDA IPC", spelled(uuid))
            else:
                logger.warning("tensors on %s go through host memory: CUDA IPC does not work here: %s", spelled(uuid), verdict)
            known.set_result(verdict)
        return verdict


def _checked(segment: DeviceSegment, pattern: bytes) -> str:
    question = " ".join(part.hex() for part in (segment.uuid, segment.handle, pattern))
    try:
        done = subprocess.run(CHECK, input=question + "\n", capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it could not be tried: {error}"
    return done.stdout.strip() or f"the process that tried ended with {done.returncode}: {done.stderr[-500:].strip()}"
