"""What bad requests over gRPC are told: status and text as the real Triton answers, and spec 6.5 to 6.7."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
from grpc_client import FOUR, Client, add, failure, infer, pb, put, script, typed, wanted


def changed(change: Callable[[Any], Any], request: Any = None) -> Any:
    request = request or add()
    change(request)
    return request


def first(field: str, value: Any) -> Any:
    """A request with something else in its first input."""

    def change(request: Any) -> None:
        if field == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], field, value)

    return changed(change)


def raw(*contents: bytes) -> Any:
    request = add()
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(contents)
    return request


def contents(field: str, values: List[Any], keep_raw: bool = False) -> Any:
    request = add()
    if not keep_raw:
        request.ClearField("raw_input_contents")
    for tensor in request.inputs:
        getattr(tensor.contents, field).extend(values)
    return request


GOT = "expected 2 inputs but got {} inputs for model 'add_sub'. Got input(s) [{}], but missing required input(s) [{}]. Please provide all required input(s)."
SIZE = "input byte size mismatch for input 'INPUT0' for model 'add_sub'. Expected 16, got {}"
SHAPE = "unexpected shape for input 'INPUT0' for model 'add_sub'. Expected [4], got [{}]. "
BATCHED = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. If you want"
    " to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. See the model"
    " configuration docs for more info on max_batch_size."
)
VERSION = "failed to get model version from specified version string '{}'{}, version should be an integral value > 0"
UNEXPECTED = "unexpected explicit tensor data for input tensor '{}' for model '{}'"

ROWS: Dict[str, Tuple[Any, str, str]] = {
    "unknown model": (infer("nope", {}), "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
    "no model": (pb.ModelInferRequest(), "NOT_FOUND", "Request for unknown model: '' is not found"),
    "unknown version": (add(version="9"), "NOT_FOUND", "Request for unknown model: 'add_sub' version 9 is not found"),
    "version not a number": (add(version="x"), "INVALID_ARGUMENT", VERSION.format("x", " (details: stol)")),
    "version below 1": (add(version="0"), "INVALID_ARGUMENT", VERSION.format("0", "")),
    "unknown input instead of one": (
        infer("add_sub", {"NOPE": FOUR, "INPUT1": FOUR}), "INVALID_ARGUMENT", "unexpected inference input 'NOPE' for model 'add_sub'",
    ),
    "missing input": (infer("add_sub", {"INPUT0": FOUR}), "INVALID_ARGUMENT", GOT.format(1, "'INPUT0'", "'INPUT1'")),
    "no inputs": (infer("add_sub", {}), "INVALID_ARGUMENT", GOT.format(0, "", "'INPUT0','INPUT1'")),
    "wrong dtype": (
        first("datatype", "INT32"), "INVALID_ARGUMENT", "inference input 'INPUT0' data-type is 'INT32', but model 'add_sub' expects 'FP32'",
    ),
    "unknown dtype": (
        first("datatype", "X"), "INVALID_ARGUMENT", "inference input 'INPUT0' data-type is '<invalid>', but model 'add_sub' expects 'FP32'",
    ),
    "wrong shape, same count": (first("shape", [2, 2]), "INVALID_ARGUMENT", SHAPE.format("2,2")),
    "wrong shape": (first("shape", [5]), "INVALID_ARGUMENT", SHAPE.format("5")),
    "negative shape": (
        first("shape", [-1]),
        "INVALID_ARGUMENT",
        "All input dimensions should be specified for input 'INPUT0' for model 'add_sub', got [-1]",
    ),
    "a shape without end": (
        infer("matrix", {"INPUT0": ("FP32", [2**40, 2**40], bytes(16))}),
        "INVALID_ARGUMENT",
        "invalid shape for input 'INPUT0': shape [1099511627776,1099511627776] causes total element count to exceed maximum size of "
        "9223372036854775807",
    ),
    "raw too small": (raw(bytes(12), bytes(16)), "INVALID_ARGUMENT", SIZE.format(12)),
    "raw too large": (raw(bytes(20), bytes(16)), "INVALID_ARGUMENT", SIZE.format(20)),
    "raw one missing": (raw(bytes(16)), "INVALID_ARGUMENT", "unable to find data for input tensor 'INPUT1' for model 'add_sub' in request."),
    "no contents": (raw(), "INVALID_ARGUMENT", "unable to find data for input tensor 'INPUT0' for model 'add_sub' in request."),
    "contents of the wrong kind": (
        contents("int_contents", [1] * 4), "INVALID_ARGUMENT", UNEXPECTED.format("INPUT0", "add_sub") + " of type 'INT32', expected datatype 'FP32'",
    ),
    "contents of two kinds": (
        changed(lambda r: r.inputs[0].contents.fp64_contents.append(1), contents("fp32_contents", [1.0] * 4)),
        "INVALID_ARGUMENT",
        UNEXPECTED.format("INPUT0", "add_sub") + ", binary data was already supplied.",
    ),
    "contents of no type": (
        typed("every_type", "IN_X", "X", "int_contents", [1]),
        "INVALID_ARGUMENT",
        UNEXPECTED.format("IN_X", "every_type") + " of type 'INT32', expected datatype '<invalid>'",
    ),
    "contents of FP16": (
        typed("every_type", "IN_FP16", "FP16", "fp32_contents", [1.0]),
        "INVALID_ARGUMENT",
        UNEXPECTED.format("IN_FP16", "every_type") + " of type 'FP32', expected datatype 'FP16'",
    ),
    "contents too few": (contents("fp32_contents", [1.0] * 2), "INVALID_ARGUMENT", SIZE.format(8)),
    "contents and raw": (
        contents("fp32_contents", [1.0] * 4, keep_raw=True),
        "INVALID_ARGUMENT",
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'add_sub'",
    ),
    "unknown requested output": (add(outputs=["NOPE"]), "INVALID_ARGUMENT", "unexpected inference output 'NOPE' for model 'add_sub'"),
    "requested output without a name": (add(outputs=[""]), "INVALID_ARGUMENT", "unexpected inference output '' for model 'add_sub'"),
    "batch 65": (
        infer("identity_batch", {"INPUT0": np.zeros((65, 4), np.float32)}),
        "INVALID_ARGUMENT",
        "inference request batch-size must be <= 64 for 'identity_batch'",
    ),
    "no batch dimension": (
        infer("identity_batch", {"INPUT0": FOUR}),
        "INVALID_ARGUMENT",
        "unexpected shape for input 'INPUT0' for model 'identity_batch'. Expected [-1,4], got [4]." + BATCHED,
    ),
    "BYTES length over the end": (
        infer("identity_bytes", {"INPUT0": ("BYTES", [1], b"\x09\0\0\0ab")}),
        "INVALID_ARGUMENT",
        "incomplete string data for inference input 'INPUT0', expecting string of length 9 but only 2 bytes available",
    ),
    "BYTES one element too few": (
        infer("identity_bytes", {"INPUT0": ("BYTES", [2], b"\x01\0\0\0a")}),
        "INVALID_ARGUMENT",
        "expected 2 string elements for inference input 'INPUT0' for model 'identity_bytes', got 1",
    ),
    "decoupled model": (
        script("free", ""), "UNIMPLEMENTED", "ModelInfer RPC doesn't support models with decoupled transaction policy",
    ),
    "same input twice": (
        changed(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(bytes(16)))),
        "INVALID_ARGUMENT",
        "input 'INPUT0' already exists in request",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_bad_requests(grpc_client: Client, case: str) -> None:
    request, code, text = ROWS[case]
    assert failure(grpc_client.infer, request) == f"{code}: {text}"


def test_an_unknown_input_among_others(grpc_client: Client) -> None:
    told = failure(grpc_client.infer, infer("add_sub", {"NOPE": FOUR, "INPUT1": FOUR, "INPUT0": FOUR}))
    assert told.startswith("INVALID_ARGUMENT: expected 2 inputs but got 3 inputs for model 'add_sub'. Got input(s) [")


RESERVED = (
    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with 'triton_' are allowed: "
    "triton_enable_empty_final_response"
)
UNSIGNED = pb.InferParameter(uint64_param=5)
NOTHING = pb.InferParameter()


@pytest.mark.parametrize(
    "key, values, text",
    [
        (
            "sequence_id",
            [UNSIGNED, True, 1.5, NOTHING],
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
        ),
        ("sequence_start", [1, "x", NOTHING], "invalid value type for 'sequence_start' parameter, expected bool_param."),
        ("sequence_end", [1, "", NOTHING], "invalid value type for 'sequence_end' parameter, expected bool_param."),
        ("priority", ["", True, NOTHING], "invalid value type for 'priority' parameter, expected int64_param or uint64_param."),
        ("priority", [-1], "invalid value for 'priority', expected value >= 0."),
        ("timeout", [UNSIGNED, "", NOTHING], "invalid value type for 'timeout' parameter, expected int64_param."),
        ("timeout", [-1], "invalid value for 'timeout', expected value >= 0."),
        ("triton_x", [True], RESERVED),
        ("triton_", [1], RESERVED),
        (
            "triton_enable_empty_final_response",
            [1, "true", NOTHING],
            "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
        ),
        ("c", [UNSIGNED, NOTHING], "invalid value type for 'c' parameter, expected int64_param, bool_param, or string_param."),
    ],
)
def test_bad_parameters(grpc_client: Client, key: str, values: List[Any], text: str) -> None:
    for value in values:
        assert failure(grpc_client.infer, add(parameters={key: value})) == f"INVALID_ARGUMENT: {text}"


def region(**parameters: Any) -> Any:
    """A request whose first input is in shared memory of the client's."""
    request = add()
    del request.raw_input_contents[0]
    put(request.inputs[0].parameters, parameters)
    return request


