"""Good inferences, as bytes: tensors as JSON and as binary data, in every mixture, and what is told about models."""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Dict, List, Tuple

import pytest
from add_sub import ANSWER, BLOB0, BLOB1, DIFFERENCE, DIFFERENCE_BYTES, FLOATS, GOOD, SUM, SUM_BYTES
from http_wire import Headers, Wire, infer, request, tensor


def in_binary(output: Dict[str, Any]) -> Dict[str, Any]:
    """An output as described when its data follow in binary."""
    return {**{key: value for key, value in output.items() if key != "data"}, "parameters": {"binary_data_size": 16}}


def wants(*names: str, **parameters: Any) -> List[Dict[str, Any]]:
    return [{"name": name, **({"parameters": parameters} if parameters else {})} for name in names]


@pytest.mark.parametrize(
    "document, binary",
    [
        (GOOD, None),
        ({**GOOD, "outputs": []}, None),
        ({"inputs": [tensor("INPUT0", "FP32", [4], [[1, 2], [3, 4]]), GOOD["inputs"][1]]}, None),
        ({"inputs": [tensor("INPUT0", "FP32", [4], [1, 2.0, [3], [[4]]]), GOOD["inputs"][1]]}, None),
        ({"inputs": GOOD["inputs"][::-1]}, None),
        ({"inputs": [BLOB0, BLOB1]}, FLOATS + FLOATS),
        ({"inputs": [BLOB0, GOOD["inputs"][1]]}, FLOATS),
        ({"inputs": [GOOD["inputs"][0], BLOB1]}, FLOATS),
        ({**GOOD, "parameters": {"sequence_id": 5, "sequence_start": True, "priority": 1, "timeout": 0, "own": "x"}}, None),
        ({**GOOD, "unknown": [1, {"a": None}]}, None),
        (GOOD, b""),
    ],
    ids=[
        "JSON", "empty outputs", "nested integers", "uneven nesting", "other order", "binary", "binary and JSON", "JSON and binary",
        "parameters", "unknown member", "header length of a plain body",
    ],
)  # fmt: skip
def test_inputs(wire: Wire, way: Headers, document: Any, binary: Any) -> None:
    answer = wire.ask(infer("add_sub", document, binary, way))
    assert (answer.status, answer.json()) == (200, ANSWER)
    assert answer.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in answer.headers


@pytest.mark.parametrize(
    "more, outputs, binary",
    [
        ({"outputs": wants("OUTPUT1")}, [DIFFERENCE], b""),
        ({"outputs": wants("OUTPUT1", "OUTPUT0")}, [DIFFERENCE, SUM], b""),
        ({"parameters": {"binary_data_output": True}}, [in_binary(SUM), in_binary(DIFFERENCE)], SUM_BYTES + DIFFERENCE_BYTES),
        (
            {"outputs": wants("OUTPUT1", "OUTPUT0", binary_data=True)},
            [in_binary(DIFFERENCE), in_binary(SUM)],
            DIFFERENCE_BYTES + SUM_BYTES,
        ),
        ({"outputs": [*wants("OUTPUT0"), *wants("OUTPUT1", binary_data=True)]}, [SUM, in_binary(DIFFERENCE)], DIFFERENCE_BYTES),
        (
            {"outputs": wants("OUTPUT0", binary_data=False), "parameters": {"binary_data_output": True}},
            [SUM], b"",
        ),
        (
            {"outputs": [*wants("OUTPUT0"), *wants("OUTPUT1", binary_data=False)], "parameters": {"binary_data_output": True}},
            [in_binary(SUM), DIFFERENCE], SUM_BYTES,
        ),
    ],
    ids=["subset", "order", "all binary", "binary in another order", "mixed", "JSON despite the default", "binary by default"],
)  # fmt: skip
def test_requested_outputs(wire: Wire, way: Headers, more: Dict[str, Any], outputs: Any, binary: bytes) -> None:
    # Twice: what can be remembered of the first answer must not change the second.
    for _ in range(2):
        answer = wire.ask(infer("add_sub", {**GOOD, **more}, headers=way))
        assert answer.json() == {**ANSWER, "outputs": outputs}
        if binary:
            assert answer.binary == binary
            assert answer.headers["content-type"] == "application/octet-stream"
        else:
            assert answer.headers["content-type"] == "application/json"


