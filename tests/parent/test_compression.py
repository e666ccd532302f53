"""Content codings, apart from any request."""

from __future__ import annotations

import gzip
import zlib
from typing import List, Optional

import pytest
from http_wire import cut
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent import InvalidArgument, ServerError, Unsupported
from stublet.parent.http.compression import Decoder, accepted, compress, decoder_for

CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}


def decoded(coding: str, chunks: List[bytes]) -> bytes:
    decoder = Decoder(coding)
    return b"".join([piece for chunk in chunks for piece in decoder.feed(chunk)]) + decoder.finish()


@pytest.mark.parametrize("coding", CODINGS)
@given(data=st.binary(max_size=2000), places=st.lists(st.integers(0, 3000), max_size=8))
def test_cuts_do_not_matter(coding: str, data: bytes, places: List[int]) -> None:
    assert decoded(coding, cut(CODINGS[coding](data), places)) == data


@pytest.mark.parametrize("coding", CODINGS)
@given(pieces=st.lists(st.binary(max_size=500), max_size=5))
def test_what_is_compressed_here_is_what_everyone_reads(coding: str, pieces: List[bytes]) -> None:
    packed = compress(coding, [memoryview(piece) for piece in pieces])
    assert (gzip.decompress if coding == "gzip" else zlib.decompress)(packed) == b"".join(pieces)


@pytest.mark.parametrize("coding", CODINGS)
def test_pieces_are_small_however_much_a_chunk_holds(coding: str) -> None:
    decoder = Decoder(coding)
    packed = CODINGS[coding](bytes(10 << 20))
    pieces = list(decoder.feed(packed))
    assert max(map(len, pieces)) <= 256 << 10
    assert sum(map(len, pieces)) + len(decoder.finish()) == 10 << 20


@pytest.mark.parametrize("coding", CODINGS)
@given(more=st.binary(min_size=1, max_size=20), places=st.lists(st.integers(0, 100), max_size=5))
def test_more_after_the_end_is_an_error_however_it_is_cut(coding: str, more: bytes, places: List[int]) -> None:
    with pytest.raises(InvalidArgument, match=rf"^the request body has data after the end of its {coding} data$"):
        decoded(coding, cut(CODINGS[coding](b"data") + more, places))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kept", [0, 1, 5, -1])
def test_too_early_an_end_is_an_error(coding: str, kept: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"^the request body ends within its {coding} data$"):
        decoded(coding, [CODINGS[coding](b"data" * 100)[:kept]])


@pytest.mark.parametrize("coding", CODINGS)
@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 300), max_size=4))
def test_any_bytes_are_data_or_a_server_error(coding: str, data: bytes, places: List[int]) -> None:
    try:
        decoded(coding, cut(data, places))
    except ServerError as error:
        assert coding in str(error)


@pytest.mark.parametrize("header", ["", "identity", " Identity "])
def test_no_coding(header: str) -> None:
    assert decoder_for(header.encode()) is None


@pytest.mark.parametrize("header", ["gzip", " GZip ", "deflate"])
def test_known_codings(header: str) -> None:
    assert decoder_for(header.encode()) is not None


@pytest.mark.parametrize("header", ["br", "gzip, deflate", "\xff"])
def test_unknown_codings(header: str) -> None:
    with pytest.raises(Unsupported, match=r"^Unsupported compression type$"):
        decoder_for(header.encode("latin-1"))


@pytest.mark.parametrize(
    "header, coding",
    [
        ("", None), ("gzip", "gzip"), ("deflate", "deflate"), ("deflate,gzip", "gzip"), ("deflate;q=1,gzip;q=0.9", "deflate"),
        ("gzip;q=0", None), ("*", "gzip"), ("*;q=0", None), ("gzip;q=0,*", "deflate"), ("identity", None), ("identity;q=0,gzip;q=0.1", "gzip"),
        ("br;q=1", None), ("gzip;q=many", None), ("gzip;x=1;q=0.5", "gzip"), ("identity;q=0.5, gzip;q=0.4", None), (" , ;;,", None),
        ("gzip;q=nan", None), ("gzip;q=1, deflate;q=nan", "gzip"), ("deflate;q=0.1, gzip;q=inf", "deflate"), ("identity;q=0", None),
    ],
)  # fmt: skip
def test_accept_encoding(header: str, coding: Optional[str]) -> None:
    assert accepted(header.encode()) == coding


@given(header=st.binary(max_size=60))
def test_any_accept_encoding_is_understood_somehow(header: bytes) -> None:
    assert accepted(header) in (None, "gzip", "deflate")
