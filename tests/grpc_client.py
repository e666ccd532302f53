"""The gRPC protocol as messages: requests made and answers read without a client library in between."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

pb: Any = service_pb2

FINAL = "triton_final_response"
SECONDS = 30.0
FOUR = np.array([1, 2, 3, 4], np.float32)

Metadata = Sequence[Tuple[str, Union[str, bytes]]]


class Client:
    """A connection of its own."""

    def __init__(self, address: str, credentials: Optional[grpc.ChannelCredentials] = None, **options: Any) -> None:
        # Not to share a connection with another channel of this process.
        arguments = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{key}", value) for key, value in options.items())]
        if credentials is None:
            self.channel = grpc.insecure_channel(address, arguments)
        else:
            self.channel = grpc.secure_channel(address, credentials, arguments)
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def infer(self, request: Any, **more: Any) -> Any:
        """``ModelInfer``."""
        return self.stub.ModelInfer(request, **{"timeout": SECONDS, **more})

    def stream(self, requests: Iterable[Any], **more: Any) -> List[Any]:
        """All that ``ModelStreamInfer`` answers to these requests, after which the client half-closes."""
        return list(self.stub.ModelStreamInfer(iter(requests), **{"timeout": SECONDS, **more}))


def failure(call: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    """The error of a call, as ``CODE: text``."""
    try:
        answer = call(*arguments, **more)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    raise AssertionError(f"it answered {answer}")


def parameter(value: Any) -> Any:
    """An ``InferParameter`` of the field that goes with the type; what is one already stays."""
    fields = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return pb.InferParameter(**{fields[type(value)]: value}) if type(value) in fields else value


def put(into: Any, parameters: Mapping[str, Any]) -> None:
    for key, value in parameters.items():
        into[key].CopyFrom(parameter(value))


def wanted(name: str, **parameters: Any) -> Any:
    """A requested output."""
    output = pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
    put(output.parameters, parameters)
    return output


def infer(
    model: str,
    inputs: Mapping[str, Any],
    outputs: Sequence[Any] = (),
    parameters: Optional[Dict[str, Any]] = None,
    version: str = "",
    id: str = "",
) -> Any:
    """A ``ModelInferRequest`` whose tensors are in ``raw_input_contents``.

    Args:
        inputs: arrays, or (data type, shape, bytes), by name.
        outputs: names, or what ``wanted`` makes.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    for name, given in inputs.items():
        datatype, shape, data = given if isinstance(given, tuple) else wire(given)
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    request.outputs.extend([wanted(output) if isinstance(output, str) else output for output in outputs])
    put(request.parameters, parameters or {})
    return request


def typed(model: str, name: str, datatype: str, field: str, values: Sequence[Any]) -> Any:
    """A ``ModelInferRequest`` whose one tensor is in that field of its ``contents``."""
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=[len(values)])
    tensor.contents.SetInParent()
    getattr(tensor.contents, field).extend(values)
    return request


def add(**more: Any) -> Any:
    """A request to ``add_sub``."""
    return infer("add_sub", {"INPUT0": FOUR, "INPUT1": FOUR}, **more)


def script(model: str, code: str, **more: Any) -> Any:
    """A request to a scripted model, for its text alone."""
    return infer(model, {"CODE": np.array([code], object)}, **{"outputs": ["RESULT"], **more})


def wire(array: np.ndarray) -> Tuple[str, Sequence[int], bytes]:
    if array.dtype == object:
        elements = [item if isinstance(item, bytes) else str(item).encode() for item in array.flat]
        return "BYTES", array.shape, b"".join(len(item).to_bytes(4, "little") + item for item in elements)
    kinds = {"b": "BOOL", "u": "UINT", "i": "INT", "f": "FP"}
    bits = "" if array.dtype.kind == "b" else str(array.dtype.itemsize * 8)
    return kinds[array.dtype.kind] + bits, array.shape, array.tobytes()


def strings(data: bytes) -> List[bytes]:
    """The elements of a BYTES tensor."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        found.append(data[4:end])
        data = data[end:]
    return found


def said(response: Any) -> str:
    """What the first output, of one string, says; an error of a stream is one, as ``error: text``."""
    if hasattr(response, "error_message"):
        if response.error_message:
            return f"error: {response.error_message}"
        response = response.infer_response
    return strings(response.raw_output_contents[0])[0].decode() if response.raw_output_contents else ""


def final(response: Any) -> bool:
    """Whether a response of a stream says that it is the last one of its request."""
    parameters = response.infer_response.parameters
    assert parameters[FINAL].WhichOneof("parameter_choice") == "bool_param"
    return bool(parameters[FINAL].bool_param)
