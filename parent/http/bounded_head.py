"""uvicorn's HTTP protocol with bounds on request heads and on the number of chunks, of which its parser has none."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LONGEST_HEAD = 64 << 10
"""Bytes of a request line and headers that a client may send."""

MOST_CHUNKS = 65536
"""Chunks that a body may come in (spec 6.4)."""


class _TooManyChunks(Exception):
    """Ends the parsing of a body."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """The protocol class for uvicorn's ``http`` setting. Too long a head, and too many chunks, are answered with status 400."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._in_head = False
        self._head_bytes = 0
        self._chunks = 0

    def data_received(self, data: bytes) -> None:
        in_head = self._in_head
        super().data_received(data)
        # Only data that is nothing but head counts: what begins one may be mostly the body before it.
        if in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD:
                self.send_400_response(f"The request line and headers exceed {_LONGEST_HEAD} bytes.")

    def head_begins(self) -> None:
        self._in_head = True
        self._head_bytes = 0

    def head_ends(self) -> None:
        self._in_head = False
        self._chunks = 0

    def on_chunk_header(self) -> None:
        # The last one, which is empty, ends the body.
        self._chunks += 1
        if self._chunks > MOST_CHUNKS + 1:
            raise _TooManyChunks

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(f"The body comes in more than {MOST_CHUNKS} chunks." if self._chunks > MOST_CHUNKS + 1 else msg)

    def on_message_begin(self) -> None:
        self.head_begins()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.head_ends()
        super().on_headers_complete()
