"""A plain HTTP/1.1 client on one blocking socket, for checks and for large bodies.

The request is sent from one buffer and the reply is received into another that stays, so for
megabytes the client's own work is hardly more than what the kernel needs to copy them.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import TracebackType

from .errors import BenchmarkError
from .wire import HEADER_LENGTH, InferRequest

# A reply head longer than this is not one of a v2 server.
_MAX_HEAD = 1 << 14


class HttpClient:
    """One keep-alive connection. Not thread-safe.

    The body that a call returns is a view of the client's buffer and holds until the next call.
    """

    def __init__(self, host: str, port: int, timeout: float = 60.0) -> None:
        self._host = f"{host}:{port}"
        self._socket = socket.create_connection((host, port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(_MAX_HEAD)

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def infer(self, request: InferRequest) -> tuple[int, Mapping[str, str], memoryview]:
        """Sends a request and receives the whole reply: status, headers, body."""
        binary = request.header_length < len(request.body)
        head = (
            f"POST {request.path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/{'octet-stream' if binary else 'json'}\r\n"
            f"{f'{HEADER_LENGTH}: {request.header_length}' if binary else 'Accept: application/json'}\r\n"
            f"Content-Length: {len(request.body)}\r\n\r\n"
        ).encode()
        self._socket.sendall(head)
        self._socket.sendall(request.body)
        return self._receive()

    def _receive(self) -> tuple[int, Mapping[str, str], memoryview]:
        got, end = 0, -1
        while end < 0:
            if got >= _MAX_HEAD:
                raise BenchmarkError(f"{self._host} sent no HTTP head within {_MAX_HEAD} bytes")
            got += self._receive_into(got, _MAX_HEAD)
            end = self._buffer.find(b"\r\n\r\n", 0, got)
        status_line, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        status = int(status_line.split(" ", 2)[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "content-length" not in headers:
            raise BenchmarkError(f"{self._host} sent a reply without Content-Length")
        start = end + 4
        total = start + int(headers["content-length"])
        if len(self._buffer) < total:
            self._buffer = self._buffer[:got] + bytearray(total - got)
        while got < total:
            got += self._receive_into(got, total)
        return status, headers, memoryview(self._buffer)[start:total]

    def _receive_into(self, start: int, stop: int) -> int:
        with memoryview(self._buffer) as view, view[start:stop] as free:
            count = self._socket.recv_into(free)
        if count == 0:
            raise BenchmarkError(f"{self._host} closed the connection within a reply")
        return count


def verify(host: str, port: int, request: InferRequest) -> None:
    """One request whose reply is compared byte for byte; BenchmarkError if it is not right."""
    with HttpClient(host, port) as client:
        request.check(*client.infer(request))