@pytest.mark.parametrize(
    "request_, code, text",
    [
        (region(shared_memory_region="r", shared_memory_byte_size=16), "NOT_FOUND", "Unable to find shared memory region: 'r'"),
        (
            region(shared_memory_region=1),
            "INVALID_ARGUMENT",
            "invalid value type for 'shared_memory_region' parameter for tensor 'INPUT0', expected string_param.",
        ),
        (
            region(shared_memory_region="r"),
            "INVALID_ARGUMENT",
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'INPUT0'",
        ),
        (
            region(shared_memory_offset=1),
            "INVALID_ARGUMENT",
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'INPUT0'",
        ),
        (
            region(shared_memory_region="r", shared_memory_byte_size="16"),
            "INVALID_ARGUMENT",
            "invalid value type for 'shared_memory_byte_size' parameter for tensor 'INPUT0', expected int64_param.",
        ),
        (
            region(shared_memory_region="r", shared_memory_byte_size=16, shared_memory_offset=True),
            "INVALID_ARGUMENT",
            "invalid value type for 'shared_memory_offset' parameter for tensor 'INPUT0', expected int64_param.",
        ),
        (
            changed(lambda r: r.inputs[0].contents.fp32_contents.append(1), region(shared_memory_region="r", shared_memory_byte_size=16)),
            "INVALID_ARGUMENT",
            "unexpected 'content' provided when using shared memory for input tensor 'INPUT0' for model 'add_sub'",
        ),
        (
            add(outputs=[wanted("OUTPUT0", shared_memory_region="r", shared_memory_byte_size=16)]),
            "NOT_FOUND",
            "Unable to find shared memory region: 'r'",
        ),
        (
            add(outputs=[wanted("OUTPUT0", shared_memory_region="r", shared_memory_byte_size=16, classification=1)]),
            "INVALID_ARGUMENT",
            "output can't set both 'shared_memory_region' and 'classification'",
        ),
    ],
)
def test_bad_shared_memory(grpc_client: Client, request_: Any, code: str, text: str) -> None:
    assert failure(grpc_client.infer, request_) == f"{code}: {text}"