def test_key_order_is_as_documented(wire: Wire, way: Headers) -> None:
    answer = wire.ask(infer("add_sub", {**GOOD, "id": "abc", "outputs": wants("OUTPUT1")}, headers=way))
    assert answer.body == (
        b'{"id":"abc","model_name":"add_sub","model_version":"1","outputs":'
        b'[{"name":"OUTPUT1","datatype":"FP32","shape":[4],"data":[0.0,0.0,0.0,0.0]}]}'
    )


@pytest.mark.parametrize("identifier", ["abc", 'ключ "\\ \u0000 日本', "x" * 5000])
def test_id_is_echoed(wire: Wire, way: Headers, identifier: str) -> None:
    answer = wire.ask(infer("add_sub", {**GOOD, "id": identifier, "parameters": {"binary_data_output": True}}, headers=way))
    assert answer.json()["id"] == identifier
    assert "id" not in wire.ask(infer("add_sub", {**GOOD, "id": ""}, headers=way)).json()


def test_ids_are_not_mixed_up(wire: Wire, way: Headers) -> None:
    for number in range(20):
        document = {"id": str(number % 4), "inputs": [BLOB0, BLOB1], "parameters": {"binary_data_output": bool(number % 3)}}
        assert wire.ask(infer("add_sub", document, FLOATS + FLOATS, way)).json()["id"] == str(number % 4)


def test_what_a_model_is_told(wire: Wire, way: Headers) -> None:
    own = {"text": "déjà", "yes": True, "integer": -7, "large": 2**40, "float": 0.5}
    told = {"timeout": 1_000_000, "priority": 3, "sequence_id": 2**64 - 1, "sequence_start": True, "sequence_end": True}
    document = {"id": "日本", "inputs": [tensor("INPUT0", "INT32", [1], [1])], "parameters": {**own, **told}, "outputs": wants("REQUEST")}
    answer = wire.ask(infer("echo", document, headers=way)).json()
    assert answer["parameters"] == {"answered": True, "text": "déjà", "number": 7}
    assert json.loads(answer["outputs"][0]["data"][0]) == {
        "id": "日本", "parameters": own, "correlation_id": 2**64 - 1, "flags": 3, "timeout": 1_000_000, "requested": ["REQUEST"],
    }  # fmt: skip


def test_a_sequence_id_may_be_a_string(wire: Wire, way: Headers) -> None:
    document = {"inputs": [tensor("INPUT0", "INT32", [1], [1])], "parameters": {"sequence_id": "chat 7"}}
    answer = wire.ask(infer("echo", document, headers=way)).json()
    assert json.loads(answer["outputs"][0]["data"][0])["correlation_id"] == "chat 7"


@pytest.mark.parametrize("given, told", [({}, ["REQUIRED"]), ({"OPTIONAL": [4]}, ["REQUIRED", "OPTIONAL"])])
def test_optional_inputs(wire: Wire, way: Headers, given: Dict[str, List[int]], told: List[str]) -> None:
    inputs = [tensor(name, "INT32", [len(data)], data) for name, data in {**given, "REQUIRED": [1, 2]}.items()]
    answer = wire.ask(infer("optional", {"inputs": inputs}, headers=way)).json()
    assert answer["outputs"][0]["data"] == told


def test_no_input_at_all_where_all_are_optional(wire: Wire, way: Headers) -> None:
    assert wire.ask(infer("every_type", {"inputs": []}, headers=way)).json()["outputs"] == []


# datatype, struct format, values as JSON
TYPES: List[Tuple[str, str, List[Any]]] = [
    ("BOOL", "?", [True, False, True]),
    ("UINT8", "B", [0, 1, 2**8 - 1]),
    ("UINT16", "H", [0, 1, 2**16 - 1]),
    ("UINT32", "I", [0, 1, 2**32 - 1]),
    ("UINT64", "Q", [0, 1, 2**64 - 1]),
    ("INT8", "b", [-(2**7), 0, 2**7 - 1]),
    ("INT16", "h", [-(2**15), 0, 2**15 - 1]),
    ("INT32", "i", [-(2**31), 0, 2**31 - 1]),
    ("INT64", "q", [-(2**63), 0, 2**63 - 1]),
    ("FP32", "f", [0.5, -0.0, 3.4028234663852886e38]),
    ("FP64", "d", [0.1, -0.0, 1.7976931348623157e308]),
]


