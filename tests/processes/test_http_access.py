"""Who may ask what, and how: forwarded headers, restricted endpoints, encryption, bounds, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List

import httpx
import numpy as np
import pytest
import tritonclient.http.aio as http_aio
from certificates import Certificates
from http_wire import Headers, chunked, infer, request, tensor
from model_repository import copy_model
from scripted import scripted
from server_process import ServerProcess, run_serve, serving, until

WAYS: List[Headers] = [{}, {"accept-encoding": "identity"}]
FOUR = [1, 2, 3, 4]
GOOD = {"inputs": [tensor("INPUT0", "FP32", [4], FOUR), tensor("INPUT1", "FP32", [4], FOUR)]}
TOLD = {"inputs": [tensor("INPUT0", "INT32", [1], [1])]}


@pytest.fixture(scope="module")
def forwarding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("forwarding")
    copy_model(root / "models", "echo")
    with serving(root, root / "models", "--http-header-forward-pattern", "x-.*|timeout|triton_.*") as server:
        yield server


def told(server: ServerProcess, headers: Headers, document: Dict[str, Any] = TOLD, **more: str) -> Any:
    with server.wire() as wire:
        answer = wire.ask(infer("echo", document, headers={**headers, **more}))
    return json.loads(answer.json()["outputs"][0]["data"][0])["parameters"] if answer.status == 200 else (answer.status, answer.error)


@pytest.mark.parametrize("way", WAYS, ids=["plain", "with more"])
def test_headers_become_parameters(forwarding: ServerProcess, way: Headers) -> None:
    assert told(forwarding, way) == {}
    assert told(forwarding, way, **{"X-Foo": "Bär", "y-foo": "no", "ax-foo": "no"}) == {"X-Foo": "Bär"}
    assert told(forwarding, way, {**TOLD, "parameters": {"x-foo": "body", "a": 1}}, **{"x-foo": "header"}) == {"x-foo": "header", "a": 1}


def test_headers_of_requests_sent_at_once(forwarding: ServerProcess) -> None:
    with forwarding.wire() as wire:
        wire.send(b"".join(infer("echo", TOLD, headers={f"X-{i}": str(i)}) for i in range(5)))
        for i in range(5):
            assert json.loads(wire.answer().json()["outputs"][0]["data"][0])["parameters"] == {f"X-{i}": str(i)}


def test_headers_beside_an_offer_of_another_protocol(forwarding: ServerProcess) -> None:
    offer = {"Connection": "Upgrade", "Upgrade": "h2c"}
    assert told(forwarding, {"X-Foo": "1", **offer, "X-LAST": "2"}) == {"X-Foo": "1", "X-LAST": "2"}


@pytest.mark.parametrize("name", ["timeout", "triton_x", "Timeout"])
def test_reserved_headers(forwarding: ServerProcess, name: str) -> None:
    assert told(forwarding, {}, **{name: "1"}) == (400, f"header '{name}' is reserved for Triton usage and cannot be forwarded.")


def test_headers_of_generate(forwarding: ServerProcess) -> None:
    url = f"http://{forwarding.address}/v2/models/echo/generate"
    answer = httpx.post(url, json={"INPUT0": 1, "X-B": "body", "x-c": "body"}, headers={"x-a": "header", "x-c": "header"}).json()
    assert json.loads(answer["REQUEST"])["parameters"] == {"x-a": "header", "X-B": "body", "x-c": "body"}


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("restricted")
    copy_model(root / "models", "add_sub")
    settings = ["--http-restricted-api", "health,metadata:X-Key=val ue", "--http-restricted-api=inference,shared-memory:k2=v=w"]
    with serving(root, root / "models", *settings) as server:
        yield server


KEY, KEY2, FREE = "X-Key", "k2", ""


@pytest.mark.parametrize(
    "method, path, key",
    [
        ("GET", "/v2", KEY),
        ("GET", "/v2/health/live", KEY),
        ("GET", "/v2/health/ready", KEY),
        ("GET", "/v2/models/add_sub/ready", KEY),
        ("GET", "/v2/models/add_sub", KEY),
        ("GET", "/v2/models/nope", KEY),
        ("GET", "/v2/models/add_sub/config", FREE),
        ("POST", "/v2/models/add_sub/infer", KEY2),
        ("GET", "/v2/models/add_sub/infer", KEY2),
        ("POST", "/v2/models/add_sub/generate", KEY2),
        ("POST", "/v2/models/add_sub/versions/1/generate_stream", KEY2),
        ("GET", "/v2/systemsharedmemory/status", KEY2),
        ("GET", "/v2/cudasharedmemory/region/x/status", KEY2),
        ("POST", "/v2/repository/index", FREE),
        ("GET", "/v2/logging", FREE),
    ],
)
def test_restricted_endpoints(restricted: ServerProcess, method: str, path: str, key: str) -> None:
    with restricted.wire() as wire:
        answer = wire.ask(request(method, path))
        if not key:
            assert answer.status == 200
            return
        assert (answer.status, answer.error) == (403, f"This API is restricted, expecting header '{key}'")
        assert wire.ask(request(method, path, headers={key: "value"})).status == 403
        right = {KEY: "val ue", KEY2: "v=w"}[key]
        assert wire.ask(request(method, path, headers={key.upper(): right})).status != 403


@pytest.mark.parametrize("way", WAYS, ids=["plain", "with more"])
def test_restricted_inference(restricted: ServerProcess, way: Headers) -> None:
    with restricted.wire() as wire:
        for _ in range(2):
            assert wire.ask(infer("add_sub", GOOD, headers=way)).status == 403
            assert wire.ask(infer("add_sub", GOOD, headers={**way, "k2": "v=w"})).status == 200


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--http-restricted-api=health"], "--http-restricted-api option format is '<config name>:<setting>=<value>'. Got health"),
        (["--http-restricted-api=health:k="], "--http-restricted-api option format is '<config name>:<setting>=<value>'. Got health:k="),
        (["--http-restricted-api=foo:k=v"], "unknown restricted api 'foo'"),
        (
            ["--http-restricted-api=health:k=v", "--http-restricted-api=trace,health:z=v"],
            "restricted api 'health' can not be specified in multiple config groups",
        ),
        (["--http-header-forward-pattern=["], "--http-header-forward-pattern: '[' is not a regular expression"),
        (["--http-use-ssl=true"], "--http-server-cert must name a file"),
        (["--http-use-ssl=true", "--http-server-cert=/nope"], "--http-server-key must name a file"),
        (["--http-use-ssl=true", "--http-server-cert=/nope", "--http-server-key=/nope"], "--http-server-cert, --http-server-key: "),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, arguments: List[str], text: str) -> None:
    copy_model(tmp_path / "models", "add_sub")
    ended = run_serve(str(tmp_path / "models"), "--http-port", "0", *arguments)
    assert ended.returncode in (1, 2)
    assert text in ended.stderr


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("encrypted")
    copy_model(root / "models", "add_sub")
    copy_model(root / "models", "vector")
    files = ["--http-server-cert", certificates.cert, "--http-server-key", certificates.key]
    with serving(root, root / "models", "--http-use-ssl", "true", *files) as server:
        yield server


def test_an_encrypted_port(encrypted: ServerProcess, certificates: Certificates) -> None:
    assert f"HTTP     https://{encrypted.address}" in encrypted.out
    with httpx.Client(base_url=f"https://{encrypted.address}", verify=certificates.context()) as client:
        assert client.get("/v2/health/ready").status_code == 200
        for headers in WAYS:
            assert client.post("/v2/models/add_sub/infer", json=GOOD, headers=headers).json()["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]


def test_who_does_not_encrypt_gets_nothing(encrypted: ServerProcess) -> None:
    with encrypted.wire() as wire:
        wire.send(request("GET", "/v2/health/live"))
        assert wire.closed()


def test_a_large_tensor_over_tritonclient(encrypted: ServerProcess, certificates: Certificates) -> None:
    array = np.arange(1 << 17, dtype=np.float32)
    given = http_aio.InferInput("INPUT0", [1 << 17], "FP32")
    given.set_data_from_numpy(array)

    async def ask() -> np.ndarray:
        async with http_aio.InferenceServerClient(encrypted.address, ssl=True, ssl_context=certificates.context()) as client:
            return (await client.infer("vector", [given])).as_numpy("OUTPUT0")  # type: ignore[no-any-return]

    assert np.array_equal(asyncio.run(ask()), array)


def test_a_client_without_a_certificate(tmp_path: Path, certificates: Certificates) -> None:
    copy_model(tmp_path / "models", "add_sub")
    files = ["--http-server-cert", certificates.cert, "--http-server-key", certificates.key, "--http-root-cert", certificates.root]
    with serving(tmp_path, tmp_path / "models", "--http-use-ssl-mutual", "true", *files) as server:
        url = f"https://{server.address}/v2/health/live"
        assert httpx.get(url, verify=certificates.context(client=True)).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(url, verify=certificates.context())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("plain")
    scripted(root / "models", "one")
    copy_model(root / "models", "vector")
    with serving(root, root / "models") as server:
        yield server


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_the_most_chunks(plain: ServerProcess, way: Headers) -> None:
    text = json.dumps({"inputs": [tensor("INPUT0", "FP32", [16384], binary_data_size=65536)]}).encode()
    framing = {"transfer-encoding": "chunked", "content-length": "", "inference-header-content-length": str(len(text))}
    head = infer("vector", b"", headers={**framing, **way})
    with plain.wire() as wire:
        wire.send(head + b"".join(chunked([text, *[b"\0"] * 65534, b"\0\0"])))
        assert wire.answer().status == 200
        wire.send(head + b"".join(chunked([text, *[b"\0"] * 65535, b"\0"])))
        answer = wire.answer()
        assert (answer.status, answer.body) == (400, b"The body comes in more than 65536 chunks.")
        assert wire.closed()


def script(text: str) -> Dict[str, Any]:
    return {"inputs": [tensor("CODE", "BYTES", [1], [text])], "outputs": [{"name": "RESULT"}]}


WAITS = """
open({path!r}, 'w').close()
until(request.is_cancelled)
model.cancelled = getattr(model, 'cancelled', 0) + 1
"""


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_a_client_that_leaves_cancels(plain: ServerProcess, tmp_path: Path, way: Headers) -> None:
    before = cancelled(plain)
    started = tmp_path / "started"
    with plain.wire() as wire:
        wire.send(infer("one", script(WAITS.format(path=str(started))), headers=way))
        until(started.exists, what="the execution")
    until(lambda: cancelled(plain) == before + 1, what="the cancellation")


def cancelled(server: ServerProcess) -> int:
    with server.wire() as wire:
        return int(wire.ask(infer("one", script("result = getattr(model, 'cancelled', 0)"))).json()["outputs"][0]["data"][0])