@pytest.mark.parametrize(
    "request_, text",
    [
        (add(outputs=[wanted("OUTPUT0", classification="1")]), "invalid value type for 'classification' parameter, expected int64_param"),
        (add(outputs=[wanted("OUTPUT0", classification=True)]), "invalid value type for 'classification' parameter, expected int64_param"),
        (add(outputs=[wanted("OUTPUT0", classification=-1)]), "invalid value for 'classification' parameter, expected >= 0"),
        (add(outputs=[wanted("OUTPUT0", classification=0)]), "invalid value for 'classification' parameter, expected >= 0"),
        (
            script("single", "result = 1", outputs=[wanted("RESULT", classification=1)]),
            "class result not available for output due to unsupported type 'BYTES'",
        ),
    ],
)
def test_bad_classification(grpc_client: Client, request_: Any, text: str) -> None:
    assert failure(grpc_client.infer, request_) == f"INVALID_ARGUMENT: {text}"


@pytest.mark.parametrize(
    "code, status",
    [
        ("UNKNOWN", "UNKNOWN"),
        ("INTERNAL", "INTERNAL"),
        ("NOT_FOUND", "NOT_FOUND"),
        ("INVALID_ARG", "INVALID_ARGUMENT"),
        ("UNAVAILABLE", "UNAVAILABLE"),
        ("UNSUPPORTED", "UNIMPLEMENTED"),
        ("ALREADY_EXISTS", "ALREADY_EXISTS"),
        ("CANCELLED", "CANCELLED"),
    ],
)
def test_a_model_s_own_error(grpc_client: Client, code: str, status: str) -> None:
    """The text is exactly the model's, with no request id before it."""
    asked = script("single", f"returned = [failure('boom é 100% 日', pb_utils.TritonError.{code})]", id="r")
    assert failure(grpc_client.infer, asked) == f"{status}: boom é 100% 日"


