"""What bad requests are told. The rows are the recorded answers of Triton and the specification's sections 6.4 and 6.5."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any, Dict, NamedTuple, Optional

import pytest
from http_wire import Headers, Wire, infer, request, tensor

WAYS = {"direct": {}, "asgi": {"accept-encoding": "identity"}}
"""An inference is served by callbacks in the protocol, or, where a header asks for something special, through ASGI."""

FOUR = [1.0, 2.0, 3.0, 4.0]
A = tensor("INPUT0", "FP32", [4], FOUR)
B = tensor("INPUT1", "FP32", [4], FOUR)
GOOD = {"inputs": [A, B]}
SUM = {"name": "OUTPUT0", "datatype": "FP32", "shape": [4], "data": [2.0, 4.0, 6.0, 8.0]}
DIFFERENCE = {"name": "OUTPUT1", "datatype": "FP32", "shape": [4], "data": [0.0, 0.0, 0.0, 0.0]}
ANSWER = {"model_name": "add_sub", "model_version": "1", "outputs": [SUM, DIFFERENCE]}

BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. If you "
    "want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. See the model "
    "configuration docs for more info on max_batch_size."
)
ONE_FIELD = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'. "
)
RAW = "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'add_sub' model configuration"


class Bad(NamedTuple):
    """A bad inference, and the answer to it."""

    name: str
    document: Any
    status: int
    text: str
    model: str = "add_sub"
    binary: Optional[bytes] = None
    headers: Headers = {}


def first(**changes: Any) -> Dict[str, Any]:
    """The good request with another first input; a member that is ... is left out."""
    return {"inputs": [{key: value for key, value in {**A, **changes}.items() if value is not ...}, B]}


def batch(*shape: int, data: Any = ()) -> Dict[str, Any]:
    return {"inputs": [tensor("INPUT0", "FP32", shape, list(data))]}


def strings(shape: Any, data: Any) -> Dict[str, Any]:
    return {"inputs": [tensor("INPUT0", "BYTES", shape, data)]}


def blob(size: int) -> Dict[str, Any]:
    """``add_sub`` with INPUT0 announced as that many bytes of binary data."""
    return {"inputs": [tensor("INPUT0", "FP32", [4], binary_data_size=size), B]}


TWO_BLOBS = {"inputs": [tensor("INPUT0", "FP32", [4], binary_data_size=16), tensor("INPUT1", "FP32", [4], binary_data_size=16)]}


def elements(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def string_blob(wire: bytes) -> Dict[str, Any]:
    return {"inputs": [tensor("INPUT0", "BYTES", [2], binary_data_size=len(wire))]}


def no(member: str) -> str:
    return f"Unable to parse '{member}': attempt to access non-existing object member '{member}'"


def not_a(member: str, kind: str) -> str:
    return f"Unable to parse '{member}': attempt to access JSON non-{kind} as {kind}"


def shape(model: str, expected: str, got: str, note: str = "") -> str:
    return f"unexpected shape for input 'INPUT0' for model '{model}'. Expected {expected}, got {got}. {note}"


def inputs(found: str, missing: str, got: int) -> str:
    return (
        f"expected 2 inputs but got {got} inputs for model 'add_sub'. Got input(s) [{found}], but missing required input(s) [{missing}]. "
        "Please provide all required input(s)."
    )


MISMATCH = "Unable to parse 'data': Shape does not match true shape of 'data' field"
UNSIGNED = "unsigned-integer"
DEEP = "JSON nesting depth exceeds maximum allowed limit of 100"

INPUTS = [
    Bad("unknown input name", {"inputs": [A, B, {**A, "name": "NOPE"}]}, 400, inputs("'INPUT0','INPUT1','NOPE'", "", 3)),
    Bad("unknown input instead of one", first(name="NOPE"), 400, "unexpected inference input 'NOPE' for model 'add_sub'"),
    Bad("missing input", {"inputs": [A]}, 400, inputs("'INPUT0'", "'INPUT1'", 1)),
    Bad("no inputs", {"inputs": []}, 400, inputs("", "'INPUT0','INPUT1'", 0)),
    Bad("no inputs key", {}, 400, no("inputs")),
    Bad("same input twice", {"inputs": [A, A]}, 400, "input 'INPUT0' already exists in request"),
    Bad("inputs not a list", {"inputs": {}}, 400, not_a("inputs", "array")),
    Bad("input not an object", {"inputs": [1, 2]}, 400, no("name")),
    Bad(
        "wrong dtype", first(datatype="INT32", data=[1, 2, 3, 4]), 400,
        "inference input 'INPUT0' data-type is 'INT32', but model 'add_sub' expects 'FP32'",
    ),
    Bad("unknown dtype", first(datatype="FLOAT"), 400, "invalid datatype for input INPUT0"),
    Bad("dtype not a string", first(datatype=11), 400, not_a("datatype", "string")),
    Bad("wrong shape, same count", first(shape=[2, 2]), 400, shape("add_sub", "[4]", "[2,2]")),
    Bad("wrong shape [5]", first(shape=[5], data=[*FOUR, 5.0]), 400, shape("add_sub", "[4]", "[5]")),
    Bad("scalar shape", first(shape=[], data=[1.0]), 400, shape("add_sub", "[4]", "[]")),
    Bad("shape [-1]", first(shape=[-1]), 400, not_a("shape", UNSIGNED)),
    Bad("shape [4.0]", first(shape=[4.0]), 400, not_a("shape", UNSIGNED)),
    Bad("shape [true]", first(shape=[True]), 400, not_a("shape", UNSIGNED)),
    Bad("shape not a list", first(shape=4), 400, not_a("shape", "array")),
    Bad("shape [0]", first(shape=[0], data=[]), 400, shape("add_sub", "[4]", "[0]")),
    Bad("shape huge", blob(16) | first(shape=[2**62, 8], data=..., parameters={"binary_data_size": 16}), 400,
        shape("add_sub", "[4]", "[4611686018427387904,8]"), binary=bytes(16)),
    Bad("shape past every integer", {"inputs": [tensor("INPUT0", "FP32", [2**62, 8], binary_data_size=16)]}, 400,
        "invalid shape for input 'INPUT0': shape [4611686018427387904,8] causes total element count to exceed maximum size of "
        "9223372036854775807", "matrix", bytes(16)),
    Bad("nothing, but too much of it", {"inputs": [tensor("INPUT0", "FP32", [0, 2**62], binary_data_size=0)]}, 400,
        "invalid shape for input 'INPUT0': shape [0,4611686018427387904] causes total element count to exceed maximum size of "
        "9223372036854775807", "matrix", b""),
    Bad("nothing past every integer", {"inputs": [tensor("INPUT0", "FP32", [0, 2**70], binary_data_size=0)]}, 400,
        "invalid shape for input 'INPUT0': shape [0,1180591620717411303424] causes total element count to exceed maximum size of "
        "9223372036854775807", "matrix", b""),
    Bad("input without name", first(name=...), 400, no("name")),
    Bad("name not a string", first(name=1), 400, not_a("name", "string")),
    Bad("input without shape", first(shape=...), 400, no("shape")),
    Bad("input without datatype", first(datatype=...), 400, no("datatype")),
    Bad("input without data", first(data=...), 400, ONE_FIELD + "But no field is set"),
    Bad("data and binary", first(parameters={"binary_data_size": 16}), 400, ONE_FIELD + "But set 'data' 'binary_data_size'"),
    Bad("input parameters not an object", first(parameters=[]), 400, not_a("parameters", "object")),
    Bad(
        "optional inputs", {"inputs": []}, 400,
        "expected number of inputs between 1 and 2 but got 0 inputs for model 'optional'. Got input(s) [], but missing required input(s) "
        "['REQUIRED']. Please provide all required input(s).", "optional",
    ),
    Bad("optional instead of required", {"inputs": [tensor("OPTIONAL", "INT32", [1], [1])]}, 400,
        "expected number of inputs between 1 and 2 but got 1 inputs for model 'optional'. Got input(s) ['OPTIONAL'], but missing required "
        "input(s) ['REQUIRED']. Please provide all required input(s).", "optional"),
]  # fmt: skip

DATA = [
    Bad("too few data", first(data=[1.0, 2.0]), 400, MISMATCH),
    Bad("too many data", first(data=[*FOUR, 5.0]), 400, MISMATCH),
    Bad("string for FP32", first(data=["a", "b", "c", "d"]), 400, "Unable to parse 'data': attempt to access JSON non-number as double"),
    Bad("one string for FP32", first(data=[1.0, 2.0, 3.0, "4"]), 400, "Unable to parse 'data': attempt to access JSON non-number as double"),
    Bad("null for FP32", first(data=[None, 1.0, 1.0, 1.0]), 400, "Unable to parse 'data': attempt to access JSON non-number as double"),
    Bad("boolean for FP32", first(data=[True] * 4), 400, "Unable to parse 'data': attempt to access JSON non-number as double"),
    Bad("one boolean for FP32", first(data=[True, 1.0, 1.0, 1.0]), 400,
        "Unable to parse 'data': attempt to access JSON non-number as double"),
    Bad("object for FP32", first(data=[{}] * 4), 400, "Unable to parse 'data': attempt to access JSON non-number as double"),
    Bad("data not a list", first(data=1.0), 400, not_a("data", "array")),
    Bad("data nested too deeply", first(data=json.loads("[" * 101 + "1" + "]" * 101)), 400, DEEP),
    Bad("deep nesting elsewhere", b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, DEEP),
    Bad("FP16 as JSON", {"inputs": [tensor("IN_FP16", "FP16", [1], [1.0])]}, 400,
        "receiving FP16 data via JSON is not supported. Please use the binary data format for input IN_FP16", "every_type"),
    Bad("BF16 as JSON", {"inputs": [tensor("IN_BF16", "BF16", [1], [1.0])]}, 400,
        "receiving BF16 data via JSON is not supported. Please use the binary data format for input IN_BF16", "every_type"),
    Bad("number for BOOL", {"inputs": [tensor("IN_BOOL", "BOOL", [1], [1])]}, 400,
        "Unable to parse 'data': attempt to access JSON non-boolean as boolean", "every_type"),
    Bad("float for INT8", {"inputs": [tensor("IN_INT8", "INT8", [1], [1.5])]}, 400,
        "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer", "every_type"),
    Bad("boolean for INT8", {"inputs": [tensor("IN_INT8", "INT8", [2], [1, True])]}, 400,
        "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer", "every_type"),
    Bad("too large for INT8", {"inputs": [tensor("IN_INT8", "INT8", [2], [1, 128])]}, 400,
        "Unable to parse 'data': 128 of input 'IN_INT8' is out of the range of INT8", "every_type"),
    Bad("negative for UINT64", {"inputs": [tensor("IN_UINT64", "UINT64", [1], [-1])]}, 400,
        "Unable to parse 'data': -1 of input 'IN_UINT64' is out of the range of UINT64", "every_type"),
    Bad("past every integer", {"inputs": [tensor("IN_INT64", "INT64", [1], [2**70])]}, 400,
        "Unable to parse 'data': 1180591620717411303424 of input 'IN_INT64' is out of the range of INT64", "every_type"),
    Bad("past every float", {"inputs": [tensor("IN_FP64", "FP64", [1], [10**400])]}, 400,
        "Unable to parse 'data': an integer of input 'IN_FP64' is out of the range of FP64", "every_type"),
    Bad("sign change past every integer", {"inputs": [tensor("IN_UINT64", "UINT64", [2], [-1, 2**63])]}, 400,
        "Unable to parse 'data': -1 of input 'IN_UINT64' is out of the range of UINT64", "every_type"),
    Bad("BYTES number in data", strings([1], [5]), 400,
        "Unable to parse JSON bytes array: attempt to access JSON non-string as string", "identity_bytes"),
    Bad("BYTES too few", strings([2], ["a"]), 400, MISMATCH, "identity_bytes"),
    Bad("BYTES too many", strings([2], ["a", "b", "c"]), 400, MISMATCH, "identity_bytes"),
    Bad("batch 65", batch(65, 4, data=[0.5] * 260), 400, "inference request batch-size must be <= 64 for 'identity_batch'", "identity_batch"),
    Bad("batch 0", batch(0, 4), 400, "inference request batch-size must be >= 1 for 'identity_batch'", "identity_batch"),
    Bad("batch dimension absent", batch(4, data=FOUR), 400, shape("identity_batch", "[-1,4]", "[4]", BATCH_NOTE), "identity_batch"),
    Bad("wrong inner shape", batch(1, 5, data=[*FOUR, 5.0]), 400, shape("identity_batch", "[-1,4]", "[1,5]", BATCH_NOTE), "identity_batch"),
]  # fmt: skip

TOO_SHORT = "unexpected size for input 'INPUT1', expecting 8 additional bytes for model 'add_sub'"
TOO_LONG = "unexpected additional input data for model 'add_sub'"
GOOD_TEXT = json.dumps(GOOD).encode()

FRAMING = [
    Bad("binary size too small", blob(12), 400,
        "input byte size mismatch for input 'INPUT0' for model 'add_sub'. Expected 16, got 12", binary=bytes(12)),
    Bad("binary size too large", blob(20), 400,
        "input byte size mismatch for input 'INPUT0' for model 'add_sub'. Expected 16, got 20", binary=bytes(20)),
    Bad("binary size negative", blob(-1), 400, not_a("binary_data_size", UNSIGNED), binary=bytes(16)),
    Bad("binary size a float", blob(16.0), 400, not_a("binary_data_size", UNSIGNED), binary=bytes(16)),  # type: ignore[arg-type]
    Bad("binary body too short", TWO_BLOBS, 400, TOO_SHORT, binary=bytes(24)),
    Bad("binary body missing", TWO_BLOBS, 400, TOO_SHORT.replace("INPUT1", "INPUT0").replace("8", "16"), binary=b""),
    Bad("binary body too long", TWO_BLOBS, 400, TOO_LONG, binary=bytes(40)),
    Bad("binary body without any input", GOOD, 400, TOO_LONG, binary=bytes(4)),
    Bad("header length over body", GOOD, 400, f"inference header size should be in range (0, {len(GOOD_TEXT)}), got: 100000",
        headers={"inference-header-content-length": "100000"}),
    Bad("header length negative", GOOD, 400, f"inference header size should be in range (0, {len(GOOD_TEXT)}), got: -5",
        headers={"inference-header-content-length": "-5"}),
    Bad("header length of 5000 digits", GOOD, 400, RAW, headers={"inference-header-content-length": "0" * 5000}),
    Bad("header length not a number", GOOD, 400, RAW, headers={"inference-header-content-length": "abc"}),
    Bad("header length 0, raw input", GOOD, 400, RAW, headers={"inference-header-content-length": "0"}),
    Bad("empty body", b"", 400, RAW),
    Bad("raw input of odd size", b"12345", 400, "input byte size mismatch for input 'INPUT0' for model 'vector'. Expected 4, got 5",
        "vector", headers={"inference-header-content-length": "0"}),
    Bad("raw input of unknown shape", bytes(16), 400,
        "The shape of the raw input 'INPUT0' can not be deduced because there are more than one variable-sized dimension",
        "matrix", headers={"inference-header-content-length": "0"}),
    Bad("BYTES binary length over the end", string_blob(b"\x09\0\0\0ab"), 400,
        "incomplete string data for inference input 'INPUT0', expecting string of length 9 but only 2 bytes available",
        "identity_bytes", b"\x09\0\0\0ab"),
    Bad("BYTES binary ends within a length", string_blob(elements(b"ab") + b"\1\0"), 400,
        "incomplete string length indicator for inference input 'INPUT0', expecting 4 bytes but only 2 bytes available",
        "identity_bytes", elements(b"ab") + b"\1\0"),
    Bad("BYTES binary one element too few", string_blob(elements(b"ab")), 400,
        "expected 2 string elements for inference input 'INPUT0' for model 'identity_bytes', got 1", "identity_bytes", elements(b"ab")),
    Bad("BYTES binary one element too many", string_blob(elements(b"a", b"b", b"c")), 400,
        "unexpected number of string elements 3 for inference input 'INPUT0' for model 'identity_bytes', expecting 2",
        "identity_bytes", elements(b"a", b"b", b"c")),
]  # fmt: skip

PARSE = "failed to parse the request JSON buffer: "

DOCUMENTS = [
    Bad("malformed JSON", b'{"inputs": [}', 400, PARSE + "Expecting value at 12"),
    Bad("JSON cut short", b'{"inputs": [', 400, PARSE + "Expecting value at 12"),
    Bad("more after the JSON", b"{} {}", 400, PARSE + "Extra data at 3"),
    Bad("JSON not an object", b"[1, 2]", 400, no("inputs")),
    Bad("JSON null", b"null", 400, no("inputs")),
    Bad("body not UTF-8", b'\xff\xfe{"inputs": []}', 400, PARSE + "the text is not valid UTF-8"),
    Bad("half a surrogate pair", b'{"id": "\\ud800", "inputs": []}', 400, PARSE + "the text is not valid UTF-8"),
    Bad("id not a string", {**GOOD, "id": 5}, 400, not_a("id", "string")),
    Bad("timeout not a number", {**GOOD, "parameters": {"timeout": "soon"}}, 400, not_a("timeout", UNSIGNED)),
    Bad("timeout negative", {**GOOD, "parameters": {"timeout": -1}}, 400, not_a("timeout", UNSIGNED)),
    Bad("timeout past every integer", {**GOOD, "parameters": {"timeout": 2**64}}, 400, not_a("timeout", UNSIGNED)),
    Bad("priority negative", {**GOOD, "parameters": {"priority": -1}}, 400, not_a("priority", UNSIGNED)),
    Bad("sequence_start not a boolean", {**GOOD, "parameters": {"sequence_start": 1}}, 400, not_a("sequence_start", "boolean")),
    Bad("sequence_id negative", {**GOOD, "parameters": {"sequence_id": -1}}, 400, not_a("sequence_id", UNSIGNED)),
    Bad("binary_data_output not a boolean", {**GOOD, "parameters": {"binary_data_output": 1}}, 400, not_a("binary_data_output", "boolean")),
    Bad("reserved parameter", {**GOOD, "parameters": {"triton_x": 1}}, 400,
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."),
    Bad("parameter of a wrong type", {**GOOD, "parameters": {"x": [1]}}, 400,
        "parameter 'x' has invalid type. It should be either 'int', 'bool', or 'string'."),
    Bad("parameters not an object", {**GOOD, "parameters": 1}, 400, not_a("parameters", "object")),
    Bad("outputs not a list", {**GOOD, "outputs": {}}, 400, not_a("outputs", "array")),
    Bad("output without name", {**GOOD, "outputs": [{}]}, 400, no("name")),
    Bad("unknown requested output", {**GOOD, "outputs": [{"name": "NOPE"}]}, 400, "unexpected inference output 'NOPE' for model 'add_sub'"),
    Bad("requested output twice", {**GOOD, "outputs": [{"name": "OUTPUT0"}] * 2}, 400, "output 'OUTPUT0' already exists in request"),
    Bad("binary_data not a boolean", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]}, 400,
        not_a("binary_data", "boolean")),
]  # fmt: skip

MODELS = [
    Bad("unknown model", GOOD, 404, "Request for unknown model: 'nope' is not found", "nope"),
    Bad("unknown version", GOOD, 404, "Request for unknown model: 'add_sub' version 9 is not found", "add_sub/versions/9"),
    Bad("version of 5000 digits", GOOD, 404, "Not Found", "add_sub/versions/" + "9" * 5000),
    Bad("version not a number", GOOD, 404, "Not Found", "add_sub/versions/x"),
    Bad("decoupled model", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}, 501,
        "HTTP end point doesn't support models with decoupled transaction policy", "decoupled"),
    Bad("unknown content-encoding", GOOD, 501, "Unsupported compression type", headers={"content-encoding": "br"}),
    Bad("gzip header, plain body", GOOD, 400, "the request body is not valid gzip data: Error -3 while decompressing data: incorrect "
        "header check", headers={"content-encoding": "gzip"}),
    Bad("deflate cut short", zlib.compress(GOOD_TEXT)[:-5], 400, "the request body ends within its deflate data",
        headers={"content-encoding": "deflate"}),
    Bad("more after the gzip data", gzip.compress(GOOD_TEXT) + b"more", 400, "the request body has data after the end of its gzip data",
        headers={"content-encoding": "gzip"}),
]  # fmt: skip

OUTPUTS = [
    Bad("FP16 output as JSON", {"inputs": [tensor("IN_FP16", "FP16", [2], binary_data_size=4)]}, 400,
        "sending FP16 data via JSON is not supported. Please use the binary data format for output OUT_FP16", "every_type", bytes(4)),
    Bad("strings that are not UTF-8 as JSON", string_blob(elements(b"\xff", b"bc")), 400,
        "output 'OUTPUT0' has strings that are not UTF-8. Please use the binary data format for output OUTPUT0",
        "identity_bytes", elements(b"\xff", b"bc")),
    *(
        Bad(f"classification {count!r}", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": count}}]}, 400,
            f"Unable to set 'classification': attempt to access JSON non-{UNSIGNED} as {UNSIGNED}")
        for count in (-1, "x", 1.5, True, 2**64)
    ),
    Bad("classification of strings", {**strings([2], ["a", "b"]), "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}]},
        400, "class result not available for output due to unsupported type 'BYTES'", "identity_bytes"),
]  # fmt: skip

INFERENCES = [*INPUTS, *DATA, *FRAMING, *DOCUMENTS, *MODELS, *OUTPUTS]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.name) for bad in INFERENCES])
def test_inference(wire: Wire, bad: Bad, way: str) -> None:
    answer = wire.ask(infer(bad.model, bad.document, bad.binary, {**bad.headers, **WAYS[way]}))
    assert (answer.status, answer.error) == (bad.status, bad.text)
    good = wire.ask(infer("add_sub", GOOD, headers=WAYS[way]))
    assert (good.status, good.json()) == (200, ANSWER), "a good request on the same connection"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.name) for bad in FRAMING if not bad.headers])
def test_framing_of_a_chunked_body(wire: Wire, bad: Bad, way: str) -> None:
    """Without a Content-Length the end of the body is known only when it comes."""
    if bad.document == b"":
        pytest.skip("an empty chunked body is an empty JSON document")
    whole = infer(bad.model, bad.document, bad.binary, {"transfer-encoding": "chunked", "content-length": "", **WAYS[way]})
    head, body = whole.split(b"\r\n\r\n", 1)
    answer = wire.ask(head + b"\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert answer.status == bad.status
    assert answer.error == bad.text
    assert wire.ask(infer("add_sub", GOOD)).json() == ANSWER


class Row(NamedTuple):
    """A request that is not an inference, and the answer to it."""

    method: str
    path: str
    status: int
    text: str


OTHERS = [
    Row("GET", "/v2/models/add_sub/infer", 405, "Method Not Allowed"),
    Row("PUT", "/v2/models/add_sub/infer", 405, "Method Not Allowed"),
    Row("DELETE", "/v2/models/add_sub", 405, "Method Not Allowed"),
    Row("POST", "/v2/health/live", 405, "Method Not Allowed"),
    Row("POST", "/v2/health/ready", 405, "Method Not Allowed"),
    Row("POST", "/v2", 405, "Method Not Allowed"),
    Row("GET", "/v2/nope", 404, "Not Found"),
    Row("GET", "/", 404, "Not Found"),
    Row("GET", "/v2/models/add_sub/versions/01x", 404, "Not Found"),
    Row("GET", "/v2/models//ready", 404, "Not Found"),
    Row("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
    Row("GET", "/v2/models/nope/config", 404, "Request for unknown model: 'nope' is not found"),
    Row("GET", "/v2/models/add_sub/versions/9", 404, "Request for unknown model: 'add_sub' version 9 is not found"),
    Row("GET", "/v2/models/nope/ready", 400, "Model version not ready"),
    Row("GET", "/v2/models/add_sub/versions/9/ready", 400, "Model version not ready"),
]


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: f"{row.method} {row.path}")
def test_other_requests(wire: Wire, row: Row) -> None:
    answer = wire.ask(request(row.method, row.path))
    assert (answer.status, answer.error) == (row.status, row.text)
    if row.status == 405:
        assert answer.headers["allow"] in ("GET", "POST")
    assert wire.ask(infer("add_sub", GOOD)).json() == ANSWER


def test_head_has_no_body(wire: Wire) -> None:
    wire.send(request("HEAD", "/v2/health/ready"))
    assert wire.answer(head=True).status == 405
    assert wire.ask(infer("add_sub", GOOD)).json() == ANSWER


@pytest.mark.parametrize(
    "nonsense",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"POST /v2/models/add_sub/infer HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    ],
)
def test_what_is_not_http_ends_the_connection_only(wire: Wire, server: Any, nonsense: bytes) -> None:
    answer = wire.ask(nonsense)
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert wire.closed()
    with server.wire() as other:
        assert other.ask(infer("add_sub", GOOD)).json() == ANSWER
