"""Shared memory of a client's, for tests: a file in /dev/shm that goes when the test does."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import Any, Iterator

import numpy as np


class ClientFile:
    """A POSIX shared memory object: ``key`` as it is registered, ``path``, ``fd``."""

    def __init__(self, size: int) -> None:
        name = "client-" + secrets.token_hex(8)
        self.key = "/" + name
        self.path = "/dev/shm/" + name
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.resize(size)

    def resize(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def put(self, data: Any, offset: int = 0) -> None:
        os.pwrite(self.fd, bytes(data) if isinstance(data, (bytes, bytearray)) else np.ascontiguousarray(data).tobytes(), offset)

    def bytes_at(self, offset: int, nbytes: int) -> bytes:
        return os.pread(self.fd, nbytes, offset)

    def array(self, shape: Any, dtype: Any, offset: int = 0) -> np.ndarray:
        """What is there, as an array of the test's own."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.bytes_at(offset, size), dtype).reshape(shape)

    def unlink(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.path)


@contextmanager
def client_file(size: int) -> Iterator[ClientFile]:
    """``size`` bytes of zeros."""
    file = ClientFile(size)
    try:
        yield file
    finally:
        file.unlink()
        os.close(file.fd)
