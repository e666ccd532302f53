"""Every endpoint and every call belongs to a group that can be restricted: also those that are added one day."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Dict, Iterator, List, Set, Tuple

import grpc
import pytest
from grpc_client import SECONDS
from grpc_health.v1 import health_pb2
from http_wire import request
from model_repository import copy_model
from server_process import ServerProcess, serving
from stublet.parent import Server
from stublet.parent.grpc.access import CALLS
from stublet.parent.http.front_end import HttpFrontEnd
from stublet.parent.http.routes import Route, paths
from stublet.parent.restricted_apis import APIS
from tritonclient.grpc import service_pb2

KEY = "open sesame"
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHODS = [*SERVICE.methods, *health_pb2.DESCRIPTOR.services_by_name["Health"].methods]


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> List[Route]:
    """All that the front end has."""
    root = tmp_path_factory.mktemp("routes")
    copy_model(root, "add_sub")

    async def made(server: Server) -> List[Route]:
        return list(HttpFrontEnd(server.core).router.routes)

    with Server(root) as server:
        assert server.loop is not None
        return asyncio.run_coroutine_threadsafe(made(server), server.loop).result(SECONDS)


@pytest.fixture(scope="module")
def restricted(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("restricted")
    copy_model(root / "models", "add_sub")
    groups = ",".join(APIS)
    options = [f"--http-restricted-api={groups}:key={KEY}", f"--grpc-restricted-protocol={groups}:key={KEY}"]
    with serving(root, root / "models", "--grpc-port", "0", *options) as server:
        yield server


def test_every_endpoint_has_a_group(routes: List[Route]) -> None:
    groups: Dict[str, Set[str]] = {}
    for route in routes:
        groups.setdefault(route.path, set()).add(route.api)
    assert {path: found for path, found in groups.items() if len(found) > 1 or not found <= set(APIS)} == {}
    assert {route.api for route in routes} == set(APIS)


def test_every_endpoint_is_restricted(routes: List[Route], restricted: ServerProcess) -> None:
    asked: List[Tuple[str, str]] = []
    with restricted.wire() as wire:
        for route in routes:
            for path in paths(route.path):
                real = re.sub(r"\{(\w+)\}", lambda part: "1" if part[1] == "version" else "add_sub", path)
                for method in {route.method, "GET", "POST", "DELETE"}:
                    for headers in ({}, {"key": "open"}, {"key": KEY + " x"}, {"triton-grpc-protocol-key": KEY}):
                        answer = wire.ask(request(method, real, headers=headers))
                        assert (answer.status, answer.error) == (403, "This API is restricted, expecting header 'key'"), (method, real)
                assert wire.ask(request("DELETE", real, headers={"key": KEY})).status == 405
                asked.append((route.method, real))
    assert len(asked) > 30


def test_nothing_else_is_there(restricted: ServerProcess) -> None:
    with restricted.wire() as wire:
        for path in ("/", "/v2/", "/v2/models", "/v2//health/live", "/V2/health/live", "/v2/health/live/", "/metrics", "/docs"):
            assert wire.ask(request("GET", path)).status == 404, path
        for path in ("/v2/health%2flive", "/%76%32/health/live", "/v2/health/live?x=1", "/v2/health/live#x", "http://other/v2/health/live"):
            assert wire.ask(request("GET", path)).status in (403, 404), path


def call(channel: grpc.Channel, method: str, *metadata: Tuple[str, str]) -> Any:
    ask = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
    return list(ask(iter([b""]), metadata=metadata, timeout=SECONDS))


@pytest.mark.parametrize("method", [f"/{one.containing_service.full_name}/{one.name}" for one in METHODS])
def test_every_call_is_restricted(restricted: ServerProcess, method: str) -> None:
    with grpc.insecure_channel(restricted.grpc_address) as channel:
        for metadata in ((), (("triton-grpc-protocol-key", "open"),), (("key", KEY),)):
            with pytest.raises(grpc.RpcError) as refused:
                call(channel, method, *metadata)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refused.value.details() == "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"
        try:
            call(channel, method, ("triton-grpc-protocol-key", KEY))
        except grpc.RpcError as error:
            assert "restricted" not in (error.details() or "")


def test_every_call_has_one_group() -> None:
    named = [name for names in CALLS.values() for name in names]
    assert sorted(named) == sorted(one.name for one in SERVICE.methods)
    assert set(CALLS) == set(APIS)
