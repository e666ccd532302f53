"""What is long, deep or repeated costs in proportion to its length: of the processor's time, and of memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any, Dict, Tuple

import pytest
from stublet.shm.message import FINAL, NEWS, RETURNED, WORK, pack

from .targets import TARGETS
from .targets.rings import KEY

_LONG = 512 << 10
_SHORT = 50 << 10
"""protobuf reads texts in Python: so much of them takes as long as ``_LONG`` of JSON."""
_TRACED = 20 << 10
_SECONDS = 3.0
_BYTES_PER_BYTE = 256
"""An object of Python's takes that much, and two bytes may be one."""
_BYTES = 4 << 20

_MOST = 2**63 - 1

Bomb = Tuple[str, bytes, bytes, bytes]
"""The target; what stands before what is repeated, that, and what stands behind."""


def _input(shape: bytes, data: bytes = b"[1]") -> Tuple[bytes, bytes]:
    start = b'add_sub\n{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[' + shape
    return start, b'],"data":' + data + b'},{"name":"INPUT1","datatype":"FP32","shape":[4],"data":[1,2,3,4]}]}'


_DIMENSIONS, _SMALL = _input(b""), _input(b"1,1,")
_PARAMETERS = b'"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[4],"data":[1,2,3,4]}]}'

BOMBS: Dict[str, Bomb] = {
    "arrays in arrays": ("json_document", b"", b"[", b""),
    "objects in objects": ("json_document", b"", b'{"a":', b""),
    "a number of many digits": ("json_document", b"", b"7", b""),
    "a fraction of many digits": ("json_document", b"0.", b"7", b""),
    "many empty arrays": ("json_document", b"[", b"[],", b"[]]"),
    "half surrogates": ("json_document", b'"', b"\\ud800", b'"'),
    "large dimensions": ("infer_header", _DIMENSIONS[0], b"9223372036854775807,", b"1" + _DIMENSIONS[1]),
    "large dimensions, and none": ("infer_header", _DIMENSIONS[0], b"9223372036854775807,", b"0" + _DIMENSIONS[1]),
    "small dimensions": ("infer_header", _SMALL[0], b"1,", b"1" + _SMALL[1]),
    "one input again and again": ("infer_header", b'add_sub\n{"inputs":[', b'{"name":"INPUT0","datatype":"FP32","shape":[4],"data":[1,2,3,4]},', b"{}]}"),
    "one output again and again": ("infer_header", b'add_sub\n{"outputs":[', b'{"name":"OUTPUT0"},', b"{}]," + _PARAMETERS),
    "parameters": ("infer_header", b'add_sub\n{"parameters":{', b'"a":1,', b'"b":2},' + _PARAMETERS),
    "data in arrays": ("infer_header", _input(b"4")[0] + b'],"data":[', b"[[1]],", b"1]}]}"),
    "strings": ("infer_header", b'identity_bytes\n{"inputs":[{"name":"INPUT0","datatype":"BYTES","shape":[2],"data":[', b'"a",', b'""]}]}'),
    "blanks": ("infer_body", b"add_sub - length 9\n", b" ", b"{}"),
    "no data": ("infer_body", b"identity_bytes 0 chunked 5\n", b"\0", b""),
    "an input twice": ("generate", b"add_sub\n{", b'"INPUT0":1,', b'"INPUT0":2}'),
    "elements": ("generate", b'identity_bytes\n{"INPUT0":[', b'"",', b'""]}'),
    "ids": ("model_infer_request", b"", b"\x1a\x01x", b""),
    "contents": ("model_infer_request", b"\x0a\x07add_sub", b"\x3a\x00", b""),
    "inputs without names": ("model_infer_request", b"\x0a\x07add_sub", b"\x2a\x00", b""),
    "outputs without names": ("model_infer_request", b"\x0a\x07add_sub", b"\x32\x00", b""),
    "groups in groups": ("model_infer_request", b"", b"\x43", b""),
    "messages": ("record_up", b"", b"\x91", b""),
    "a record of nothing": ("record_down", b"\xdd\x00\x10\x00\x00", b"\xc0", b""),
    "empty elements": ("bytes_elements", b"", bytes(4), b""),
    "elements of two lengths": ("bytes_elements", b"", b"\0\0\0\0\1\0\0\0x", b""),
    "rows": ("text_of_tensor", b"\x0a\x01[", b"[1],", b"[1]]"),
    "tensors of many dimensions": ("text_of_tensor", b"\x0a\x01", b"[", b""),
    "dimensions of an answer": ("answer", b'-\n{"outputs":[{"name":"O","datatype":"FP32","shape":[', b"9223372036854775807,", b'1],"data":[1]}]}'),
    "header fields": ("connection", b"GET /v2 HTTP/1.1\r\n", b"a: b\r\n", b"\r\n"),
    "a long target": ("connection", b"GET /", b"v2/", b" HTTP/1.1\r\n\r\n"),
    "chunks": ("connection", b"POST /v2/models/add_sub/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n[\r\n", b"0\r\n\r\n"),
    "qualities": ("content_coding", b"\0", b"gzip;q=0.5,", b""),
    "configured inputs": ("config_text", b'backend: "python" ', b"input { } ", b""),
    "configured dimensions": ("config_text", b'backend: "python" ', b"input { dims: 9223372036854775807 } ", b""),
    "configured groups": ("config_text", b'backend: "python" ', b"instance_group { } ", b""),
    "configured parameters": ("config_text", b'backend: "python" ', b'parameters { key: "a" value { string_value: "b" } } ', b""),
    "a configured number": ("config_text", b'backend: "python" parameters { key: "max_concurrent" value { string_value: "', b"7", b'" } }'),
    "comments": ("config_text", b'backend: "python" ', b"#\n", b""),
    "braces": ("config_text", b'backend: "python" ', b"dynamic_batching { ", b""),
}  # fmt: skip


