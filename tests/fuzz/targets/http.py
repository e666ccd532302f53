"""Bodies of HTTP requests."""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence

from stublet.parent import model_source
from stublet.parent.errors import ServerError
from stublet.parent.http import generate_json, json_tensor
from stublet.parent.http.front_end import HEADER_LENGTH, InferFields
from stublet.parent.http.infer import InferBody, make_request
from stublet.parent.http.infer_header import parse_header, remembered_header
from stublet.parent.http.json_document import parameters_of
from stublet.parent.http.repository import load_parameters
from stublet.parent.model import Model

from ..offered import Offered, offered
from ..target import Check, Target, pure

LIMIT = 1 << 20

TOKENS = [
    b'{"', b'":', b'"', b"[", b"]", b"{}", b"[]", b",", b"null", b"true", b"false", b"NaN", b"Infinity", b"\\ud800", b"\\u0000", b"-0",
    b"1.5", b"1e400", b"18446744073709551616", b"9223372036854775808", b'"inputs"', b'"outputs"', b'"name"', b'"shape"', b'"datatype"',
    b'"data"', b'"parameters"', b'"id"', b'"binary_data_size"', b'"binary_data"', b'"binary_data_output"', b'"classification"',
    b'"shared_memory_region"', b'"shared_memory_offset"', b'"shared_memory_byte_size"', b'"sequence_id"', b'"priority"', b'"timeout"',
    b'"INPUT0"', b'"INPUT1"', b'"OUTPUT0"', b'"FP32"', b'"BYTES"', b'"INT8"', b'"BOOL"', b'"FP16"',
]  # fmt: skip


# ---- JSON ----


def json_document(data: bytes) -> None:
    """What we read is what Python's own decoder reads, apart from what Triton refuses."""
    try:
        found = json_tensor.decode_document(data)
    except ServerError as error:
        assert error.http_status == 400
        assert "nesting" in str(error) or not _is_json(data)
        return
    assert _same(found, json.loads(data.decode())), found


def _is_json(data: bytes) -> bool:
    try:
        json.dumps(json.loads(data.decode()), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


# ---- the header of an inference ----


@contextmanager
def infer_header() -> Iterator[Check]:
    """The first line names the model."""
    with offered() as server:

        def check(data: bytes) -> None:
            model, text = _addressed(server, data)
            results: List[Any] = []
            for parse in (parse_header, remembered_header, remembered_header):
                try:
                    header = parse(model, text)
                    results.append((header.request_id, header.layout, repr(header.extras), header.outputs, header.default_binary))
                except ServerError as error:
                    assert error.http_status in (400, 404, 501)
                    results.append((type(error), str(error)))
            assert results[0] == results[1] == results[2]

        yield check


def _addressed(server: Offered, data: bytes) -> Any:
    name, _, rest = data.partition(b"\n")
    return server.models.get(name.decode("latin-1"), server.models["add_sub"]), rest


# ---- the body of an inference ----


@contextmanager
def infer_body() -> Iterator[Check]:
    """The first line: the model, ``Inference-Header-Content-Length`` or "-", whether the body's length is announced ("length" or "chunked"),
    and where it is cut."""
    with offered() as server:

        def check(data: bytes) -> None:
            line, _, body = data.partition(b"\n")
            name, length, announced, cut = [*line.split(b" "), b"", b"", b"", b""][:4]
            model = server.models.get(name.decode("latin-1"), server.models["add_sub"])
            headers = [(b"content-length", b"%d" % len(body))] if announced == b"length" else []
            fields = InferFields.of([*headers, *([(HEADER_LENGTH, length)] if length != b"-" else [])])
            place = int(cut) if cut.isdigit() and len(cut) < 9 else 0
            whole = _outcome(model, [body], fields)
            assert whole == _outcome(model, [body[:place], body[place:]], fields)
            server.assert_nothing_held()

        yield check


def _outcome(model: Model, chunks: Sequence[bytes], fields: InferFields) -> Any:
    taken: Optional[InferBody] = None
    try:
        taken = InferBody(model, fields.header_length, fields.content_length, LIMIT)
        for chunk in chunks:
            taken.feed(chunk)
        header, block = taken.finish()
        request = make_request(model, header, block, lambda *_: None)
    except ServerError as error:
        assert error.http_status in (400, 404, 501, 503)
        if taken is not None:
            taken.abandon()
        return type(error), str(error)
    memory, start = block.segment.memory, block.offset
    tensors = [(p.spec.name, p.shape, memory[start + p.offset : start + p.offset + p.nbytes]) for p in header.layout.placements]
    with model.lock:
        request.release()
    return header.request_id, tensors, repr(header.extras)


# ---- generate ----


@contextmanager
def generate() -> Iterator[Check]:
    """The first line names the model."""
    with offered() as server:

        def check(data: bytes) -> None:
            model, text = _addressed(server, data)
            try:
                request = generate_json.parse(model, text, {})
            except ServerError as error:
                assert error.http_status == 400
                return
            assert [place.nbytes for place in request.layout.placements] == [len(tensor) for tensor in request.data]

        yield check


# ---- a request to load a model ----


def load_request(data: bytes) -> None:
    """The first line is a model's name. No file of what comes with it leads out of the model's directory, and the name is one of a directory."""
    name, _, body = data.partition(b"\n")
    try:
        model = model_source.check_name(name.decode("utf-8", "surrogateescape"))
        _, files = load_parameters(parameters_of(json_tensor.decode_document(body)))
        paths = [os.path.join("/models", model, *model_source._path_parts(model, key)) for key in files]
    except ServerError as error:
        assert error.http_status == 400
        return
    assert os.path.dirname(os.path.normpath(os.path.join("/models", model))) == "/models"
    for path in paths:
        assert os.path.normpath(path) == path and path.startswith(f"/models/{model}/")
        os.fsencode(path)


TARGETS = [
    Target("load_request", pure(load_request), [*TOKENS, b'"config"', b"file:", b"..", b"/", b"\\u0000", b"\\ud800", b"1/model.py"]),
    Target("json_document", pure(json_document), TOKENS),
    Target("infer_header", infer_header, TOKENS),
    Target("infer_body", infer_body, [*TOKENS, b"-", b"length", b"chunked"], mutations=1000),
    Target("generate", generate, TOKENS),
]
