"""Every call of the gRPC service but inference, through the client library that users have; health and reflection."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_client import FOUR, SECONDS, Client, add, failure, pb, script
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from server_process import ServerProcess
from shared_memory import ClientFile, client_file
from tritonclient.utils import InferenceServerException

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture
def library(grpc_server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(grpc_server.grpc_address) as client:
        yield client


def error(call: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    with pytest.raises(InferenceServerException) as raised:
        call(*arguments, **more)
    return str(raised.value)


# Health and metadata


def test_ready(library: triton.InferenceServerClient) -> None:
    assert library.is_server_live()
    assert library.is_server_ready()
    assert library.is_model_ready("add_sub")
    assert library.is_model_ready("versions", "3")
    for name, version in (("nope", ""), ("", ""), ("versions", "2")):
        assert not library.is_model_ready(name, version)
    assert "[StatusCode.INVALID_ARGUMENT] failed to get model version from" in error(library.is_model_ready, "add_sub", "x")


def test_server_metadata(library: triton.InferenceServerClient) -> None:
    metadata = library.get_server_metadata(as_json=True)
    assert metadata["name"] == "triton"
    assert {"classification", "model_repository", "statistics", "logging"} <= set(metadata["extensions"])


@pytest.mark.parametrize(
    "model, versions, inputs",
    [
        ("identity_batch", ["1"], [("INPUT0", "FP32", [-1, 4])]),
        ("optional", ["1"], [("REQUIRED", "INT32", [-1]), ("OPTIONAL", "INT32", [-1])]),
        ("versions", ["1", "3"], []),
    ],
)
def test_model_metadata(library: triton.InferenceServerClient, model: str, versions: List[str], inputs: List[Any]) -> None:
    found = library.get_model_metadata(model)
    assert (found.name, list(found.versions), found.platform) == (model, versions, "python")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in found.inputs] == inputs


def test_model_config(library: triton.InferenceServerClient) -> None:
    config = library.get_model_config("identity_batch").config
    assert (config.name, config.backend, config.max_batch_size, list(config.input[0].dims)) == ("identity_batch", "python", 64, [4])


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config"])
def test_models_that_are_not_there(library: triton.InferenceServerClient, call: str) -> None:
    ask = getattr(library, call)
    for name in ("nope", ""):
        assert error(ask, name) == f"[StatusCode.NOT_FOUND] Request for unknown model: '{name}' is not found"
    assert error(ask, "add_sub", "9") == "[StatusCode.NOT_FOUND] Request for unknown model: 'add_sub' version 9 is not found"
    assert error(ask, "add_sub", "x").startswith("[StatusCode.INVALID_ARGUMENT] failed to get model version from")


def test_statistics(library: triton.InferenceServerClient, grpc_client: Client) -> None:
    def stats(name: str) -> Any:
        (one,) = library.get_inference_statistics(name, "1").model_stats
        return one

    before, before_free = stats("add_sub"), stats("free")
    for _ in range(3):
        grpc_client.infer(add())
    failure(grpc_client.infer, add(version="9"))
    grpc_client.stream([script("free", "sender.send(response('a'))\nsender.send(response('b'), FINAL)")])
    after = stats("add_sub")
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert [batch.batch_size for batch in after.batch_stats] == [1]
    assert after.memory_usage[0].type == "CPU"
    responses = stats("free").response_stats
    for index in ("0", "1"):
        assert responses[index].success.count - before_free.response_stats[index].success.count == 1
    assert len(library.get_inference_statistics().model_stats) == 12  # versions has two
    assert "[StatusCode.INVALID_ARGUMENT] requested model 'nope' is not available" in error(library.get_inference_statistics, "nope")


# The repository


def test_repository_index(library: triton.InferenceServerClient) -> None:
    rows = {(row.name, row.version): row.state for row in library.get_model_repository_index().models}
    assert rows[("add_sub", "1")] == "READY"
    assert rows[("versions", "3")] == "READY"


def test_load_and_unload(library: triton.InferenceServerClient, grpc_client: Client) -> None:
    """Of a model that no other test asks."""
    library.unload_model("matrix")
    assert not library.is_model_ready("matrix")
    ready = {row.name for row in grpc_client.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models}
    assert "matrix" not in ready
    assert "add_sub" in ready
    library.load_model("matrix", config=json.dumps({"backend": "python", "max_batch_size": 3, **MATRIX}))
    assert library.get_model_config("matrix").config.max_batch_size == 3
    model = b"import triton_python_backend_utils as pb_utils\nclass TritonPythonModel:\n    def execute(self, requests):\n"
    model += b"        return [pb_utils.InferenceResponse(error=pb_utils.TritonError('sent')) for _ in requests]\n"
    library.load_model("matrix", config=json.dumps({"backend": "python", **MATRIX}), files={"file:1/model.py": model})
    tensor = triton.InferInput("INPUT0", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    assert error(library.infer, "matrix", [tensor]) == "[StatusCode.INTERNAL] sent"
    library.load_model("matrix")
    assert library.infer("matrix", [tensor]).as_numpy("OUTPUT0").shape == (1, 1)


MATRIX = {
    "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1, -1]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1, -1]}],
}


def loading(parameters: Dict[str, Any], **more: Any) -> Any:
    request = pb.RepositoryModelLoadRequest(**{"model_name": "add_sub", **more})
    for key, value in parameters.items():
        request.parameters[key].CopyFrom(value)
    return request


def unloading(parameters: Dict[str, Any], **more: Any) -> Any:
    request = pb.RepositoryModelUnloadRequest(**{"model_name": "add_sub", **more})
    for key, value in parameters.items():
        request.parameters[key].CopyFrom(value)
    return request


NUMBER, TEXT = pb.ModelRepositoryParameter(int64_param=1), pb.ModelRepositoryParameter(string_param="x")
REPOSITORY = "UNIMPLEMENTED: 'repository_name' specification is not supported"


@pytest.mark.parametrize(
    "call, request_, told",
    [
        ("RepositoryModelLoad", loading({"foo": TEXT}), "INVALID_ARGUMENT: unrecognized load parameter 'foo'."),
        (
            "RepositoryModelLoad",
            loading({"config": NUMBER}),
            "INVALID_ARGUMENT: invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            "RepositoryModelLoad",
            loading({"file:1/model.py": TEXT}),
            "INVALID_ARGUMENT: invalid value type for load parameter 'file:1/model.py', expected bytes_param.",
        ),
        ("RepositoryModelLoad", loading({}, repository_name="x"), REPOSITORY),
        ("RepositoryModelLoad", loading({}, model_name="nope"), "NOT_FOUND: failed to load 'nope', failed to poll from model repository"),
        (
            "RepositoryModelUnload",
            unloading({"unload_dependents": NUMBER}),
            "INVALID_ARGUMENT: invalid value type for 'unload_dependents' parameter, expected bool_param.",
        ),
        ("RepositoryModelUnload", unloading({}, repository_name="x"), REPOSITORY),
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="x"), REPOSITORY),
    ],
)
def test_bad_repository_requests(grpc_client: Client, call: str, request_: Any, told: str) -> None:
    assert failure(getattr(grpc_client.stub, call), request_) == told
    assert grpc_client.infer(add()).model_name == "add_sub"


# Shared memory of clients


@pytest.fixture
def region(library: triton.InferenceServerClient) -> Iterator[ClientFile]:
    """A registered region of 48 bytes, by its key, which begins with an input."""
    with client_file(48) as file:
        file.put(FOUR)
        library.register_system_shared_memory(file.key, file.key, 48)
        yield file
        library.unregister_system_shared_memory(file.key)


def test_system_shared_memory(library: triton.InferenceServerClient, region: ClientFile) -> None:
    key = region.key
    (status,) = library.get_system_shared_memory_status(key).regions.values()
    assert (status.name, status.key, status.offset, status.byte_size) == (key, key, 0, 48)
    inputs = [triton.InferInput(name, [4], "FP32") for name in ("INPUT0", "INPUT1")]
    inputs[0].set_shared_memory(key, 16)
    inputs[1].set_data_from_numpy(FOUR)
    outputs = [triton.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
    outputs[0].set_shared_memory(key, 16, offset=16)
    for _ in range(2):
        result = library.infer("add_sub", inputs, outputs=outputs)
        assert list(result.get_response().raw_output_contents) == [b"", bytes(16)]
        assert [(one.name, list(one.shape)) for one in result.get_response().outputs] == [("OUTPUT0", [4]), ("OUTPUT1", [4])]
    assert region.array([4], np.float32, 16).tolist() == [2, 4, 6, 8]
    small = triton.InferRequestedOutput("OUTPUT1")
    small.set_shared_memory(key, 8, offset=32)
    assert error(library.infer, "add_sub", inputs, outputs=[outputs[0], small]) == (
        "[StatusCode.INTERNAL] shared memory size specified with the request for output 'OUTPUT1' (8 bytes) should be at least 16 bytes to hold "
        "the results"
    )
    assert "already in manager" in error(library.register_system_shared_memory, key, key, 48)


def test_shared_memory_that_is_not_there(library: triton.InferenceServerClient) -> None:
    assert (
        error(library.register_system_shared_memory, "x", "/nope", 4)
        == "[StatusCode.INTERNAL] Unable to open shared memory region: '/nope'"
    )
    assert error(library.get_system_shared_memory_status, "x") == "[StatusCode.NOT_FOUND] Unable to find system shared memory region: 'x'"
    assert error(library.get_cuda_shared_memory_status, "x") == "[StatusCode.NOT_FOUND] Unable to find cuda shared memory region: 'x'"
    assert not library.get_cuda_shared_memory_status().regions
    library.unregister_system_shared_memory("x")
    library.unregister_cuda_shared_memory("x")
    library.unregister_cuda_shared_memory()
    assert error(library.register_cuda_shared_memory, "x", b"", 0, 4).startswith("[StatusCode.INVALID_ARGUMENT] ")


# Settings


def test_log_settings(library: triton.InferenceServerClient) -> None:
    before = library.get_log_settings(as_json=True)["settings"]
    assert before["log_info"] == {"bool_param": True}
    assert before["log_verbose_level"] == {"uint32_param": 0}
    assert before["log_format"] == {"string_param": "default"}
    try:
        changed = library.update_log_settings({"log_verbose_level": 1, "log_format": "ISO8601", "log_warning": False}, as_json=True)[
            "settings"
        ]
        assert [changed[key] for key in ("log_verbose_level", "log_format", "log_warning")] == [
            {"uint32_param": 1}, {"string_param": "ISO8601"}, {"bool_param": False},
        ]  # fmt: skip
        assert library.get_log_settings(as_json=True)["settings"] == changed
    finally:
        library.update_log_settings({"log_verbose_level": 0, "log_format": "default", "log_warning": True})
    assert library.get_log_settings(as_json=True)["settings"] == before


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("log_info", {"uint32_param": 1}, "INVALID_ARGUMENT: expect boolean for 'log_info'"),
        ("log_info", {}, "INVALID_ARGUMENT: expect boolean for 'log_info'"),
        ("log_verbose_level", {"string_param": "1"}, "INVALID_ARGUMENT: expect int32 for 'log_verbose_level'"),
        ("log_format", {"bool_param": True}, "INVALID_ARGUMENT: expect string for 'log_format'"),
        ("log_format", {"string_param": "x"}, "INVALID_ARGUMENT: invalid argument for --log_format, got: x"),
        ("log_file", {"string_param": "x"}, "UNIMPLEMENTED: log file location can not be updated through network protocol"),
    ],
)
def test_bad_log_settings(grpc_client: Client, key: str, value: Dict[str, Any], told: str) -> None:
    request = pb.LogSettingsRequest(settings={key: pb.LogSettingsRequest.SettingValue(**value)})
    assert failure(grpc_client.stub.LogSettings, request) == told


@pytest.mark.parametrize("value", [{}, {"bool_param": True}])
def test_an_unknown_log_setting(grpc_client: Client, value: Dict[str, Any]) -> None:
    request = pb.LogSettingsRequest(settings={"foo": pb.LogSettingsRequest.SettingValue(**value)})
    assert failure(grpc_client.stub.LogSettings, request).startswith("INVALID_ARGUMENT: 'foo' is no log setting")


# Beside Triton's own service


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health(grpc_client: Client, service: str) -> None:
    health = health_pb2_grpc.HealthStub(grpc_client.channel)
    found = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
    assert found.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_what_is_not_there(grpc_client: Client) -> None:
    health = health_pb2_grpc.HealthStub(grpc_client.channel)
    assert failure(health.Check, health_pb2.HealthCheckRequest(service="x")) == "NOT_FOUND: unknown service 'x'"


def test_reflection(grpc_client: Client) -> None:
    database = ProtoReflectionDescriptorDatabase(grpc_client.channel)
    assert set(database.get_services()) == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    assert {"ModelInfer", "ModelStreamInfer", "ServerLive", "LogSettings"} <= set(service.methods_by_name)


def test_calls_of_several_clients_at_once(grpc_server: ServerProcess) -> None:
    """More of them than there are threads."""

    def ask(_: int) -> bool:
        with triton.InferenceServerClient(grpc_server.grpc_address) as client:
            return all(client.is_model_ready("add_sub") and client.get_model_metadata("echo").name == "echo" for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


def test_coroutines(grpc_server: ServerProcess) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(grpc_server.grpc_address) as client:
            assert all(await asyncio.gather(*(client.is_server_ready() for _ in range(50))))
            assert (await client.get_model_config("add_sub")).config.name == "add_sub"
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                await client.get_model_metadata("nope")

    asyncio.run(ask())
