"""Model control, statistics, settings and shared memory over HTTP: each endpoint and what it refuses, with the real client where it has a
method for it."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import httpx
import numpy as np
import pytest
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from model_repository import ECHO_CONFIG, copy_model, write_model
from server_process import ServerProcess, serving
from tritonclient.utils import InferenceServerException

EMPTY = "failed to parse the request JSON buffer: Expecting value at 0"
MALFORMED = "failed to parse the request JSON buffer: Expecting property name enclosed in double quotes at 1"
OBJECT = "Unable to parse 'parameters': attempt to access JSON non-object as object"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("control")
    copy_model(root / "models", "add_sub")
    write_model(root / "models", "echo")
    settings = ["--model-control-mode", "explicit", "--load-model", "add_sub", "--allow-client-shm", "true"]
    with serving(root, root / "models", *settings) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server.address}/v2", timeout=20) as client:
        yield client


@pytest.fixture
def triton(hub: None, server: ServerProcess) -> Iterator[http.InferenceServerClient]:
    client = http.InferenceServerClient(server.address)
    yield client
    client.close()


def asked(client: httpx.Client, path: str, document: Any = None, method: str = "POST") -> Tuple[int, Any]:
    """Status, and body, of an answer; bytes are sent as they are."""
    content = document if isinstance(document, bytes) or document is None else json.dumps(document).encode()
    answer = client.request(method, path, content=content)
    return answer.status_code, answer.json() if answer.content else None


def error(text: str) -> Dict[str, str]:
    return {"error": text}


# The repository


def test_index(client: httpx.Client, triton: http.InferenceServerClient) -> None:
    rows = triton.get_model_repository_index()
    assert {"name": "add_sub", "version": "1", "state": "READY"} in rows
    assert asked(client, "/repository/index", {"ready": True})[1] == [row for row in rows if row.get("state") == "READY"]
    assert asked(client, "/repository/index", [1]) == (200, rows)


@pytest.mark.parametrize("document", [None, {}], ids=["no body", "nothing"])
def test_load_and_unload(triton: http.InferenceServerClient, client: httpx.Client, document: Any) -> None:
    assert asked(client, "/repository/models/echo/load", document) == (200, None)
    assert triton.is_model_ready("echo")
    assert asked(client, "/repository/models/echo/unload", document) == (200, None)
    assert not triton.is_model_ready("echo")


def test_load_with_a_configuration_and_files(triton: http.InferenceServerClient, tmp_path: Path) -> None:
    config = {
        "backend": "python",
        "max_batch_size": 4,
        "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    }
    triton.load_model("echo", config=json.dumps(config))
    assert triton.get_model_config("echo")["max_batch_size"] == 4
    code = (write_model(tmp_path, "other", config=ECHO_CONFIG) / "1" / "model.py").read_bytes()
    triton.load_model("brought", config=json.dumps(config), files={"file:1/model.py": code})
    assert triton.is_model_ready("brought")
    for model in ("echo", "brought"):
        triton.unload_model(model)


@pytest.mark.parametrize(
    "path, document, status, text",
    [
        ("/repository/index", {"ready": 1}, 400, "Invalid value for 'ready': expected a boolean"),
        ("/repository/index", b"{", 400, MALFORMED),
        ("/repository/other/index", {}, 501, "'repository_name' specification is not supported"),
        ("/repository/other/models/add_sub/load", {}, 501, "'repository_name' specification is not supported"),
        ("/repository/other/models/add_sub/unload", {}, 501, "'repository_name' specification is not supported"),
        ("/repository/models/nope/load", {}, 404, "failed to load 'nope', failed to poll from model repository"),
        ("/repository/models/echo/load", b"{", 400, MALFORMED),
        ("/repository/models/echo/load", {"parameters": []}, 400, OBJECT),
        ("/repository/models/echo/load", {"parameters": {"foo": "x"}}, 400, "unrecognized load parameter 'foo'"),
        ("/repository/models/echo/load", {"parameters": {"config": {}}}, 400,
            "invalid value type for load parameter 'config', expected string_param."),
        ("/repository/models/echo/load", {"parameters": {"file:1/model.py": 1}}, 400,
            "invalid value type for load parameter 'file:1/model.py', expected string_param."),
        ("/repository/models/echo/load", {"parameters": {"file:1/model.py": "***"}}, 400,
            "load parameter 'file:1/model.py' is not valid base64: Only base64 data is allowed"),
        ("/repository/models/echo/unload", {"parameters": {"unload_dependents": 1}}, 400,
            "Unable to parse 'unload_dependents': attempt to access JSON non-boolean as boolean"),
        ("/repository/models/echo/unload", {"parameters": []}, 400, OBJECT),
    ],
)  # fmt: skip
def test_what_the_repository_refuses(client: httpx.Client, path: str, document: Any, status: int, text: str) -> None:
    assert asked(client, path, document) == (status, error(text))


@pytest.mark.parametrize("path", ["/repository/index", "/repository/models/echo/load", "/repository/models/echo/unload"])
def test_the_repository_is_asked_by_post(client: httpx.Client, path: str) -> None:
    assert asked(client, path, method="GET") == (405, error("Method Not Allowed"))


# Statistics


def test_statistics(triton: http.InferenceServerClient, client: httpx.Client) -> None:
    one = triton.get_inference_statistics("add_sub")["model_stats"]
    assert [(row["name"], row["version"]) for row in one] == [("add_sub", "1")]
    assert triton.get_inference_statistics("add_sub", "1")["model_stats"] == one
    before = one[0]["inference_count"]
    four = [1.0, 2.0, 3.0, 4.0]
    inputs = [{"name": name, "datatype": "FP32", "shape": [4], "data": four} for name in ("INPUT0", "INPUT1")]
    assert client.post("/models/add_sub/infer", json={"inputs": inputs}).status_code == 200
    (row,) = triton.get_inference_statistics("add_sub")["model_stats"]
    assert row["inference_count"] == before + 1
    assert row in triton.get_inference_statistics()["model_stats"]


@pytest.mark.parametrize(
    "path, status, text",
    [
        ("/models/nope/stats", 400, "requested model 'nope' is not available"),
        ("/models/add_sub/versions/9/stats", 400, "requested model version is not available for model 'add_sub'"),
    ],
)
def test_statistics_of_nothing(client: httpx.Client, path: str, status: int, text: str) -> None:
    assert asked(client, path, method="GET") == (status, error(text))


# Settings of the log


def test_log_settings(triton: http.InferenceServerClient, client: httpx.Client) -> None:
    before = triton.get_log_settings()
    assert set(before) == {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}
    changed = triton.update_log_settings({"log_verbose_level": 1, "log_info": False})
    assert changed == {**before, "log_verbose_level": 1, "log_info": False} == triton.get_log_settings()
    assert asked(client, "/logging", {**before, "log_file": None}) == (200, before)


@pytest.mark.parametrize(
    "document, status, text",
    [
        (b"", 400, EMPTY),
        (b"{", 400, MALFORMED),
        ([1], 400, "attempt to get members for non-object"),
        ({"log_file": "x"}, 501, "log file location can not be updated through network protocol"),
        ({"log_format": "x"}, 400, "invalid argument for --log_format, got: x"),
        ({"log_info": 1}, 400, "Invalid value for 'log_info': expected a boolean"),
    ],
)
def test_log_settings_that_cannot_be(client: httpx.Client, document: Any, status: int, text: str) -> None:
    assert asked(client, "/logging", document) == (status, error(text))


# Shared memory


@pytest.fixture
def region(tmp_path: Path) -> Iterator[str]:
    key = f"/http_control_{os.getpid()}_{tmp_path.name}"
    path = Path("/dev/shm" + key)
    path.write_bytes(bytes(4096))
    yield key
    path.unlink()


def test_system_regions(triton: http.InferenceServerClient, client: httpx.Client, region: str) -> None:
    assert triton.get_system_shared_memory_status() == []
    triton.register_system_shared_memory("one", region, 1024)
    triton.register_system_shared_memory("two", region, 1024, offset=1024)
    one = {"name": "one", "key": region, "offset": 0, "byte_size": 1024}
    two = {"name": "two", "key": region, "offset": 1024, "byte_size": 1024}
    assert sorted(triton.get_system_shared_memory_status(), key=str) == sorted([one, two], key=str)
    assert triton.get_system_shared_memory_status("two") == [two]
    assert asked(client, "/systemsharedmemory/region/one/register", {"key": region, "byte_size": 4}) == (
        400,
        error("shared memory region 'one' already in manager"),
    )
    triton.unregister_system_shared_memory("one")
    triton.unregister_system_shared_memory("never there")
    assert triton.get_system_shared_memory_status() == [two]
    triton.unregister_system_shared_memory()
    assert triton.get_system_shared_memory_status() == []


def not_a(member: str, kind: str) -> str:
    return f"Unable to parse '{member}': attempt to access JSON non-{kind} as {kind}"


HANDLE = {"b64": base64.b64encode(bytes(64)).decode()}
BAD_HANDLE = "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"


@pytest.mark.parametrize(
    "kind, document, status, text",
    [
        ("system", b"", 400, EMPTY),
        ("system", {}, 400, "Shared memory register request has no 'key' field"),
        ("system", [], 400, "Shared memory register request has no 'key' field"),
        ("system", {"key": "/x"}, 400, "Shared memory register request has no 'byte_size' field"),
        ("system", {"key": 1, "byte_size": 4}, 400, not_a("key", "string")),
        ("system", {"key": "/x", "byte_size": 4.5}, 400, not_a("byte_size", "unsigned-integer")),
        ("system", {"key": "/x", "byte_size": 4, "offset": -1}, 400, not_a("offset", "unsigned-integer")),
        ("system", {"key": "/no_such_key", "byte_size": 4}, 500, "Unable to open shared memory region: '/no_such_key'"),
        ("system", {"key": "/", "byte_size": 4}, 400, "cannot register shared memory region 'r' - invalid shm key '/'"),
        ("cuda", {}, 400, "Shared memory register request has no 'raw_handle' field"),
        ("cuda", {"raw_handle": HANDLE}, 400, "Shared memory register request has no 'device_id' field"),
        ("cuda", {"raw_handle": HANDLE, "device_id": 0}, 400, "Shared memory register request has no 'byte_size' field"),
        ("cuda", {"raw_handle": 1, "device_id": 0, "byte_size": 4}, 400, not_a("raw_handle", "object")),
        ("cuda", {"raw_handle": {"b64": 1}, "device_id": 0, "byte_size": 4}, 400, not_a("b64", "string")),
        ("cuda", {"raw_handle": {"b64": "***"}, "device_id": 0, "byte_size": 4}, 400, BAD_HANDLE),
        ("cuda", {"raw_handle": {"b64": "aGk="}, "device_id": 0, "byte_size": 4}, 400, BAD_HANDLE),
        ("cuda", {"raw_handle": HANDLE, "device_id": "x", "byte_size": 4}, 400, not_a("device_id", "unsigned-integer")),
    ],
)
def test_regions_that_cannot_be(client: httpx.Client, kind: str, document: Any, status: int, text: str) -> None:
    assert asked(client, f"/{kind}sharedmemory/region/r/register", document) == (status, error(text))


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_status_and_unregistering(client: httpx.Client, kind: str) -> None:
    start = f"/{kind}sharedmemory"
    assert asked(client, f"{start}/status", method="GET") == (200, [])
    missing = error(f"Unable to find {kind} shared memory region: 'x'")
    assert asked(client, f"{start}/region/x/status", method="GET") == (404, missing)
    assert asked(client, f"{start}/region/x/unregister") == asked(client, f"{start}/unregister") == (200, None)
    nameless = error(f"'region name' is necessary to register {kind} shared memory region")
    assert asked(client, f"{start}/register", {}) == (400, nameless)
    for path, method in (("status", "POST"), ("unregister", "GET"), ("region/x/register", "GET")):
        assert asked(client, f"{start}/{path}", method=method) == (405, error("Method Not Allowed"))


def test_the_asynchronous_client(server: ServerProcess, region: str) -> None:
    async def use() -> None:
        async with http_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("add_sub", "1")
            await client.load_model("echo")
            assert (await client.get_model_metadata("echo"))["platform"] == "python"
            assert (await client.get_model_config("echo", "1"))["name"] == "echo"
            assert "echo" in [row["name"] for row in await client.get_model_repository_index()]
            assert [row["name"] for row in (await client.get_inference_statistics("echo"))["model_stats"]] == ["echo"]
            settings = await client.get_log_settings()
            assert await client.update_log_settings({"log_info": settings["log_info"]}) == settings
            await client.register_system_shared_memory("aio", region, 64)
            assert [row["name"] for row in await client.get_system_shared_memory_status("aio")] == ["aio"]
            await client.unregister_system_shared_memory("aio")
            assert await client.get_cuda_shared_memory_status() == []
            with pytest.raises(InferenceServerException, match="GPUs not supported"):
                await client.register_cuda_shared_memory("aio", base64.b64encode(bytes(64)), 0, 64)
            await client.unregister_cuda_shared_memory("aio")
            given = http_aio.InferInput("INPUT0", [3], "FP32")
            given.set_data_from_numpy(np.array([1, 3, 2], np.float32))
            wanted = [http_aio.InferRequestedOutput("OUTPUT0", class_count=1)]
            result = await client.infer(
                "echo", [given], outputs=wanted, request_id="7", sequence_id="s", sequence_start=True, priority=1, timeout=10**7
            )
            assert (result.get_response()["id"], result.as_numpy("OUTPUT0").tolist()) == ("7", [b"3.000000:1"])
            await client.unload_model("echo")
            assert not await client.is_model_ready("echo")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # tritonclient leaves the bodies unread that it has no use for
        asyncio.run(use())
        gc.collect()


def test_metadata_lists_the_extensions(triton: http.InferenceServerClient) -> None:
    expected = ["classification", "model_repository", "model_configuration", "system_shared_memory", "parameters", "statistics", "logging"]
    assert set(expected) <= set(triton.get_server_metadata()["extensions"])
