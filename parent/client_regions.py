"""One registered region of a client's memory: of the system's, or of a GPU's.

The server reads neither. Of a file it has the descriptor, of memory of a GPU the handle, and stubs are told of them. Whether a handle is one
is found out by a program that opens it and ends: no process of the server's has a context on a GPU.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..shm.control import CUDA_REGION, REGION
from ..shm.cuda import check_region
from .errors import InternalError, InvalidArgument

DIRECTORY = "/dev/shm"
RESERVED_PREFIX = "triton_python_backend_shm_region_"
CUDA_HANDLE_BYTES = 64

CHECK = (sys.executable, str(Path(check_region.__file__).resolve()))
"""The program that looks at a handle."""

_CHECK_SECONDS = 30.0
"""A context takes less than a second; a driver that hangs is no reason to hang with it."""

_checking = threading.Lock()
"""A context takes half a gigabyte of a GPU, so there is one at a time."""

_MOST = 2**64 - 1
_INVALID = "failed to register shared memory region: invalid args"

logger = logging.getLogger(__name__)


class ClientRegion:
    """``size`` bytes that a client has registered as ``name``; ``id`` names them to stubs. ``users`` counts the requests that use them; once
    ``unwanted``, the region goes with the last of them."""

    __slots__ = ("id", "name", "size", "unwanted", "users")

    kind: str
    """As the protocol's texts have it."""

    def __init__(self, region_id: int, name: str, size: int) -> None:
        self.id = region_id
        self.name = name
        self.size = size
        self.users = 0
        self.unwanted = False

    def check(self, offset: int, nbytes: int) -> None:
        """Checks that a tensor lies in the region.

        Raises:
            InvalidArgument: it does not, in Triton's words.
        """
        if not 0 <= offset < self.size:
            raise InvalidArgument(f"Invalid offset for shared memory region: '{self.name}'")
        if nbytes + offset > _MOST:
            raise InvalidArgument(
                f"Integer overflow detected: byte_size ({nbytes}) + offset ({offset}) exceeds maximum value ({_MOST}) for region "
                f"'{self.name}'"
            )
        if nbytes < 0 or offset + nbytes > self.size:
            raise InvalidArgument(f"Invalid offset + byte size for shared memory region: '{self.name}'")

    def status(self) -> Dict[str, Any]:
        """What clients are told of it."""
        raise NotImplementedError

    def announcement(self) -> Tuple[Tuple[Any, ...], List[int]]:
        """What stubs are told of it (``stublet.shm.control``), and the descriptors that go with it."""
        raise NotImplementedError

    def read(self, offset: int, nbytes: int) -> Optional[bytes]:
        """These bytes of it; None if the server cannot read them."""
        return None

    def close(self) -> None:
        """It is no more."""


class SystemRegion(ClientRegion):
    """At ``offset`` of the file ``key`` of /dev/shm, whose descriptor is ``fd``. It is taken over."""

    __slots__ = ("fd", "key", "offset")

    kind = "system"

    def __init__(self, region_id: int, name: str, key: str, fd: int, offset: int, size: int) -> None:
        super().__init__(region_id, name, size)
        self.key = key
        self.fd = fd
        self.offset = offset

    def status(self) -> Dict[str, Any]:
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.size}

    def announcement(self) -> Tuple[Tuple[Any, ...], List[int]]:
        return (REGION, self.id, self.name, self.offset, self.size), [self.fd]

    def read(self, offset: int, nbytes: int) -> Optional[bytes]:
        """These bytes of it; None if the client has cut its memory off, which the stub will find out, too."""
        found = os.pread(self.fd, nbytes, self.offset + offset)
        return found if len(found) == nbytes else None

    def close(self) -> None:
        os.close(self.fd)


class CudaRegion(ClientRegion):
    """On GPU ``device_id`` of the server's, in the memory that other processes open by ``handle``."""

    __slots__ = ("device_id", "handle", "uuid")

    kind = "CUDA"

    def __init__(self, region_id: int, name: str, handle: bytes, device_id: int, uuid: bytes, size: int) -> None:
        super().__init__(region_id, name, size)
        self.handle = handle
        self.device_id = device_id
        self.uuid = uuid

    def status(self) -> Dict[str, Any]:
        return {"name": self.name, "device_id": self.device_id, "byte_size": self.size}

    def announcement(self) -> Tuple[Tuple[Any, ...], List[int]]:
        return (CUDA_REGION, self.id, self.name, self.size, self.uuid, self.handle), []


def file_name(name: str, key: str) -> str:
    """What the file of a shared memory object is called.

    Raises:
        InvalidArgument: the key is empty or reserved, in Triton's words.
    """
    bare = key.lstrip("/")
    if not bare:
        raise InvalidArgument(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
    if bare.startswith(RESERVED_PREFIX):
        raise InvalidArgument(
            f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved prefix '{RESERVED_PREFIX}'"
        )
    return bare


def open_file(key: str, bare: str) -> int:
    """A descriptor of a shared memory object: a plain file in /dev/shm itself, and nothing that a link in there leads to.

    Raises:
        InternalError: there is no such object, or it cannot be read and written, in Triton's words.
    """
    try:
        if "/" in bare:
            raise OSError(f"{bare} is not in {DIRECTORY} itself")
        # Not to wait for the other end of what could be a named pipe.
        fd = os.open(os.path.join(DIRECTORY, bare), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # a ValueError if the key has a NUL, or cannot be a file's name
        raise InternalError(f"Unable to open shared memory region: '{key}'") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InternalError(f"Unable to open shared memory region: '{key}'")
    return fd


def find_gpu(name: str, handle: bytes, device_id: int, byte_size: int) -> bytes:
    """The UUID of the GPU that has the memory of a handle. Takes about a second.

    Raises:
        InvalidArgument: it is no handle, or not of so much memory on that GPU, in Triton's words; the log says what is wrong with it.
    """
    if len(handle) != CUDA_HANDLE_BYTES:
        raise InvalidArgument("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    if byte_size <= 0:
        raise InvalidArgument(_INVALID)
    question = f"{device_id} {byte_size} {handle.hex()}\n"
    with _checking:
        try:
            done = subprocess.run(CHECK, input=question, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False)
            said = done.stdout.strip() or f"the process that looked ended with {done.returncode}: {done.stderr[-500:].strip()}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = f"it could not be tried: {error}"
    if said.startswith("no driver"):
        raise InvalidArgument(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")
    verdict, _, uuid = said.partition(" ")
    if verdict != "ok":
        logger.warning("CUDA shared memory '%s' of a client is not registered: %s", name, said)
        raise InvalidArgument(_INVALID)
    return bytes.fromhex(uuid)
