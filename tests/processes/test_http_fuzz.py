"""Whatever is asked over HTTP, there is an answer, of the kind that the server's own description names, and the server lives on."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
import schemathesis
from http_wire import infer, request, tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from model_repository import copy_model
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from scripted import scripted
from server_process import ServerProcess, serving

MODELS = ["add_sub", "every_type", "identity_bytes", "many"]
KNOWN: Dict[str, List[Any]] = {
    "model": [*MODELS, "nope"], "version": [1, 9], "region": ["r", "s"], "repository": ["other"],
}  # fmt: skip
"""What is put into paths: names that lead somewhere, and some that do not."""

CONFORMANCE = [content_type_conformance, response_schema_conformance, status_code_conformance]

FEW = settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("fuzz")
    for model in MODELS[:-1]:
        copy_model(root / "models", model)
    scripted(root / "models", "many", decoupled=True)
    settings = ["--model-control-mode", "explicit", "--load-model", "*", "--allow-client-shm", "true"]
    # What is loaded by chance may be no model, and then its traceback is in the log.
    with serving(root, root / "models", *settings, tracebacks=True) as server:
        yield server


@pytest.fixture(scope="module")
def description(server: ServerProcess) -> Dict[str, Any]:
    with server.wire() as wire:
        return wire.ask(request("GET", "/openapi.json")).json()  # type: ignore[no-any-return]


def test_the_description_has_every_endpoint(description: Dict[str, Any]) -> None:
    assert description["openapi"].startswith("3.1")
    model = ["", "/ready", "/config", "/stats", "/infer", "/generate", "/generate_stream"]
    expected = {f"/v2/models/{{model}}{version}{end}" for end in model for version in ("", "/versions/{version}")}
    expected |= {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/logging", "/openapi.json"}
    expected |= {f"/v2/repository/{end}" for end in ("index", "models/{model}/load", "models/{model}/unload")}
    for kind in ("system", "cuda"):
        expected |= {f"/v2/{kind}sharedmemory{end}" for end in ("/status", "/unregister", "/region/{region}/register")}
        expected |= {f"/v2/{kind}sharedmemory/region/{{region}}/{end}" for end in ("status", "unregister")}
    assert expected <= set(description["paths"])
    assert set(description["paths"]["/v2/logging"]) == {"get", "post"}


def narrowed(description: Dict[str, Any]) -> Dict[str, Any]:
    """The description with paths that lead somewhere."""
    copy: Dict[str, Any] = json.loads(json.dumps(description))
    for methods in copy["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                parameter["schema"] = {"enum": KNOWN[parameter["name"]]}
    return copy


def test_every_answer_is_as_described(server: ServerProcess, description: Dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(narrowed(description))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:

        @FEW
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            response = case.call(base_url=f"http://{server.address}", timeout=20)
            case.validate_response(response, checks=CONFORMANCE)
            assert b"internal error" not in response.content

        check()
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2/health/live")).status == 200
    assert "internal error" not in server.log


DTYPES: Dict[str, Any] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": bool, "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2", "INT32": "i4",
        "INT64": "i8", "FP32": "f4", "FP64": "f8",
    }.items()
}  # fmt: skip


@st.composite
def valid(draw: st.DrawFn) -> Tuple[Dict[str, np.ndarray], List[Dict[str, Any]], bytes, List[Dict[str, Any]]]:
    """Arrays for ``every_type`` by type, as inputs in JSON or binary, with the outputs that are wanted."""
    names = draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=4, unique=True))
    given_arrays, inputs, outputs, binary = {}, [], [], b""
    for name in names:
        array = given_arrays[name] = draw(arrays.arrays(DTYPES[name], st.integers(0, 6), elements={"allow_nan": False, "allow_infinity": False}
            if DTYPES[name].kind == "f" else None))  # fmt: skip
        if draw(st.booleans()):
            inputs.append(tensor(f"IN_{name}", name, array.shape, binary_data_size=array.nbytes))
            binary += array.tobytes()
        else:
            inputs.append(tensor(f"IN_{name}", name, array.shape, array.tolist()))
        outputs.append({"name": f"OUT_{name}", "parameters": {"binary_data": draw(st.booleans())}})
    return given_arrays, inputs, binary, outputs


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Whose models nobody unloads."""
    root = tmp_path_factory.mktemp("steady")
    copy_model(root / "models", "every_type")
    with serving(root, root / "models") as server:
        yield server


@settings(max_examples=60, deadline=None)
@given(made=valid())
def test_valid_requests_are_served(steady: ServerProcess, made: Any) -> None:
    given_arrays, inputs, binary, outputs = made
    with steady.wire() as wire:
        answer = wire.ask(infer("every_type", {"inputs": inputs, "outputs": outputs}, binary))
    assert answer.status == 200, answer.body
    rest = answer.binary if "inference-header-content-length" in answer.headers else b""
    for output in answer.json()["outputs"]:
        array = given_arrays[output["name"][4:]]
        if "data" in output:
            assert np.array_equal(np.array(output["data"], array.dtype), array)
        else:
            nbytes = output["parameters"]["binary_data_size"]
            assert rest[:nbytes] == array.tobytes()
            rest = rest[nbytes:]
    assert rest == b""


@settings(max_examples=60, deadline=None)
@given(made=valid(), cut=st.integers(0, 200), more=st.binary(max_size=8), length=st.none() | st.integers(-5, 500), flip=st.integers(0, 500))
def test_mangled_requests_are_refused_or_served(steady: ServerProcess, made: Any, cut: int, more: bytes, length: Any, flip: int) -> None:
    _, inputs, binary, outputs = made
    text = bytearray(json.dumps({"inputs": inputs, "outputs": outputs}).encode())
    text[flip % len(text)] ^= 1 << flip % 8
    body = bytes(text) + binary
    body = body[: len(body) - cut % len(body)] + more
    headers = {"inference-header-content-length": str(len(text) if length is None else length)}
    with steady.wire() as wire:
        answer = wire.ask(request("POST", "/v2/models/every_type/infer", body, headers))
        assert answer.status in (200, 400, 501), answer.body
        if answer.status != 200:
            assert answer.error
        good = infer("every_type", {"inputs": [tensor("IN_INT8", "INT8", [1], [1])]})
        assert wire.ask(good).status == 200
