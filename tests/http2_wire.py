"""HTTP/2 as frames on a socket: for calls that no library would make (RFC 9113)."""

from __future__ import annotations

import socket
import struct
from typing import Optional

_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4
_FRAME_BYTES = 16384
_CANCEL = 8


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _field(name: str, value: str) -> bytes:
    """A header field that is not indexed (RFC 7541, 6.2.2), of less than 127 bytes."""
    return b"".join([b"\0", *(bytes([len(text)]) + text.encode() for text in (name, value))])


class Http2:
    """A connection, whose client takes ``window`` bytes of each answer."""

    def __init__(self, port: int, window: int = 65535) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)))
        self._stream = -1

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def call(self, path: str, message: Optional[bytes] = None, reset: bool = False) -> bytes:
        """The frames of a gRPC call, with its one message, if there is one, and its end, if it is ``reset``."""
        self._stream += 2
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "content-type": "application/grpc"}
        frames = _frame(_HEADERS, _END_HEADERS, self._stream, b"".join(map(_field, fields, fields.values())) + _field("te", "trailers"))
        if message is not None:
            data = struct.pack(">BI", 0, len(message)) + message
            assert len(data) <= _FRAME_BYTES
            frames += _frame(_DATA, _END_STREAM, self._stream, data)
        return frames + (_frame(_RESET, 0, self._stream, struct.pack(">I", _CANCEL)) if reset else b"")