def _dimensions(count: int, last: int = 1) -> Any:
    return (0, 2, (*(_MOST,) * count, last), 0, 0, 8)


def _result(outputs: Any, kept: Any = (), blocks: Any = ((50, 0),), key: int = 0xABCD) -> bytes:
    return pack((NEWS, (), ((key, FINAL | RETURNED, 5, kept, blocks, outputs, (), ""),), ())).replace(pack(0xABCD), KEY)


RECORDS: Dict[str, Tuple[str, bytes]] = {
    "dimensions": ("record_up", _result((_dimensions(100_000),))),
    "dimensions, and none": ("record_up", _result((_dimensions(100_000, 0),))),
    "dimensions of an input": ("record_down", pack((WORK, (), (((1, False, ((0, 0, 8),), (_dimensions(100_000),), (), ()),),), ()))),
    "dimensions of a call": (
        "record_up",
        pack((NEWS, (), (), ((1, 0, "m", -1, ((0, 0),), (("x", *_dimensions(100_000)[1:]),), (), ("", "{}", 0, 0, 0)),))),
    ),
    "blocks": ("channel", _result((), blocks=((50, 0),) * 50_000)),
    "blocks that are kept": ("channel", _result((), kept=(0,) * 100_000)),
    "releases": ("channel", pack((NEWS, ((50, 0),) * 50_000, (), ()))),
    "outputs": ("channel", _result(((0, 2, (8,), 0, 0, 8),) * 20_000)),
    "cancelled calls": ("channel", pack((NEWS, (), (), ((1,),) * 50_000))),
}


def _check_time(target: str, data: bytes) -> None:
    with TARGETS[target].opened() as check:
        check(data[:1000])  # whatever is made or remembered once
        began = time.thread_time()
        check(data)
        took = time.thread_time() - began
    assert took < _SECONDS, f"{len(data)} bytes took {took:.1f} s"


def _check_memory(target: str, data: bytes) -> None:
    with TARGETS[target].opened() as check:
        check(data[:1000])
        tracemalloc.start()
        try:
            check(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < _BYTES + _BYTES_PER_BYTE * len(data), f"{len(data)} bytes took {peak >> 10} KiB"


def _repeated(bomb: Bomb, length: int) -> bytes:
    _, before, unit, behind = bomb
    return before + unit * (length // len(unit)) + behind


@pytest.mark.parametrize("name", BOMBS)
def test_time(name: str) -> None:
    _check_time(BOMBS[name][0], _repeated(BOMBS[name], _SHORT if BOMBS[name][0] == "config_text" else _LONG))


@pytest.mark.parametrize("name", BOMBS)
def test_memory(name: str) -> None:
    """Shorter: whatever is traced takes several times as long."""
    _check_memory(BOMBS[name][0], _repeated(BOMBS[name], _TRACED))


@pytest.mark.parametrize("name", RECORDS)
def test_records(name: str) -> None:
    _check_time(*RECORDS[name])