@pytest.mark.parametrize("datatype, form, values", TYPES, ids=[row[0] for row in TYPES])
def test_numbers_survive_every_form(wire: Wire, way: Headers, datatype: str, form: str, values: List[Any]) -> None:
    name, packed = f"IN_{datatype}", struct.pack(f"<{len(values)}{form}", *values)
    as_json = {"inputs": [tensor(name, datatype, [3], values)]}
    as_binary = {"inputs": [tensor(name, datatype, [3], binary_data_size=len(packed))]}
    for document, binary in ((as_json, None), (as_binary, packed)):
        assert wire.ask(infer("every_type", document, binary, way)).json()["outputs"] == [
            {"name": f"OUT_{datatype}", "datatype": datatype, "shape": [3], "data": values}
        ]
        answer = wire.ask(infer("every_type", {**document, "parameters": {"binary_data_output": True}}, binary, way))
        assert answer.binary == packed


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_sixteen_bit_floats_travel_in_binary(wire: Wire, way: Headers, datatype: str) -> None:
    packed = bytes(range(16))
    document = {
        "inputs": [tensor(f"IN_{datatype}", datatype, [8], binary_data_size=16)],
        "outputs": wants(f"OUT_{datatype}", binary_data=True),
    }
    assert wire.ask(infer("every_type", document, packed, way)).binary == packed


def elements(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


@pytest.mark.parametrize(
    "items", [["a", "bc"], ["é", "日本"], [""], ["", "", "x"], ["\u0000", '"\\\n'], ["x" * 70_000], ["ab"] * 1000], ids=ascii
)
def test_strings(wire: Wire, way: Headers, items: List[str]) -> None:
    wire_form = elements(*(item.encode() for item in items))
    as_json = {"inputs": [tensor("INPUT0", "BYTES", [len(items)], items)]}
    as_binary = {"inputs": [tensor("INPUT0", "BYTES", [len(items)], binary_data_size=len(wire_form))]}
    for document, binary in ((as_json, None), (as_binary, wire_form)):
        assert wire.ask(infer("identity_bytes", document, binary, way)).json()["outputs"][0]["data"] == items
        answer = wire.ask(infer("identity_bytes", {**document, "parameters": {"binary_data_output": True}}, binary, way))
        assert answer.binary == wire_form


def test_bytes_that_are_no_text(wire: Wire, way: Headers) -> None:
    wire_form = elements(b"\xff\x00", b"", b"\xc3")
    document = {"inputs": [tensor("INPUT0", "BYTES", [3], binary_data_size=len(wire_form))], "outputs": wants("OUTPUT0", binary_data=True)}
    assert wire.ask(infer("identity_bytes", document, wire_form, way)).binary == wire_form


def test_nan_and_infinity(wire: Wire, way: Headers) -> None:
    text = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[4],"data":[NaN,Infinity,-Infinity,1.5]}]}'
    data = wire.ask(infer("vector", text, headers=way)).json()["outputs"][0]["data"]
    assert math.isnan(data[0])
    assert data[1:] == [math.inf, -math.inf, 1.5]
    packed = struct.pack("<4f", math.nan, math.inf, -math.inf, 1.5)
    document = {"inputs": [tensor("INPUT0", "FP32", [4], binary_data_size=16)], "outputs": wants("OUTPUT0", binary_data=True)}
    assert wire.ask(infer("vector", document, packed, way)).binary == packed


def test_what_is_too_large_for_fp32_is_infinite(wire: Wire, way: Headers) -> None:
    data = wire.ask(infer("vector", {"inputs": [tensor("INPUT0", "FP32", [2], [1e300, -1e300])]}, headers=way)).json()["outputs"][0]["data"]
    assert data == [math.inf, -math.inf]


@pytest.mark.parametrize("shape", [[0, 3], [3, 0], [0, 0]])
def test_tensors_without_elements(wire: Wire, way: Headers, shape: List[int]) -> None:
    as_json = {"inputs": [tensor("INPUT0", "FP32", shape, [])]}
    assert wire.ask(infer("matrix", as_json, headers=way)).json()["outputs"] == [
        {"name": "OUTPUT0", "datatype": "FP32", "shape": shape, "data": []}
    ]
    as_binary = {"inputs": [tensor("INPUT0", "FP32", shape, binary_data_size=0)], "outputs": wants("OUTPUT0", binary_data=True)}
    answer = wire.ask(infer("matrix", as_binary, b"", way))
    assert answer.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in answer.headers
    assert answer.json()["outputs"] == [{"name": "OUTPUT0", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 0}}]


