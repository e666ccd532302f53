"""Content codings of HTTP bodies: gzip and deflate, in both directions (spec 6.4)."""

from __future__ import annotations

import zlib
from typing import Any, Iterator, List, Optional

from ..errors import InvalidArgument, Unsupported

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_CHUNK = 256 << 10


class Decoder:
    """Undoes a content coding chunk by chunk, never more than 256 KiB at a time: a small body may hold gigabytes."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate = zlib.decompressobj(_WINDOW[coding])

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the chunk holds.

        Raises:
            InvalidArgument: it is not in that coding.
        """
        try:
            while chunk and not self._inflate.eof:
                yield self._inflate.decompress(chunk, _CHUNK)
                chunk = self._inflate.unused_data or self._inflate.unconsumed_tail
        except zlib.error as error:
            raise InvalidArgument(f"the request body is not valid {self._coding} data: {error}") from error
        if chunk:
            raise InvalidArgument(f"the request body has data after the end of its {self._coding} data")

    def finish(self) -> bytes:
        """What is left at the end of the body.

        Raises:
            InvalidArgument: the body ends too early.
        """
        try:
            rest = self._inflate.flush()
        except zlib.error as error:
            raise InvalidArgument(f"the request body is not valid {self._coding} data: {error}") from error
        if not self._inflate.eof:
            raise InvalidArgument(f"the request body ends within its {self._coding} data")
        return rest


def decoder_for(content_encoding: bytes) -> Optional[Decoder]:
    """The decoder for a Content-Encoding header; None for none.

    Raises:
        Unsupported: another coding than gzip, deflate and identity.
    """
    coding = content_encoding.decode("latin-1").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in _WINDOW:
        raise Unsupported("Unsupported compression type")
    return Decoder(coding)


def accepted(accept_encoding: bytes) -> Optional[str]:
    """The coding that an Accept-Encoding header likes best of those we have; None for no coding. Ties go to gzip."""
    quality = {"gzip": 0.0, "deflate": 0.0, "identity": 0.001}
    given = {}
    for part in accept_encoding.decode("latin-1").lower().split(","):
        coding, *parameters = [piece.strip() for piece in part.split(";")]
        given[coding] = _quality(parameters)
    for coding in quality:
        if coding in given:
            quality[coding] = given[coding]
        elif "*" in given and coding != "identity":
            quality[coding] = given["*"]
    best = max(quality, key=lambda coding: quality[coding])
    return best if best != "identity" and quality[best] > 0 else None


def _quality(parameters: List[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0 <= quality <= 1 else 0.0  # float takes "nan" and "inf" too
    return 1.0


def compress(coding: str, pieces: List[Any]) -> bytes:
    """The pieces of a body, one after another, in that coding."""
    deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*map(deflate.compress, pieces), deflate.flush()])
