"""Requests over gRPC that nobody thought of: whatever comes is answered, and the server goes on."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
from grpc_client import FOUR, Client, add, infer, pb, put
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(["INPUT0", "INPUT1", "IN_FP32", "IN_INT8", "IN_BYTES", "CODE", ""]) | st.text(max_size=3)
KEYS = st.sampled_from(
    ["sequence_id", "sequence_start", "timeout", "priority", "classification", "shared_memory_region", "shared_memory_byte_size",
     "shared_memory_offset", "triton_enable_empty_final_response", "binary_data", "c"]
)  # fmt: skip
VALUES = st.one_of(
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, string_param=st.text(max_size=3)),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.just(pb.InferParameter()),
)
PARAMETERS = st.dictionaries(KEYS, VALUES, max_size=2)
CONTENTS = st.builds(
    pb.InferTensorContents,
    fp32_contents=st.lists(st.floats(width=32), max_size=2),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2),
    bytes_contents=st.lists(st.binary(max_size=3), max_size=2),
)
SHAPES = st.lists(st.integers(-1, 5) | st.sampled_from([2**31, 2**62, 2**63 - 1]), max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    model = draw(
        st.sampled_from(["add_sub", "every_type", "identity_batch", "identity_bytes", "matrix", "optional", "versions", "free", "nope"])
    )
    request = pb.ModelInferRequest(
        model_name=model, model_version=draw(st.sampled_from(["", "1", "1", "x", "0"])), id=draw(st.text(max_size=2))
    )
    for name in draw(st.lists(NAMES, max_size=3)):
        datatype = draw(st.sampled_from(["FP32", "INT8", "BYTES", "INT32", "X", ""]))
        tensor = request.inputs.add(name=name, datatype=datatype, shape=draw(SHAPES))
        put(tensor.parameters, draw(PARAMETERS))
        if draw(st.booleans()):
            tensor.contents.CopyFrom(draw(CONTENTS))
    for name in draw(st.lists(st.sampled_from(["OUTPUT0", "OUTPUT1", "OUT_FP32", "NOPE"]), max_size=2)):
        put(request.outputs.add(name=name).parameters, draw(PARAMETERS))
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=20), max_size=3)))
    put(request.parameters, draw(PARAMETERS))
    return request


GOOD = (add().SerializeToString(), infer("every_type", {"IN_FP32": np.zeros(1 << 15, np.float32)}).SerializeToString())


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A good message with some bytes of it changed, left out or put in twice."""
    message = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, 200)), draw(st.integers(0, 10))
        message[at : at + length] = draw(st.one_of(st.binary(max_size=10), st.just(bytes(message[at : at + length]) * 2)))
    return bytes(message)


UNCAUSED = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def assert_answered(client: Client, message: bytes) -> None:
    ask = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        pb.ModelInferResponse.FromString(ask(message, timeout=30))
    except grpc.RpcError as error:
        assert error.code() not in UNCAUSED, error
        if error.code() is grpc.StatusCode.INTERNAL:
            known = ("the message is not a ModelInferRequest", "Failed to process the request(s) for model", "shared memory size specified")
            assert error.details().startswith(known), error
    replies = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([message]), timeout=30)
    for reply in replies:
        pb.ModelStreamInferResponse.FromString(reply)


FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@FUZZ
@given(request_=requests())
def test_every_request_is_answered(grpc_client: Client, request_: Any) -> None:
    assert_answered(grpc_client, request_.SerializeToString())


@FUZZ
@given(message=mangled() | st.binary(max_size=50))
def test_every_message_is_answered(grpc_client: Client, message: bytes) -> None:
    assert_answered(grpc_client, message)
    assert grpc_client.infer(add()).raw_output_contents[0] == (FOUR + FOUR).tobytes()
