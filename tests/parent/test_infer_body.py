"""A request body is what its bytes say, however they are cut; and any bytes at all are a request or a ServerError."""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import pytest
from http_wire import Wire, chunked, cut, infer, tensor
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stublet.parent import Server, ServerError
from stublet.parent.http.infer import InferBody
from stublet.parent.http.infer_header import parse_header, remembered_header
from stublet.parent.model import Model

LIMIT = 1 << 20

FLOATS = struct.pack("<4f", 1, 2, 3, 4)
STRINGS = b"\x01\0\0\0a\x02\0\0\0bc"
BLOBS = {"inputs": [tensor("INPUT0", "FP32", [4], binary_data_size=16), tensor("INPUT1", "FP32", [4], binary_data_size=16)]}
MIXED = {"inputs": [tensor("INPUT0", "FP32", [4], binary_data_size=16), tensor("INPUT1", "FP32", [4], [1, 2, 3, 4])]}
LITERALS = {"id": "é", "inputs": [tensor("INPUT0", "FP32", [4], [1, 2, 3, 4]), tensor("INPUT1", "FP32", [4], [1, 2, 3, 4])]}


class Body(NamedTuple):
    """A body, and what its ``Inference-Header-Content-Length`` says."""

    model: str
    data: bytes
    header_length: Optional[int]


def framed(model: str, document: Any, binary: bytes) -> Body:
    text = json.dumps(document).encode()
    return Body(model, text + binary, len(text))


def empty_and_not(first: int, second: int) -> Body:
    inputs = [tensor("IN_INT8", "INT8", [first], binary_data_size=first), tensor("IN_UINT8", "UINT8", [second], binary_data_size=second)]
    return framed("every_type", {"inputs": inputs}, bytes(range(first + second)))


BODIES = {
    "JSON": Body("add_sub", json.dumps(LITERALS).encode(), None),
    "binary": framed("add_sub", BLOBS, FLOATS + FLOATS),
    "binary and JSON": framed("add_sub", MIXED, FLOATS),
    "JSON with a header length": framed("add_sub", LITERALS, b""),
    "strings": framed("identity_bytes", {"inputs": [tensor("INPUT0", "BYTES", [2], binary_data_size=len(STRINGS))]}, STRINGS),
    "raw": Body("vector", FLOATS, 0),
    "raw string": Body("identity_bytes", b"text", 0),
    "empty, then not": empty_and_not(0, 5),
    "not, then empty": empty_and_not(5, 0),
    "both empty": empty_and_not(0, 0),
    "too short": framed("add_sub", BLOBS, FLOATS),
    "too long": framed("add_sub", BLOBS, FLOATS * 3),
    "malformed": Body("add_sub", b'{"inputs": [}', None),
    "malformed header": Body("add_sub", b'{"inputs": [}' + FLOATS, 13),
    "header longer than the body": Body("add_sub", json.dumps(LITERALS).encode(), 10_000),
    "strings cut": framed("identity_bytes", {"inputs": [tensor("INPUT0", "BYTES", [2], binary_data_size=9)]}, STRINGS[:9]),
    "over the limit": Body("add_sub", b" " * (LIMIT + 1), None),
}


def outcome(model: Model, body: Body, chunks: Sequence[bytes], content_length: Optional[int]) -> Any:
    """What the server makes of a body that comes so: the tensors as they lie in memory, or the error."""
    taken = None
    try:
        taken = InferBody(model, body.header_length, content_length, LIMIT)
        for chunk in chunks:
            taken.feed(chunk)
        header, block = taken.finish()
    except ServerError as error:
        if taken is not None:
            taken.abandon()
        return type(error), str(error)
    memory, start = block.segment.memory, block.offset
    tensors = [(p.spec.name, p.shape, memory[start + p.offset : start + p.offset + p.nbytes]) for p in header.layout.placements]
    with model.lock:
        block.release()
    return header.request_id, tensors, header.extras


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
@pytest.mark.parametrize("name", BODIES)
@given(places=st.lists(st.integers(0, 10_000), max_size=6))
@example(places=list(range(500)))
def test_cuts_do_not_matter(embedded: Server, name: str, announced: bool, places: List[int]) -> None:
    body = BODIES[name]
    model = embedded.core.find(body.model)
    length = len(body.data) if announced else None
    whole = outcome(model, body, [body.data], length)
    assert outcome(model, body, cut(body.data, places), length) == whole
    if isinstance(whole[0], type):
        assert issubclass(whole[0], ServerError)


