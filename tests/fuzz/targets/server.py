"""Whole requests: to the application of the HTTP front end, and as bytes on a connection."""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

from stublet.parent.errors import ServerError
from stublet.parent.http.compression import Decoder, accepted
from stublet.parent.http.door import Door
from stublet.parent.http.front_end import HttpFrontEnd
from stublet.parent.http.limits import HttpLimits
from stublet.parent.http.protocol import InferProtocol
from uvicorn import Config
from uvicorn.server import ServerState

from ..offered import offered
from ..target import Check, Target, pure
from . import http

_STATUSES = {200, 400, 403, 404, 405, 409, 500, 501, 503}

TOKENS = [
    b"GET ", b"POST ", b"HEAD ", b"PUT ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n", b"\r\n\r\n", b"Host: x\r\n", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n",
    b"Inference-Header-Content-Length: ", b"Content-Encoding: gzip\r\n", b"Accept-Encoding: gzip;q=0.5\r\n", b"/v2", b"/v2/models/", b"add_sub",
    b"/versions/1", b"/infer", b"/generate", b"/generate_stream", b"/config", b"/stats", b"/ready", b"/v2/health/live", b"/v2/repository/index",
    b"/load", b"/unload", b"/v2/logging", b"/v2/trace/setting", b"/v2/systemsharedmemory", b"/region/r", b"/register", b"/unregister", b"/status",
    b"%2e%2e", b"%00", b"%ff", b"?", b"traceparent: 00-", b'{"key":"x","byte_size":8}', b'"offset"', b'"raw_handle"', b'"b64"', b'"log_verbose_level"',
    b'"trace_rate"', b'"trace_level"', b'"TIMESTAMPS"',
]  # fmt: skip


class _Complaints(logging.Handler):
    """Errors of ours that went to the log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.records.append(self.format(record))


class _Transport(asyncio.Transport):
    """The socket: what is written is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def writelines(self, pieces: Any) -> None:
        self.written += b"".join(pieces)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("sockname", "peername") else default

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


@contextmanager
def connection() -> Iterator[Check]:
    """What a client sends on one connection, cut at each NUL byte. All that is answered is an answer, and nothing of it is an error of ours."""
    loop = asyncio.new_event_loop()
    complaints = _Complaints()
    logger = logging.getLogger("stublet")
    logger.addHandler(complaints)
    unexpected: List[Dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, about: unexpected.append(about))
    with offered() as server:
        for name, model in server.models.items():
            server.core.models[name] = {1: model}

        async def begin() -> Config:
            server.core._loop = asyncio.get_running_loop()
            config = Config(HttpFrontEnd(server.core), http=InferProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
                            server_header=False, date_header=False, proxy_headers=False)  # fmt: skip
            config.load()
            return config

        config = loop.run_until_complete(begin())
        door = Door(HttpLimits(), "HTTP")

        async def live(data: bytes) -> bytes:
            transport = _Transport()
            state = ServerState()
            protocol = InferProtocol(config, state, {}, asyncio.get_running_loop(), door=door)
            protocol.connection_made(transport)
            for piece in data.split(b"\0"):
                if piece and not transport.closed:
                    protocol.data_received(piece)
                    await _settle(state)
            protocol.connection_lost(None)
            await _settle(state)
            for task in state.tasks:
                task.cancel()
            await _settle(state)
            assert not state.connections
            server.core.client_memory.unregister_system()
            return transport.written

        def check(data: bytes) -> None:
            written = loop.run_until_complete(live(data))
            assert not complaints.records and not unexpected, (complaints.records, unexpected)
            _check_answers(written)
            server.assert_nothing_held()

        try:
            yield check
        finally:
            logger.removeHandler(complaints)
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


async def _settle(state: ServerState) -> None:
    """Lets the requests go as far as they do without more input."""
    for _ in range(8):
        await asyncio.sleep(0)
        if not state.tasks:
            return


def _check_answers(written: bytes) -> None:
    while written:
        match = re.match(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]+\r\n((?:[!-9;-~]+: ?[ -~]*\r\n)*)\r\n", written)
        assert match, written[:200]
        status = int(match.group(1))
        assert status in _STATUSES or status == 100, written[:200]
        assert b"internal error" not in written
        headers = dict(line.lower().split(b": ", 1) for line in match.group(2).split(b"\r\n") if b": " in line)
        written = written[match.end() :]
        if b"transfer-encoding" in headers or status == 100 or not headers.get(b"content-length"):
            continue
        length = int(headers[b"content-length"])
        # The answer to HEAD has a length and no body.
        if not written.startswith(b"HTTP/1.1 "):
            assert len(written) >= length or not written
            written = written[length:]


# ---- content codings ----


def content_coding(data: bytes) -> None:
    """The first byte chooses the coding and the size of the pieces that the rest, or what the rest is in that coding, comes in; it is what zlib
    makes of it as a whole."""
    kind, body = (data[0], data[1:]) if data else (0, b"")
    coding, window = (("gzip", 31), ("deflate", 15))[kind & 1]
    if kind & 2:
        whole = zlib.compressobj(wbits=window)
        body = whole.compress(body) + whole.flush()
    accepted(data)
    try:
        expected = zlib.decompressobj(window)
        text = expected.decompress(body)
        good = expected.eof and not expected.unused_data
    except zlib.error:
        good = False
    decoder = Decoder(coding)
    size = (kind >> 2) + 1
    found: List[bytes] = []
    try:
        for start in range(0, len(body), size):
            found += decoder.feed(body[start : start + size])
        found.append(decoder.finish())
    except ServerError:
        assert not good
        return
    assert good and b"".join(found) == text


TARGETS = [
    Target("connection", connection, [*TOKENS, *http.TOKENS, b"\0"], mutations=600),
    Target("content_coding", pure(content_coding), [b"gzip", b"deflate", b"identity", b";q=", b"*", b","]),
]
