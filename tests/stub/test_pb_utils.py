"""The names and the pure functions of ``triton_python_backend_utils``: spec 1.1 and 1.3."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Optional

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.stub import c_python_backend_utils as internal
from stublet.stub import triton_python_backend_utils as pb_utils
from stublet.stub.host import host

TYPES: Dict[str, Any] = {
    "TYPE_BOOL": bool,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


NUMBERS = {
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START": 1,
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END": 2,
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
    "TRITONSERVER_REQUEST_RELEASE_ALL": 1,
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE": 2,
    "TRITONSERVER_MEMORY_GPU": 0,
    "TRITONSERVER_MEMORY_CPU": 1,
}

# Spec 1.1, and what is ours alone.
NAMES = [
    "TRITON_STRING_TO_NUMPY", "serialize_byte_tensor", "deserialize_bytes_tensor", "get_input_tensor_by_name",
    "get_output_tensor_by_name", "get_input_config_by_name", "get_output_config_by_name", "using_decoupled_model_transaction_policy",
    "triton_to_numpy_type", "numpy_to_triton_type", "triton_string_to_numpy", "ModelConfig", "TritonError", "TritonModelException",
    "Tensor", "InferenceRequest", "InferenceResponse", "Logger", "PreferredMemory", "MetricFamily", "load_model", "unload_model",
    "is_model_ready", "get_model_dir", "empty", "batch", "split",
]  # fmt: skip

INTERNAL_NAMES = [
    "InferenceTrace", "Metric", "MemoryType", "MetricKind", "SharedMemory", "shared_memory", "Tensor", "InferenceRequest",
    "InferenceResponse", "Logger", "PreferredMemory", "TritonError", "TritonModelException", "MetricFamily", "load_model",
    "unload_model", "is_model_ready", "TRITONSERVER_MEMORY_GPU", "TRITONSERVER_MEMORY_CPU", "InferenceResponseSender", "ResponseIterator",
]  # fmt: skip


def test_the_names_of_the_module() -> None:
    assert sorted(pb_utils.__all__) == sorted([*NAMES, *NUMBERS])
    assert all(hasattr(pb_utils, name) for name in pb_utils.__all__)
    assert {name: getattr(pb_utils, name) for name in NUMBERS} == NUMBERS


def test_the_names_of_the_internal_module() -> None:
    assert sorted(internal.__all__) == sorted(INTERNAL_NAMES)
    for name in internal.__all__:
        assert getattr(internal, name) is getattr(pb_utils, name, getattr(internal, name))


def test_free_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(internal.shared_memory, internal.SharedMemory)
    assert internal.shared_memory.free_memory() == 0
    monkeypatch.setattr(host, "free_memory", lambda: 1 << 20)
    assert internal.shared_memory.free_memory() == 1 << 20


def test_a_trace_has_a_context_or_none() -> None:
    assert internal.InferenceTrace().get_context() is None
    assert internal.InferenceTrace('{"traceparent": "x"}').get_context() == '{"traceparent": "x"}'


@pytest.mark.parametrize("kind", list(internal.MemoryType))
def test_preferred_memory(kind: Any) -> None:
    for made in (pb_utils.PreferredMemory(kind), pb_utils.PreferredMemory(preferred_memory_type=kind, preferred_device_id=0)):
        assert (made._memory_type, made._device_id) == (kind, 0)
    assert pb_utils.PreferredMemory(kind, 1)._device_id == 1


@pytest.mark.parametrize(
    "arguments", [(), (None,), (1,), ("GPU",), (pb_utils.TRITONSERVER_MEMORY_CPU, "0"), (pb_utils.TRITONSERVER_MEMORY_CPU, None)]
)
def test_preferred_memory_of_wrong_types_is_a_type_error(arguments: Any) -> None:
    with pytest.raises(TypeError, match="preferred_"):
        pb_utils.PreferredMemory(*arguments)


@pytest.mark.parametrize("number, name", list(enumerate(TYPES, start=1)))
def test_types_by_name_and_number(number: int, name: str) -> None:
    numpy_type = TYPES[name]
    assert pb_utils.triton_string_to_numpy(name) is numpy_type
    assert pb_utils.TRITON_STRING_TO_NUMPY[name] is numpy_type
    assert pb_utils.triton_to_numpy_type(number) is np.dtype(numpy_type).type
    assert pb_utils.numpy_to_triton_type(numpy_type) == pb_utils.numpy_to_triton_type(np.dtype(numpy_type)) == number


@pytest.mark.parametrize("name", ["TYPE_BF16", "FP32", "", "TYPE_NONE"])
def test_an_unknown_name_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        pb_utils.triton_string_to_numpy(name)


@pytest.mark.parametrize("number", [0, 14, 15, -1])
def test_an_unknown_number_is_none(number: int) -> None:
    assert pb_utils.triton_to_numpy_type(number) is None


@pytest.mark.parametrize(
    "numpy_type, number",
    [(np.bytes_, 13), (np.dtype("S5"), 13), (object, 13), (np.str_, None), (np.complex64, None), (ml_dtypes.bfloat16, None), (None, None),
     ("no such type", None), (5, None), (np.dtype(">f4"), None)],
)  # fmt: skip
def test_other_numpy_types(numpy_type: Any, number: Optional[int]) -> None:
    assert pb_utils.numpy_to_triton_type(numpy_type) == number


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.array([b"ab", "ü", 5], object), b"\2\0\0\0ab\2\0\0\0\xc3\xbc\1\0\0\x005"),
        (np.array([[b"a"], [b"b"]]), b"\1\0\0\0a\1\0\0\0b"),
        (np.array([[b"a", b"b"], [b"c", b"d"]], object).T, b"\1\0\0\0a\1\0\0\0c\1\0\0\0b\1\0\0\0d"),
        (np.array([b""], object), b"\0\0\0\0"),
        (np.empty(0, object), ()),
        (np.empty((2, 0), np.float32), ()),
        (np.ones(2), None),
        (np.array(["text"]), None),
    ],
)
def test_serialize_byte_tensor(array: np.ndarray, expected: Any) -> None:
    assert pb_utils.serialize_byte_tensor(array) == expected


@given(st.lists(st.binary(max_size=9)))
def test_strings_go_there_and_back(items: List[bytes]) -> None:
    array = np.empty(len(items), object)
    array[:] = items
    encoded = pb_utils.serialize_byte_tensor(array)
    back = pb_utils.deserialize_bytes_tensor(encoded or b"")  # type: ignore[arg-type]
    assert back.dtype == object and back.shape == (len(items),) and back.tolist() == items


@pytest.mark.parametrize("encoded", [b"\1", b"\1\0\0\0", b"\1\0\0\0a\2\0\0\0b"])
def test_a_truncated_tensor_is_a_struct_error(encoded: bytes) -> None:
    with pytest.raises(struct.error, match=r"^Invalid bytes tensor data: "):
        pb_utils.deserialize_bytes_tensor(encoded)


def test_tensors_by_name() -> None:
    tensors = [pb_utils.Tensor(name, np.ones(1)) for name in ("a", "b", "a")]
    request = pb_utils.InferenceRequest(inputs=tensors, requested_output_names=[], model_name="model")
    response = pb_utils.InferenceResponse(tensors)
    for name, expected in (("a", tensors[0]), ("b", tensors[1]), ("c", None), ("", None)):
        assert pb_utils.get_input_tensor_by_name(request, name) is expected
        assert pb_utils.get_output_tensor_by_name(response, name) is expected


def test_configuration_by_name() -> None:
    config = {"input": [{"name": "a", "dims": [1]}], "output": [{"name": "b"}, {"name": "c"}]}
    assert pb_utils.get_input_config_by_name(config, "a") is config["input"][0]
    assert pb_utils.get_output_config_by_name(config, "c") is config["output"][1]
    assert pb_utils.get_input_config_by_name(config, "b") is pb_utils.get_output_config_by_name(config, "a") is None
    assert pb_utils.get_input_config_by_name({}, "a") is pb_utils.get_output_config_by_name({}, "a") is None


@pytest.mark.parametrize(
    "config, decoupled",
    [
        ({}, False),
        ({"model_transaction_policy": {"decoupled": True}}, True),
        ({"model_transaction_policy": {"decoupled": False}}, False),
    ],
)
def test_decoupled(config: Dict[str, Any], decoupled: bool) -> None:
    assert pb_utils.using_decoupled_model_transaction_policy(config) is decoupled


def test_the_model_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "model_dir", "/models/add_sub/1")
    assert pb_utils.get_model_dir() == "/models/add_sub/1"