def test_an_exception(grpc_client: Client) -> None:
    told = failure(grpc_client.infer, script("single", "1 / 0"))
    assert told.startswith(
        "INTERNAL: Failed to process the request(s) for model 'single_0_0', message: ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize("character", ["x", "é", "%", "日"])
def test_a_long_error(grpc_client: Client, character: str) -> None:
    """What a client cannot be told in a trailer is cut off, rather than that the client makes an error of its own of it."""
    told = failure(grpc_client.infer, script("single", f"returned = [failure('boom ' + {character!r} * 100_000)]"))
    assert told.startswith(f"INTERNAL: boom {character}{character}")
    assert told.endswith(character + "...")


def test_a_reply_too_wrong_for_an_answer(grpc_client: Client) -> None:
    told = failure(grpc_client.infer, script("single", "returned = 5"))
    assert told.startswith("INTERNAL: ")


def test_garbage(grpc_client: Client) -> None:
    ask = grpc_client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for message in (b"\xff\xff\xff", add().SerializeToString() + b"\x1a\x02\xff\xff", bytes(100_000), b"\x3a" + bytes(100_000)):
        assert failure(ask, message) == "INTERNAL: the message is not a ModelInferRequest"
    assert failure(ask, b"") == "NOT_FOUND: Request for unknown model: '' is not found"
    assert pb.ModelInferResponse.FromString(ask(add().SerializeToString() + b"\xa2\x06\x03abc")).model_name == "add_sub"
    assert failure(grpc_client.channel.unary_unary("/inference.GRPCInferenceService/Nope"), b"").startswith("UNIMPLEMENTED: ")
    assert failure(grpc_client.channel.unary_unary("/inference.GRPCInferenceService/ServerLive"), b"\xff").startswith("INTERNAL: ")
