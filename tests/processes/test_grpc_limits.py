"""What clients of gRPC may take: connections, and calls that are open at a time."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Iterator, List

import grpc
import numpy as np
import pytest
from grpc_client import SECONDS, Client, add, failure, infer, pb
from http2_wire import Http2
from model_repository import ECHO_CONFIG, copy_model, write_model
from server_process import ServerProcess, memory_bytes, serving, until
from stublet.parent.errors import Unavailable
from stublet.parent.grpc.outgoing import COPIES, LEAST_BYTES_PER_SECOND, PATIENCE_SECONDS, Outgoing

TOO_MANY = "UNAVAILABLE: too many calls: try again later"


@pytest.fixture(scope="module")
def few(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("few")
    copy_model(root / "models", "add_sub")
    limits = ["--grpc-max-connections", "3", "--grpc-max-calls", "5", "--grpc-max-connection-idle", "1500"]
    with serving(root, root / "models", "--grpc-port", "0", *limits) as server:
        yield server


def ready(client: Client) -> bool:
    return bool(client.infer(add()).outputs)


def test_more_connections_than_may_be(few: ServerProcess) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(few.grpc_address)) for _ in range(3)]
        assert all(map(ready, clients))
        with Client(few.grpc_address) as one_more:
            assert failure(one_more.infer, add()).startswith("UNAVAILABLE: ")
        assert all(map(ready, clients))
        clients[0].channel.close()

        def admitted() -> bool:
            with Client(few.grpc_address) as client:
                try:
                    return ready(client)
                except grpc.RpcError:
                    return False

        until(admitted, what="room for another connection")


def test_more_calls_than_may_be(few: ServerProcess) -> None:
    with Client(few.grpc_address) as client, ExitStack() as stack:
        streams: List[Any] = []
        for _ in range(5):
            end = threading.Event()
            stack.callback(end.set)

            def requests(end: threading.Event = end) -> Iterator[Any]:
                yield add()
                end.wait(SECONDS)

            stream = client.stub.ModelStreamInfer(requests(), timeout=SECONDS)
            streams.append((stream, end))
            assert next(stream).infer_response.outputs
        assert failure(client.infer, add()) == TOO_MANY
        assert failure(client.stream, [add()]) == TOO_MANY
        assert client.stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS).live
        stream, end = streams[0]
        end.set()
        assert list(stream) == []

        def served() -> bool:
            try:
                return ready(client)
            except grpc.RpcError:
                return False

        until(served, what="room for another call")
        for stream, end in streams[1:]:
            end.set()
            assert list(stream) == []


def test_an_idle_connection(few: ServerProcess) -> None:
    """It is closed, and made again when it is needed."""
    changes: List[grpc.ChannelConnectivity] = []
    with Client(few.grpc_address) as client:
        assert ready(client)
        client.channel.subscribe(changes.append)
        until(lambda: grpc.ChannelConnectivity.IDLE in changes, what="the end of the connection")
        client.channel.unsubscribe(changes.append)
        assert ready(client)


def test_any_number(grpc_core: None, tmp_path: Path) -> None:
    copy_model(tmp_path / "models", "add_sub")
    limits = ["--grpc-max-connections", "0", "--grpc-max-calls", "0", "--grpc-max-connection-idle", "0"]
    with serving(tmp_path, tmp_path / "models", "--grpc-port", "0", *limits) as server, Client(server.grpc_address) as client:
        assert ready(client)
        assert client.stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS).live


def test_clients_that_send_no_message(grpc_core: None, tmp_path: Path) -> None:
    """More of them than the server has threads: others are answered all the same."""
    copy_model(tmp_path / "models", "add_sub")
    with serving(tmp_path, tmp_path / "models", "--grpc-port", "0") as server, ExitStack() as stack:
        silent, client = stack.enter_context(Client(server.grpc_address)), stack.enter_context(Client(server.grpc_address))
        end = threading.Event()
        stack.callback(end.set)
        methods = [
            "/inference.GRPCInferenceService/ServerLive",
            "/grpc.health.v1.Health/Check",
            "/inference.GRPCInferenceService/ModelInfer",
        ]
        reflection = silent.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        streams = [reflection(iter(lambda: end.wait(SECONDS) and None, None), timeout=SECONDS) for _ in range(80)]
        asks = [silent.channel.stream_unary(method, request_serializer=bytes, response_deserializer=bytes) for method in methods]
        calls = [ask.future(iter(lambda: end.wait(SECONDS) and None, None), timeout=SECONDS) for ask in asks for _ in range(40)]
        for _ in range(5):
            assert ready(client) and client.stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS).live
        assert not any(call.done() for call in calls)
        end.set()
        for call in calls:
            assert call.code() is grpc.StatusCode.UNIMPLEMENTED
            assert call.details() == "the call requires exactly one request message."
        assert [list(one) for one in streams] == [[]] * 80


WAITS = """
import time, pathlib