def test_no_strings(wire: Wire, way: Headers) -> None:
    answer = wire.ask(infer("identity_bytes", {"inputs": [tensor("INPUT0", "BYTES", [0], [])]}, headers=way))
    assert answer.json()["outputs"][0]["data"] == []


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batching_models_lead_with_the_batch(wire: Wire, way: Headers, batch: int) -> None:
    document = {"inputs": [tensor("INPUT0", "FP32", [batch, 4], [[0.5] * 4] * batch)]}
    assert wire.ask(infer("identity_batch", document, headers=way)).json()["outputs"] == [
        {"name": "OUTPUT0", "datatype": "FP32", "shape": [batch, 4], "data": [0.5] * 4 * batch}
    ]


RAW = {"inference-header-content-length": "0"}


@pytest.mark.parametrize(
    "model, body, shape, sent_back",
    [
        ("vector", FLOATS, [4], FLOATS),
        ("identity_batch", FLOATS, [1, 4], FLOATS),
        ("identity_bytes", b"one string", [1], elements(b"one string")),
        ("identity_bytes", b"\xff" * 100_000, [1], elements(b"\xff" * 100_000)),
    ],
)
def test_raw_binary_requests(wire: Wire, way: Headers, model: str, body: bytes, shape: List[int], sent_back: bytes) -> None:
    answer = wire.ask(infer(model, body, headers={**RAW, **way}))
    assert answer.json()["outputs"][0]["shape"] == shape
    assert answer.binary == sent_back


def test_an_empty_raw_request(wire: Wire, way: Headers) -> None:
    answer = wire.ask(infer("vector", b"", headers={**RAW, **way})).json()
    assert answer["outputs"] == [{"name": "OUTPUT0", "datatype": "FP32", "shape": [0], "parameters": {"binary_data_size": 0}}]


@pytest.mark.parametrize("nbytes", [0, 4, 16 << 10, (16 << 10) + 4, 1 << 20, 16 << 20])
def test_sizes_on_both_sides_of_every_threshold(wire: Wire, way: Headers, nbytes: int) -> None:
    data = bytes(range(256)) * (nbytes // 256) + bytes(nbytes % 256)
    document = {
        "inputs": [tensor("INPUT0", "FP32", [nbytes // 4], binary_data_size=nbytes)],
        "parameters": {"binary_data_output": True},
    }
    answer = wire.ask(infer("vector", document, data, way))
    assert (answer.binary if nbytes else b"") == data


@pytest.mark.parametrize("path", ["add_sub", "add_sub/versions/1"])
@pytest.mark.parametrize("query", ["", "?a=1"])
def test_paths(wire: Wire, path: str, query: str) -> None:
    body = json.dumps(GOOD).encode()
    assert wire.ask(request("POST", f"/v2/models/{path}/infer{query}", body)).json() == ANSWER
    assert wire.ask(request("POST", f"/v2/models/%61dd_sub/infer{query}", body)).json() == ANSWER


@pytest.mark.parametrize("path, version", [("versions", "3"), ("versions/versions/1", "1"), ("versions/versions/3", "3")])
def test_versions(wire: Wire, way: Headers, path: str, version: str) -> None:
    answer = wire.ask(infer(path, {"inputs": []}, headers=way)).json()
    assert (answer["model_version"], answer["outputs"][0]["data"]) == (version, [version])


# Metadata


def test_metadata(wire: Wire) -> None:
    server = wire.ask(request("GET", "/v2")).json()
    assert (server["name"], set(server)) == ("triton", {"name", "version", "extensions"})
    assert wire.ask(request("GET", "/v2/models/identity_batch")).json() == {
        "name": "identity_batch", "versions": ["1"], "platform": "python",
        "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "OUTPUT0", "datatype": "FP32", "shape": [-1, 4]}],
    }  # fmt: skip
    optional = wire.ask(request("GET", "/v2/models/optional/versions/1")).json()["inputs"]
    assert optional[1] == {"name": "OPTIONAL", "datatype": "INT32", "shape": [-1], "optional": True}


def test_config_is_the_effective_one(wire: Wire) -> None:
    config = wire.ask(request("GET", "/v2/models/identity_batch/config")).json()
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("identity_batch", "python", 64)
    assert config["input"][0]["dims"] == [4]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["instance_group"][0]["name"] == "identity_batch_0"
    assert config["version_policy"] == {"latest": {"num_versions": 1}}


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v2/health/live", b""),
        ("/v2/health/ready", b""),
        ("/v2/models/add_sub/ready", b""),
        ("/v2/models/add_sub/versions/1/ready", b""),
    ],
)
def test_health(wire: Wire, path: str, body: bytes) -> None:
    answer = wire.ask(request("GET", path))
    assert (answer.status, answer.body) == (200, body)