def test_an_abandoned_body_gives_its_memory_back(embedded: Server) -> None:
    model = embedded.core.find("vector")
    document = {"inputs": [tensor("INPUT0", "FP32", [50_000], binary_data_size=200_000)]}
    text = json.dumps(document).encode()
    segments = len(model.segments)
    for _ in range(50):
        body = InferBody(model, len(text), len(text) + 200_000, LIMIT)
        body.feed(text + bytes(1000))
        body.abandon()
    assert len(model.segments) == segments


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**66) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["INPUT0", "INPUT1", "FP32", "BYTES", "INT8", "name", "shape"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "binary_data_size"]), inner),
    max_leaves=12,
)  # fmt: skip

MODELS = ["add_sub", "identity_bytes", "identity_batch", "matrix", "every_type", "optional"]

SEEDS: List[Dict[str, Any]] = [
    LITERALS,
    BLOBS,
    {"inputs": [tensor("INPUT0", "BYTES", [2], ["a", "b"])], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]},
    {"inputs": [tensor("INPUT0", "FP32", [0, 3], binary_data_size=0)], "parameters": {"timeout": 5, "x": 1.5, "sequence_id": 3}},
    {"inputs": [tensor("IN_INT64", "INT64", [2], [[1], 2]), tensor("IN_BOOL", "BOOL", [1], [True])]},
]


def places_in(value: Any, path: Tuple[Any, ...] = ()) -> List[Tuple[Any, ...]]:
    """The path of every value inside ``value``."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places_in(item, (*path, key)))]


def replaced(value: Any, path: Tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


@st.composite
def nearly_right(draw: st.DrawFn) -> Any:
    """A request with something in it replaced by anything."""
    document = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 2))):
        document = replaced(document, draw(st.sampled_from(places_in(document))), draw(VALUES))
    return document


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def check_parse(model: Model, data: bytes) -> None:
    results = []
    for parse in (parse_header, remembered_header, remembered_header):
        try:
            header = parse(model, data)
            results.append((header.request_id, header.layout, header.extras, header.outputs, header.default_binary))
        except ServerError as error:
            results.append((type(error), str(error)))
            assert error.http_status in (400, 501)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", MODELS)
@given(document=nearly_right() | VALUES)
def test_any_document_is_a_request_or_a_server_error(embedded: Server, name: str, document: Any) -> None:
    check_parse(embedded.core.find(name), encoded(document))


@given(data=st.binary(max_size=200))
@example(data=b"\xef\xbb\xbf{}")
@example(data="{}".encode("utf-16"))
@example(data=b'{"inputs": "\\ud800"}')
@example(data=b'{"input\xf3": []}')
@example(data=b"[" * 100_000)
@example(data=b'{"a":' * 100_000)
@example(data=b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[4],"data":[1e999,-1e999,1E400,0]}]}')
def test_any_bytes_are_a_request_or_a_server_error(embedded: Server, data: bytes) -> None:
    check_parse(embedded.core.find("add_sub"), data)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20)
@given(documents=st.lists(nearly_right(), min_size=1, max_size=10))
def test_any_document_leaves_the_connection_usable(server: Any, name: str, documents: List[Any]) -> None:
    with server.wire() as wire:
        for document in documents:
            answer = wire.ask(infer(name, encoded(document)))
            assert answer.status in (200, 400, 501)
            if answer.status != 200:
                assert answer.error
        assert wire.ask(infer("add_sub", LITERALS)).status == 200


@pytest.mark.parametrize("coding", ["content-length", "chunked"])
@given(places=st.lists(st.integers(0, 1000), max_size=8), inner=st.lists(st.integers(0, 1000), max_size=4))
def test_cuts_of_the_socket_do_not_matter(server: Any, coding: str, places: List[int], inner: List[int]) -> None:
    text = json.dumps(BLOBS).encode()
    data = text + FLOATS + FLOATS
    if coding == "chunked":
        headers = {"transfer-encoding": "chunked", "content-length": "", "inference-header-content-length": str(len(text))}
        request = infer("add_sub", b"", headers=headers) + b"".join(chunked(cut(data, inner)))
    else:
        request = infer("add_sub", BLOBS, FLOATS + FLOATS)
    wire: Wire
    with server.wire() as wire:
        wire.send(*cut(request, places))
        assert [output["data"] for output in wire.answer().json()["outputs"]] == [[2.0, 4.0, 6.0, 8.0], [0.0] * 4]