class TritonPythonModel:
    def initialize(self, args):
        print("begins", flush=True)
        while not pathlib.Path({gate!r}).exists():
            time.sleep(0.01)

    def execute(self, requests):
        return []
"""


def test_models_that_take_long_to_load(grpc_core: None, tmp_path: Path) -> None:
    """More of them than the server has threads: probes are answered all the same."""
    copy_model(tmp_path / "models", "add_sub")
    gate = tmp_path / "gate"
    write_model(tmp_path / "models", "waits", WAITS.format(gate=str(gate)))
    explicit = ("--model-control-mode", "explicit", "--load-model", "add_sub", "--grpc-port", "0")
    with serving(tmp_path, tmp_path / "models", *explicit) as server, Client(server.grpc_address) as client:
        load, waits = client.stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="waits")
        loads = [load.future(waits, timeout=SECONDS) for _ in range(100)]
        until(lambda: "begins" in server.log, what="the load of the model")
        assert client.stub.ServerLive(pb.ServerLiveRequest(), timeout=2).live
        assert client.stub.ServerReady(pb.ServerReadyRequest(), timeout=2)
        assert ready(client)
        gate.touch()
        for one in loads:
            one.result(SECONDS)


INFER = "/inference.GRPCInferenceService/ModelInfer"
MEBI = 1 << 20


def test_calls_that_are_reset_as_soon_as_they_are_made(grpc_core: None, tmp_path: Path) -> None:
    """However many: they take next to no memory, and others need not wait for them."""
    copy_model(tmp_path / "models", "add_sub")
    with serving(tmp_path, tmp_path / "models", "--grpc-port", "0") as server, Client(server.grpc_address) as client:
        assert ready(client)
        before = memory_bytes(server.pid)
        with Http2(server.grpc_port) as hasty:
            drain = threading.Thread(target=lambda: all(iter(lambda: hasty.socket.recv(1 << 16), b"")))
            drain.start()
            for _ in range(1500):
                hasty.socket.sendall(b"".join([hasty.call(INFER, reset=True) for _ in range(100)]))
            assert client.infer(add(), timeout=5).outputs
            assert memory_bytes(server.pid) < before + 400 * MEBI
            hasty.socket.shutdown(socket.SHUT_RDWR)
            drain.join(SECONDS)


LARGE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", np.zeros(1 << 18, np.float32))]) for _ in requests]
"""


def test_answers_that_are_not_taken(grpc_core: None, tmp_path: Path) -> None:
    """They are bounded, and when their client is gone, so are they."""
    write_model(tmp_path / "models", "large", LARGE, ECHO_CONFIG)
    request = infer("large", {"INPUT0": np.zeros(1, np.float32)})
    limits = ["--grpc-port", "0", "--max-inflight-bytes", "64MiB"]
    with serving(tmp_path, tmp_path / "models", *limits) as server, Client(server.grpc_address) as client:
        assert client.infer(request).outputs
        before = memory_bytes(server.pid)
        with Http2(server.grpc_port, window=0) as silent:
            for _ in range(500):
                silent.socket.sendall(silent.call(INFER, request.SerializeToString()))

            def refused() -> str:
                try:
                    client.infer(request)
                except grpc.RpcError as error:
                    return str(error.details())
                return ""

            assert f"of {32 * MEBI} that may: try again later" in until(refused, what="too many answers")
            assert memory_bytes(server.pid) < before + 250 * MEBI
            assert client.stub.ServerLive(pb.ServerLiveRequest(), timeout=SECONDS).live
        until(lambda: not refused(), what="room for answers")


def test_how_long_an_answer_may_wait() -> None:
    outgoing: Any = Outgoing(10 * MEBI)
    outgoing.check(100 * MEBI)  # a lone one may be as large as it likes
    outgoing.put("small", MEBI, 0.0)
    outgoing.put("large", LEAST_BYTES_PER_SECOND, 10.0)
    assert outgoing.overdue(PATIENCE_SECONDS) == []
    assert outgoing.overdue(PATIENCE_SECONDS + 5) == ["small"]
    assert outgoing.overdue(PATIENCE_SECONDS + 15) == ["small", "large"]
    outgoing.check(10 * MEBI // COPIES - 2 * MEBI)
    with pytest.raises(Unavailable, match=f"^answers that take {2 * MEBI * COPIES} bytes wait"):
        outgoing.check(10 * MEBI)
    for _ in range(2):
        outgoing.took("small")
    outgoing.took("large")
    outgoing.check(100 * MEBI)
