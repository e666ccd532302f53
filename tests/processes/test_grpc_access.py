"""Who may call what over gRPC, and how: forwarded headers, restricted calls, encryption, compression, and the end of the server."""

from __future__ import annotations

import json
import signal
import socket
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator, List

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from certificates import Certificates
from grpc_client import FOUR, SECONDS, Client, add, failure, infer, pb, said, script, strings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from model_repository import copy_model
from scripted import scripted
from server_process import ServerProcess, run_serve, serving, until

from .conftest import Serve

TOLD = np.array([1], np.int32)


@pytest.fixture(scope="module")
def forwarding(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("forwarding")
    copy_model(root / "models", "echo")
    scripted(root / "models", "free", decoupled=True)
    pattern = "X-.*|timeout|triton_.*"
    with serving(root, root / "models", "--grpc-port", "0", "--grpc-header-forward-pattern", pattern) as server:
        yield server


def test_headers_become_parameters(forwarding: ServerProcess) -> None:
    def told(*metadata: Any, **parameters: Any) -> Any:
        answer = client.infer(infer("echo", {"INPUT0": TOLD}, parameters=parameters), metadata=metadata)
        return json.loads(strings(answer.raw_output_contents[0])[0])["parameters"]

    with Client(forwarding.grpc_address) as client:
        for _ in range(2):
            assert told() == {}
            assert told(("x-foo", "1"), ("y-foo", "no"), ("ax-foo", "no")) == {"x-foo": "1"}
            assert told(("x-foo", "2")) == {"x-foo": "2"}
            assert told(("x-foo", "header"), **{"x-foo": "body", "a": 1}) == {"x-foo": "header", "a": 1}
            assert told(("x-bytes-bin", b"\xff")) == {}


def test_headers_of_a_stream(forwarding: ServerProcess) -> None:
    requests = [script("free", "sender.send(response(request.parameters()), FINAL)", parameters={"a": i}) for i in range(2)]
    with Client(forwarding.grpc_address) as client:
        found = client.stream(requests, metadata=(("x-foo", "1"), ("triton_grpc_error", "true")))
        assert sorted(json.loads(said(one))["a"] for one in found) == [0, 1]
        assert {json.loads(said(one))["x-foo"] for one in found} == {"1"}


@pytest.mark.parametrize("name", ["timeout", "triton_x"])
def test_reserved_headers(forwarding: ServerProcess, name: str) -> None:
    text = f"INVALID_ARGUMENT: header '{name}' is reserved for Triton usage and cannot be forwarded."
    with Client(forwarding.grpc_address) as client:
        assert failure(client.infer, infer("echo", {"INPUT0": TOLD}), metadata=((name, "1"),)) == text
        assert failure(client.stream, [infer("echo", {"INPUT0": TOLD})], metadata=((name, "1"),)) == text


@pytest.fixture(scope="module")
def restricted(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("restricted")
    copy_model(root / "models", "add_sub")
    settings = ["--grpc-restricted-protocol", "health,metadata:X-Key=val ue", "--grpc-restricted-protocol=inference,shared-memory:k2=v=w"]
    with serving(root, root / "models", "--grpc-port", "0", *settings) as server:
        yield server


KEYS = {"X-Key": "val ue", "k2": "v=w"}


@pytest.mark.parametrize(
    "call, request_, key",
    [
        ("ServerLive", pb.ServerLiveRequest(), "X-Key"),
        ("ServerReady", pb.ServerReadyRequest(), "X-Key"),
        ("ModelReady", pb.ModelReadyRequest(name="add_sub"), "X-Key"),
        ("ServerMetadata", pb.ServerMetadataRequest(), "X-Key"),
        ("ModelMetadata", pb.ModelMetadataRequest(name="add_sub"), "X-Key"),
        ("ModelInfer", add(), "k2"),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), "k2"),
        ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(), "k2"),
        ("ModelConfig", pb.ModelConfigRequest(name="add_sub"), ""),
        ("ModelStatistics", pb.ModelStatisticsRequest(), ""),
        ("RepositoryIndex", pb.RepositoryIndexRequest(), ""),
        ("LogSettings", pb.LogSettingsRequest(), ""),
    ],
)
def test_restricted_calls(restricted: ServerProcess, call: str, request_: Any, key: str) -> None:
    with Client(restricted.grpc_address) as client:
        ask = getattr(client.stub, call)
        if key:
            header = f"triton-grpc-protocol-{key}"
            text = f"UNAVAILABLE: This protocol is restricted, expecting header '{header}'"
            for metadata in ((), ((header.lower(), "value"),), ((key.lower(), KEYS[key]),)):
                assert failure(ask, request_, metadata=metadata) == text
            ask(request_, metadata=((header.lower(), KEYS[key]),))
        else:
            ask(request_)


