"""Inference over gRPC, with the client library that users have and with messages as they are on the wire."""

from __future__ import annotations

import asyncio
import json
import queue
from typing import Any, Dict, Iterator, List, Tuple

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_client import FOUR, Client, add, infer, pb, script, strings, typed, wanted
from server_process import ServerProcess
from typed_arrays import ARRAYS

MEBI = 1 << 20


@pytest.fixture
def library(grpc_server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(grpc_server.grpc_address) as client:
        yield client


def given(name: str, datatype: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


RAW: Dict[str, Tuple[str, np.ndarray]] = {
    **ARRAYS,
    "FP16": ("FP16", np.array([0.5, np.inf], np.float16)),
    "BF16": ("BF16", np.array([0.5, -2.0], ml_dtypes.bfloat16)),
    "BYTES of any kind": ("BYTES", np.array([bytes(range(256))], object)),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_contents(library: triton.InferenceServerClient, case: str) -> None:
    datatype, array = RAW[case]
    output = triton.InferRequestedOutput(f"OUT_{datatype}")
    result = library.infer("every_type", [given(f"IN_{datatype}", datatype, array)], outputs=[output], request_id="7")
    found = result.as_numpy(f"OUT_{datatype}")
    if found is None:  # what the library makes of no bytes
        assert array.size == 0
        assert list(result.get_output(f"OUT_{datatype}").shape) == [0]
    else:
        np.testing.assert_array_equal(found, array)
    assert result.get_response().id == "7"


TYPED: List[Tuple[str, str, List[Any]]] = [
    ("BOOL", "bool_contents", [True, False]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 2**16 - 1]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("FP32", "fp32_contents", [0.5, float("inf")]),
    ("FP64", "fp64_contents", [0.1, -1e300]),
    ("BYTES", "bytes_contents", [b"a", b"", bytes(range(256))]),
    ("BYTES", "bytes_contents", [b""]),
    ("FP32", "fp32_contents", []),
    ("BYTES", "bytes_contents", []),
]


def every(datatype: str, field: str, values: List[Any]) -> Any:
    return typed("every_type", f"IN_{datatype}", datatype, field, values)


@pytest.mark.parametrize("datatype, field, values", TYPED)
def test_typed_contents(grpc_client: Client, datatype: str, field: str, values: List[Any]) -> None:
    answer = grpc_client.infer(every(datatype, field, values))
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == (f"OUT_{datatype}", datatype, [len(values)])
    (raw,) = answer.raw_output_contents
    if datatype == "BYTES":
        assert strings(raw) == values
    else:
        assert np.frombuffer(raw, ARRAYS[datatype][1].dtype).tolist() == values


def test_numbers_that_do_not_fit_are_cut_off(grpc_client: Client) -> None:
    answer = grpc_client.infer(every("INT8", "int_contents", [300, -1]))
    assert np.frombuffer(answer.raw_output_contents[0], np.int8).tolist() == [44, -1]


def test_typed_and_raw_in_turns(grpc_client: Client) -> None:
    """What is remembered of one must not be taken for the other."""
    raw = infer("every_type", {"IN_FP32": np.array([1, 2], np.float32)})
    for _ in range(2):
        for value in (3.0, 4.0):
            answer = grpc_client.infer(every("FP32", "fp32_contents", [value, value]))
            assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [value, value]
            assert np.frombuffer(grpc_client.infer(raw).raw_output_contents[0], np.float32).tolist() == [1, 2]


@pytest.mark.parametrize("version", ["", "1"])
def test_what_an_answer_says(grpc_client: Client, version: str) -> None:
    answer = grpc_client.infer(add(id="é1", version=version))
    assert (answer.model_name, answer.model_version, answer.id, dict(answer.parameters)) == ("add_sub", "1", "é1", {})
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("OUTPUT0", "FP32", [4]), ("OUTPUT1", "FP32", [4])]
    assert list(answer.raw_output_contents) == [(FOUR + FOUR).tobytes(), (FOUR - FOUR).tobytes()]


@pytest.mark.parametrize(
    "names, found", [(["OUTPUT1"], ["OUTPUT1"]), (["OUTPUT1", "OUTPUT0"], ["OUTPUT1", "OUTPUT0"]), (["OUTPUT0"] * 2, ["OUTPUT0"])]
)
def test_requested_outputs(grpc_client: Client, names: List[str], found: List[str]) -> None:
    answer = grpc_client.infer(add(outputs=names))
    assert [output.name for output in answer.outputs] == found
    assert len(answer.raw_output_contents) == len(found)


def test_versions(grpc_client: Client) -> None:
    for version, found in (("1", b"1"), ("3", b"3"), ("", b"3")):
        answer = grpc_client.infer(infer("versions", {}, version=version))
        assert (answer.model_version, strings(answer.raw_output_contents[0])) == (found.decode(), [found])


def test_left_out_inputs(grpc_client: Client) -> None:
    one = np.array([1], np.int32)
    for inputs, names in (({"REQUIRED": one}, [b"REQUIRED"]), ({"REQUIRED": one, "OPTIONAL": one}, [b"REQUIRED", b"OPTIONAL"])):
        assert strings(grpc_client.infer(infer("optional", inputs)).raw_output_contents[0]) == names


def test_more_raw_contents_than_inputs(grpc_client: Client) -> None:
    request = add()
    request.raw_input_contents.append(b"more")
    assert grpc_client.infer(request).raw_output_contents[0] == (FOUR + FOUR).tobytes()


SAYS = "result = json.dumps([json.loads(request.parameters()), request.correlation_id(), request.flags(), request.timeout(), request.request_id()])"


@pytest.mark.parametrize(
    "parameters, told",
    [
        ({}, [{}, 0, 0, 0, ""]),
        ({"a": 1, "b": True, "c": "é", "d": 1.5, "": -5}, [{"a": 1, "b": True, "c": "é", "d": 1.5, "": -5}, 0, 0, 0, ""]),
        ({"sequence_id": 5, "sequence_start": True}, [{}, 5, 1, 0, ""]),
        ({"sequence_id": "s", "sequence_end": True}, [{}, "s", 2, 0, ""]),
        ({"sequence_id": -1}, [{}, 2**64 - 1, 0, 0, ""]),
        ({"timeout": 10**9}, [{}, 0, 0, 10**9, ""]),
        ({"priority": 3}, [{}, 0, 0, 0, ""]),
        ({"priority": pb.InferParameter(uint64_param=3)}, [{}, 0, 0, 0, ""]),
        ({"triton_enable_empty_final_response": True}, [{}, 0, 0, 0, ""]),
    ],
)
def test_parameters_of_a_request(grpc_client: Client, parameters: Dict[str, Any], told: List[Any]) -> None:
    for request_id in ("", "i"):
        answer = grpc_client.infer(script("single", SAYS, parameters=parameters, id=request_id))
        assert json.loads(strings(answer.raw_output_contents[0])[0]) == [*told[:4], request_id]


def test_parameters_of_a_response(grpc_client: Client) -> None:
    given = {"a": 1, "b": True, "c": "é", "e": -(2**63)}
    answer = grpc_client.infer(script("single", f"returned = [response('x', parameters={given!r})]"))
    fields = {"a": "int64_param", "b": "bool_param", "c": "string_param", "e": "int64_param"}
    assert {key: value.WhichOneof("parameter_choice") for key, value in answer.parameters.items()} == fields
    assert {key: getattr(value, fields[key]) for key, value in answer.parameters.items()} == given


def test_the_library_s_own_parameters(library: triton.InferenceServerClient) -> None:
    tensor = given("CODE", "BYTES", np.array([SAYS.encode()], object))
    more = {"sequence_id": 7, "sequence_start": True, "sequence_end": True, "priority": 1, "timeout": 10**9}
    result = library.infer("single", [tensor], outputs=[triton.InferRequestedOutput("RESULT")], parameters={"a": "b"}, **more)
    assert json.loads(result.as_numpy("RESULT")[0]) == [{"a": "b"}, 7, 3, 10**9, ""]


@pytest.mark.parametrize(
    "count, elements",
    [
        (1, [b"8.000000:3"]),
        (3, [b"8.000000:3", b"6.000000:2", b"4.000000:1"]),
        (9, [b"8.000000:3", b"6.000000:2", b"4.000000:1", b"2.000000:0"]),
    ],
)
def test_classification(grpc_client: Client, count: int, elements: List[bytes]) -> None:
    answer = grpc_client.infer(add(outputs=[wanted("OUTPUT0", classification=count), "OUTPUT1"]))
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("OUTPUT0", "BYTES", [len(elements)]),
        ("OUTPUT1", "FP32", [4]),
    ]
    assert strings(answer.raw_output_contents[0]) == elements
    assert answer.raw_output_contents[1] == bytes(16)


def test_classification_of_a_batch(library: triton.InferenceServerClient) -> None:
    array = np.array([[1, 2, 3, 4], [8, 7, 6, 5]], np.float32)
    output = triton.InferRequestedOutput("OUTPUT0", class_count=2)
    found = library.infer("identity_batch", [given("INPUT0", "FP32", array)], outputs=[output]).as_numpy("OUTPUT0")
    assert found.tolist() == [[b"4.000000:3", b"3.000000:2"], [b"8.000000:0", b"7.000000:1"]]


@pytest.mark.parametrize("nbytes", [60 << 10, 64 << 10, 65 << 10, 16 * MEBI])
def test_large_tensors(library: triton.InferenceServerClient, nbytes: int) -> None:
    """On both sides of the size from which a message is taken apart without protobuf."""
    array = np.random.default_rng(nbytes).random(nbytes // 4, np.float32)
    result = library.infer("vector", [given("INPUT0", "FP32", array)], request_id="large", parameters={"a": 1})
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)
    assert result.get_response().id == "large"


def test_large_tensors_of_strings(library: triton.InferenceServerClient) -> None:
    array = np.array([b"x" * (i % 300) for i in range(10_000)], object)
    result = library.infer("identity_bytes", [given("INPUT0", "BYTES", array)])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_two_large_tensors_and_a_small_one(grpc_client: Client) -> None:
    arrays = {
        "IN_FP32": np.arange(1 << 16, dtype=np.float32),
        "IN_INT8": np.array([1], np.int8),
        "IN_FP64": np.arange(1 << 15, dtype=np.float64),
    }
    answer = grpc_client.infer(infer("every_type", arrays, id="i", parameters={"a": "b"}))
    found = {output.name: raw for output, raw in zip(answer.outputs, answer.raw_output_contents)}
    assert found == {name.replace("IN_", "OUT_"): array.tobytes() for name, array in arrays.items()}


def test_coroutines(grpc_server: ServerProcess) -> None:
    async def ask() -> List[Any]:
        async with triton_aio.InferenceServerClient(grpc_server.grpc_address) as client:
            arrays = [np.full(i % 7 + 1, i, np.float32) for i in range(300)]
            calls = [client.infer("vector", [given("INPUT0", "FP32", array)], request_id=str(i)) for i, array in enumerate(arrays)]
            return list(await asyncio.gather(*calls))

    for i, result in enumerate(asyncio.run(ask())):
        assert result.get_response().id == str(i)
        assert result.as_numpy("OUTPUT0").tolist() == [i] * (i % 7 + 1)


def test_callbacks(library: triton.InferenceServerClient) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    inputs = [given("INPUT0", "FP32", FOUR), given("INPUT1", "FP32", FOUR)]
    for i in range(50):
        library.async_infer("add_sub", inputs, lambda result, error: answers.put(error or result.get_response().id), request_id=str(i))
    assert {answers.get(timeout=30) for _ in range(50)} == set(map(str, range(50)))
