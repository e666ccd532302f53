"""``stublet infer``: one request to a server of the v2 protocol, from what a user wrote to what is shown."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from . import tensor_text
from .http_client import Answer, ClientError, HttpClient
from .tensor_text import TensorError

_BINARY = "binary_tensor_data"
_LENGTH = "inference-header-content-length"


class Output(NamedTuple):
    """A tensor that the model answered; ``dtype`` is the protocol's name."""

    name: str
    dtype: str
    array: np.ndarray


class Result(NamedTuple):
    """The answer to a request, and how long it took."""

    header: Dict[str, Any]
    outputs: List[Output]
    seconds: float


class Wanted(NamedTuple):
    """What a user asks for. ``inputs``: what they wrote, by name; ``outputs``: names, none for all."""

    model: str
    version: str
    inputs: Mapping[str, str]
    outputs: Sequence[str]
    request_id: str
    parameters: Mapping[str, Any]

    @property
    def path(self) -> str:
        version = f"/versions/{self.version}" if self.version else ""
        return f"/v2/models/{self.model}{version}"


def infer(client: HttpClient, wanted: Wanted) -> Result:
    """Asks the server what the model takes, sends the request, and reads the answer.

    Raises:
        ClientError: the server refuses, or cannot be reached.
        TensorError: an input is missing, unknown, or not what the model takes.
    """
    binary = _BINARY in client.get("/v2").json().get("extensions", [])
    specs = client.get(wanted.path).json()["inputs"]
    header, blobs = _request(wanted, specs, binary)
    document = json.dumps(header).encode()
    headers = {_LENGTH: str(len(document))} if binary else {"content-type": "application/json"}
    began = perf_counter()
    answer = client.request("POST", wanted.path + "/infer", b"".join([document, *blobs]), headers)
    return _result(answer, perf_counter() - began)


def _request(wanted: Wanted, specs: Sequence[Dict[str, Any]], binary: bool) -> Tuple[Dict[str, Any], List[bytes]]:
    _check_names(wanted, specs)
    inputs: List[Dict[str, Any]] = []
    blobs: List[bytes] = []
    for spec in specs:
        if spec["name"] not in wanted.inputs:
            continue
        dtype = tensor_text.data_type(spec["datatype"])
        array = tensor_text.read(spec["name"], wanted.inputs[spec["name"]], dtype, len(spec["shape"]))
        described: Dict[str, Any] = {"name": spec["name"], "datatype": dtype.name, "shape": list(array.shape)}
        if binary:
            blobs.append(tensor_text.to_wire(array, dtype))
            described["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            described["data"] = tensor_text.to_json(array, dtype)
        inputs.append(described)
    header: Dict[str, Any] = {"inputs": inputs}
    if wanted.request_id:
        header["id"] = wanted.request_id
    if wanted.outputs:
        header["outputs"] = [{"name": name, **({"parameters": {"binary_data": True}} if binary else {})} for name in wanted.outputs]
    parameters = {**wanted.parameters, **({"binary_data_output": True} if binary else {})}
    if parameters:
        header["parameters"] = parameters
    return header, blobs


def _check_names(wanted: Wanted, specs: Sequence[Dict[str, Any]]) -> None:
    names = [spec["name"] for spec in specs]
    told = ", ".join(f"{spec['name']} ({spec['datatype']} {spec['shape']}{', optional' if spec.get('optional') else ''})" for spec in specs)
    unknown = [name for name in wanted.inputs if name not in names]
    missing = [spec["name"] for spec in specs if spec["name"] not in wanted.inputs and not spec.get("optional")]
    if unknown or missing:
        complaint = f"has no input '{unknown[0]}'" if unknown else f"needs --input {missing[0]}=..."
        raise TensorError(f"model '{wanted.model}' {complaint}; its inputs are {told or 'none'}")


def _result(answer: Answer, seconds: float) -> Result:
    """What the server answered.

    Raises:
        ClientError: it is no answer to an inference.
        TensorError: an output is not the tensor that it is said to be.
    """
    try:
        return _read(answer, seconds)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ClientError(f"the server's answer is none of the v2 protocol: {error!r}") from error


def _read(answer: Answer, seconds: float) -> Result:
    length: Optional[str] = answer.headers.get(_LENGTH)
    head = answer.body[: int(length)] if length else answer.body
    blob = memoryview(answer.body)[len(head) :]
    header = answer._replace(body=head).json()
    outputs = []
    for output in header.get("outputs", []):
        dtype, shape = tensor_text.data_type(output["datatype"]), output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = tensor_text.from_json(output.get("data", []), dtype, shape)
        else:
            array = tensor_text.from_wire(bytes(blob[:size]), dtype, shape)
            blob = blob[size:]
        outputs.append(Output(output["name"], output["datatype"], array))
    if blob:
        raise ClientError(f"the server sent {len(blob)} bytes more than its outputs have")
    return Result(header, outputs, seconds)


def as_json(result: Result) -> str:
    """The answer as the protocol has it in JSON, for programs."""
    outputs = [
        {"name": name, "datatype": dtype, "shape": list(array.shape), "data": tensor_text.nested(array.reshape(-1))}
        for name, dtype, array in result.outputs
    ]
    return json.dumps({**result.header, "outputs": outputs}, ensure_ascii=False)
