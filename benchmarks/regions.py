"""Tensors in system shared memory: the request names a region that the client has registered, and carries none itself.

What a client pays for filling and reading its region is not measured: it is there before the first request. The output is cleared before
the first and compared after the last.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .cases import LoadCase
from .client import verify
from .errors import BenchmarkError
from .servers import Server
from .wire import InferRequest, WireTensor, same_bytes


@dataclass(frozen=True, slots=True)
class RegionRequest(InferRequest):
    """A request with one input and one output in `memory`, the output behind the input."""

    memory: mmap.mmap

    @property
    def reply_bytes(self) -> int:
        return 0

    def clear(self) -> None:
        """Wipes the output."""
        self.memory[self.output_bytes :] = bytes(self.output_bytes)

    def check(self, status: int, headers: Mapping[str, str], body: memoryview) -> None:
        if status != 200:
            raise BenchmarkError(f"{self.model}: HTTP {status}: {bytes(body[:500])!r}")
        ((name, want),) = self.expected.items()
        (output,) = json.loads(bytes(body))["outputs"]
        if (output["name"], output["datatype"], tuple(output["shape"])) != (name, want.datatype, want.shape):
            raise BenchmarkError(f"{self.model}: the output is {output}")
        self.check_memory()

    def check_memory(self) -> None:
        """Compares the output with what is expected. Raises BenchmarkError if it is something else."""
        (want,) = self.expected.values()
        with memoryview(self.memory) as view, view[self.output_bytes :] as found:
            if not same_bytes(found, want.raw):
                raise BenchmarkError(f"{self.model}: the region has wrong contents")


@dataclass(frozen=True, slots=True)
class RegionCase(LoadCase):
    """A case whose request has one input and one output of the same size, by way of a region."""

    @contextmanager
    def prepared(self, servers: Sequence[Server]) -> Iterator[InferRequest]:
        with by_region(self.make(), servers) as request:
            for server in servers:
                request.clear()
                verify(server.host, server.port, request)
            yield request


@contextmanager
def by_region(request: InferRequest, servers: Sequence[Server]) -> Iterator[RegionRequest]:
    """The same request by way of a region, which is registered with every server, and unregistered afterwards."""
    ((name, tensor),) = request.expected.items()
    size = len(tensor.raw)
    with shared_memory(2 * size) as (key, memory), ExitStack() as stack:
        memory[:size] = tensor.raw
        for server in servers:
            stack.enter_context(registered(server, key, 2 * size))
        body = _body(name, tensor, key)
        yield RegionRequest(request.model, len(body), body, request.expected, memory)


@contextmanager
def shared_memory(size: int) -> Iterator[tuple[str, mmap.mmap]]:
    """A POSIX shared memory object, its key and this process's mapping of it."""
    key = "benchmark-" + secrets.token_hex(8)
    path = "/dev/shm/" + key
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        yield key, mmap.mmap(fd, size)
    finally:
        os.unlink(path)
        os.close(fd)


@contextmanager
def registered(server: Server, key: str, size: int) -> Iterator[None]:
    """Registers the object under its own key, for as long as it lasts."""
    path = f"/v2/systemsharedmemory/region/{key}"
    _post(server, f"{path}/register", {"key": f"/{key}", "offset": 0, "byte_size": size})
    yield
    _post(server, f"{path}/unregister", {})


def _body(output: str, tensor: WireTensor, region: str) -> bytes:
    size = len(tensor.raw)
    place = {"shared_memory_region": region, "shared_memory_byte_size": size}
    document = {
        "inputs": [{"name": "INPUT0", "shape": tensor.shape, "datatype": tensor.datatype, "parameters": place}],
        "outputs": [{"name": output, "parameters": {**place, "shared_memory_offset": size}}],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _post(server: Server, path: str, document: object) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(document))
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise BenchmarkError(f"{server.name}: POST {path}: HTTP {response.status}: {text[:500]!r}")
    finally:
        connection.close()