def test_restricted_streams_and_health(restricted: ServerProcess) -> None:
    with Client(restricted.grpc_address) as client:
        text = "UNAVAILABLE: This protocol is restricted, expecting header 'triton-grpc-protocol-{}'"
        assert failure(client.stream, [add()]) == text.format("k2")
        (found,) = client.stream([add(id="i")], metadata=(("triton-grpc-protocol-k2", "v=w"),))
        assert found.infer_response.id == "i"
        health = health_pb2_grpc.HealthStub(client.channel)
        assert failure(health.Check, health_pb2.HealthCheckRequest()) == text.format("X-Key")
        health.Check(health_pb2.HealthCheckRequest(), metadata=(("triton-grpc-protocol-x-key", "val ue"),))
        assert "inference.GRPCInferenceService" in ProtoReflectionDescriptorDatabase(client.channel).get_services()


@pytest.mark.parametrize(
    "arguments, text",
    [
        (
            ["--grpc-restricted-protocol=health"],
            "--grpc-restricted-protocol option format is '<config name>:<setting>=<value>'. Got health",
        ),
        (["--grpc-restricted-protocol=foo:k=v"], "unknown restricted protocol 'foo'"),
        (
            ["--grpc-restricted-protocol=health:k=v", "--grpc-restricted-protocol=trace,health:z=v"],
            "restricted protocol 'health' can not be specified in multiple config groups",
        ),
        (["--grpc-header-forward-pattern=["], "--grpc-header-forward-pattern: '[' is not a regular expression"),
        (["--grpc-use-ssl=true"], "--grpc-server-cert must name a file"),
        (["--grpc-use-ssl=true", "--grpc-server-cert=/nope", "--grpc-server-key=/nope"], "--grpc-server-cert, --grpc-server-key: "),
        (
            ["--grpc-use-ssl=true", f"--grpc-server-cert={__file__}", f"--grpc-server-key={__file__}"],
            "--grpc-server-cert, --grpc-server-key: ",
        ),
        (["--grpc-infer-response-compression-level=most"], "'most' is not one of 'none', 'low', 'medium', 'high'"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, arguments: List[str], text: str) -> None:
    copy_model(tmp_path / "models", "add_sub")
    ended = run_serve(str(tmp_path / "models"), "--http-port", "0", *arguments)
    assert ended.returncode in (1, 2)
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    copy_model(tmp_path / "models", "add_sub")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        ended = run_serve(str(tmp_path / "models"), "--http-port", "0", "--grpc-port", str(taken.getsockname()[1]))
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def given(name: str) -> triton.InferInput:
    tensor = triton.InferInput(name, [4], "FP32")
    tensor.set_data_from_numpy(FOUR)
    return tensor


def test_an_encrypted_port(grpc_core: None, tmp_path: Path, certificates: Certificates) -> None:
    copy_model(tmp_path / "models", "add_sub")
    files = ["--grpc-server-cert", certificates.cert, "--grpc-server-key", certificates.key]
    with serving(tmp_path, tmp_path / "models", "--grpc-port", "0", "--grpc-use-ssl", "true", *files) as server:
        with triton.InferenceServerClient(server.grpc_address, ssl=True, root_certificates=certificates.root) as client:
            result = client.infer("add_sub", [given("INPUT0"), given("INPUT1")])
            assert result.as_numpy("OUTPUT0").tolist() == [2, 4, 6, 8]
        with Client(server.grpc_address) as plain:
            assert failure(plain.infer, add()).startswith("UNAVAILABLE: ")


def test_a_client_without_a_certificate(grpc_core: None, tmp_path: Path, certificates: Certificates) -> None:
    copy_model(tmp_path / "models", "add_sub")
    files = ["--grpc-server-cert", certificates.cert, "--grpc-server-key", certificates.key, "--grpc-root-cert", certificates.root]
    with serving(tmp_path, tmp_path / "models", "--grpc-port", "0", "--grpc-use-ssl-mutual", "true", *files) as server:
        own = {"private_key": certificates.client, "certificate_chain": certificates.client}
        with triton.InferenceServerClient(server.grpc_address, ssl=True, root_certificates=certificates.root, **own) as client:
            assert client.is_server_live()
        with Client(server.grpc_address, grpc.ssl_channel_credentials(Path(certificates.root).read_bytes())) as unknown:
            assert failure(unknown.infer, add()).startswith("UNAVAILABLE: ")


@contextmanager
def counted(address: str) -> Iterator[Any]:
    """A way to the server that counts the bytes of its answers: (address, list of their sizes)."""
    sizes: List[int] = []
    host, port = address.split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket, count: bool) -> None:
        with suppress(OSError):  # the client has left in the middle of something
            while data := source.recv(1 << 16):
                if count:
                    sizes.append(len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection((host, int(port))) as server:
            back = threading.Thread(target=copy, args=(server, client, True))
            back.start()
            copy(client, server, False)
            back.join()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", sizes
    finally:
        thread.join(SECONDS)
        listener.close()


@pytest.mark.parametrize("level", ["none", "low", "medium", "high"])
def test_compressed_responses(grpc_core: None, tmp_path: Path, level: str) -> None:
    copy_model(tmp_path / "models", "vector")
    array = np.zeros(1 << 18, np.float32)
    request = infer("vector", {"INPUT0": array})
    with serving(tmp_path, tmp_path / "models", "--grpc-port", "0", "--grpc-infer-response-compression-level", level) as server:
        with counted(server.grpc_address) as (address, sizes), Client(address, max_receive_message_length=-1) as client:
            assert client.infer(request).raw_output_contents[0] == array.tobytes()
            (found,) = client.stream([request])
            assert found.infer_response.raw_output_contents[0] == array.tobytes()
            for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                assert client.infer(request, compression=compression).raw_output_contents[0] == array.tobytes()
        assert (sum(sizes) > 4 * array.nbytes) == (level == "none")
        assert (sum(sizes) < array.nbytes // 10) == (level != "none")


def test_calls_that_run_are_finished(grpc_core: None, serve: Serve, repository: Path, tmp_path: Path) -> None:
    """At SIGTERM: what runs is answered, more is refused, and streams without work end."""
    scripted(repository, "single")
    scripted(repository, "free", decoupled=True)
    mark = tmp_path / "mark"
    server = serve("--grpc-port", "0")
    waits = "open({!r}, 'w').close()\nuntil(lambda: os.path.exists({!r}))\n"
    with ExitStack() as stack:
        client = stack.enter_context(Client(server.grpc_address))
        ended, half_closed = threading.Event(), threading.Event()

        def requests(*first: Any) -> Iterator[Any]:
            yield from first
            ended.wait(SECONDS)
            yield script("free", "", id="late")
            half_closed.wait(SECONDS)

        idle = client.stub.ModelStreamInfer(requests(), timeout=SECONDS)
        one = script("free", waits.format(str(tmp_path / "free"), str(mark)) + "sender.send(response('done'), FINAL)", id="free")
        busy = client.stub.ModelStreamInfer(requests(one), timeout=SECONDS)
        unary = client.stub.ModelInfer.future(script("single", waits.format(str(tmp_path / "single"), str(mark))), timeout=SECONDS)
        until(lambda: all((tmp_path / name).exists() for name in ("free", "single")), what="both executions")
        server.signal(signal.SIGTERM)
        text = "GRPC server is shutting down and has stopped accepting new requests."
        assert failure(next, idle) == f"UNAVAILABLE: {text}"
        ended.set()
        for another in (client, stack.enter_context(Client(server.grpc_address))):
            assert failure(another.infer, script("single", "")) == f"UNAVAILABLE: {text}"
            assert failure(another.stream, [script("free", "")]) == f"UNAVAILABLE: {text}"
        mark.touch()
        assert unary.result().model_name == "single"
        found = sorted((response.infer_response.id, said(response)) for response in _all_but_the_end(busy, text))
        assert found[0] == ("free", "done")
        assert found[1:] in ([], [("late", f"error: {text}")])
        half_closed.set()
    assert server.wait() == 0


def _all_but_the_end(call: Any, text: str) -> Iterator[Any]:
    try:
        yield from call
    except grpc.RpcError as error:
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, text)
    else:
        raise AssertionError("the stream ended well")
