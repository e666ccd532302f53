"""What clients of HTTP may take: connections, time, memory; and that those who take too much are felt by nobody else."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List

import httpx
import pytest
from certificates import Certificates
from http_wire import Headers, Wire, chunked, infer, request, tensor
from model_repository import copy_model, obey
from server_process import ServerProcess, memory_bytes, serving, until

WAYS: List[Headers] = [{}, {"accept-encoding": "identity"}]
SIXTEEN = bytes(16)
LIVE = request("GET", "/v2/health/live")


def large(nbytes: int) -> Dict[str, Any]:
    return {"inputs": [tensor("INPUT0", "FP32", [nbytes // 4], binary_data_size=nbytes)], "parameters": {"binary_data_output": True}}


def told(text: str, headers: Headers) -> bytes:
    return infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [text])]}, headers=headers)


def assert_serves(wire: Wire) -> None:
    answer = wire.ask(infer("vector", large(16), SIXTEEN))
    assert (answer.status, answer.binary) == (200, SIXTEEN)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("few")
    copy_model(root / "models", "vector")
    with serving(root, root / "models", "--http-max-connections", "3") as server:
        yield server


def test_more_connections_than_may_be(few: ServerProcess) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(few.wire()) for _ in range(3)]
        for wire in wires:
            assert_serves(wire)
        for _ in range(20):
            with few.wire() as one_more:
                answer = one_more.ask(infer("vector", large(16), SIXTEEN))
                assert (answer.status, answer.error) == (503, "too many connections: try again later")
                assert answer.headers["connection"] == "close"
                assert one_more.closed()
        for wire in wires:
            assert_serves(wire)
        assert few.log.count("HTTP: 3 connections are open, which is the limit") == 1
        wires[0].close()

        def admitted() -> bool:
            with few.wire() as wire:
                return wire.ask(LIVE).status == 200

        until(admitted, what="room for another connection")


def test_a_refused_connection_that_stays_is_closed(few: ServerProcess) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            assert_serves(stack.enter_context(few.wire()))
        silent, loud = stack.enter_context(few.wire()), stack.enter_context(few.wire())
        with suppress(ConnectionError):
            loud.send(infer("vector", large(1 << 20), bytes(1 << 20)))
        for wire in (silent, loud):
            with suppress(ConnectionError):
                assert wire.answer().status == 503

        def reset() -> bool:
            try:
                silent.send(b"x")
            except ConnectionError:
                return True
            return False

        until(reset, what="the end of the connection")


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("hasty")
    copy_model(root / "models", "vector")
    obey(root / "models")
    with serving(root, root / "models", "--http-client-timeout", "1", "--http-idle-timeout", "3") as server:
        yield server


@pytest.fixture(autouse=True)
def serves_others(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "hasty" in request.fixturenames:
        with request.getfixturevalue("hasty").wire() as wire:
            assert_serves(wire)


def test_a_client_that_says_nothing(hasty: ServerProcess) -> None:
    with hasty.wire() as wire:
        assert wire.closed()


def test_an_idle_connection(hasty: ServerProcess) -> None:
    with hasty.wire() as wire:
        assert_serves(wire)
        assert wire.closed()


def whole(way: Headers) -> bytes:
    return infer("vector", large(4 << 20), bytes(4 << 20), way)


def used(server: ServerProcess) -> int:
    """Bytes of a model's shared memory that requests have."""
    metrics = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
    (line,) = [line for line in metrics.splitlines() if line.startswith('stublet_shared_memory_used_bytes{arena="inputs",model="vector"')]
    return int(float(line.rpartition(" ")[2]))


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
@pytest.mark.parametrize("nbytes", [20, 150, 1 << 20], ids=["head", "headers", "body"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_client_that_stops_half_way(hasty: ServerProcess, way: Headers, nbytes: int, first: bool) -> None:
    with hasty.wire() as wire:
        if not first:
            assert_serves(wire)
        wire.send(whole(way)[:nbytes])
        if nbytes > 1000:
            until(lambda: used(hasty) >= 4 << 20, what="the request's memory")
        answer = wire.answer()
        assert (answer.status, answer.body) == (408, b"The request was not complete in time.")
        assert wire.closed()
    until(lambda: used(hasty) < 4 << 20, what="the return of its memory")


@pytest.mark.parametrize("sent", [LIVE, whole(WAYS[0]), whole(WAYS[1])], ids=["head", "body", "body of asgi"])
def test_a_client_that_sends_byte_by_byte(hasty: ServerProcess, sent: bytes) -> None:
    """As slow as it can without a pause as long as the timeout."""
    with hasty.wire() as wire:
        start = len(sent) // 4
        wire.send(sent[:start])
        wire.socket.settimeout(0.2)
        answer, position = b"", start
        while True:
            try:
                data = wire.socket.recv(1000)
            except TimeoutError:
                assert position < start + 100, "it is served all the same"
                wire.send(sent[position : position + 1])
                position += 1
                continue
            if not data:
                break
            answer += data
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


@pytest.mark.parametrize("way", [*WAYS, {"transfer-encoding": "chunked", "content-length": ""}], ids=["direct", "asgi", "chunked"])
def test_a_large_body_takes_no_longer_than_a_small_one(hasty: ServerProcess, way: Headers) -> None:
    """What would do for a small one holds the memory of a large one for too long."""
    nbytes, piece = 16 << 20, 4096
    text = json.dumps(large(nbytes)).encode()
    length = len(text) + nbytes
    headers = {"inference-header-content-length": str(len(text)), "content-length": str(length), **way}
    with hasty.wire() as wire:
        wire.send(request("POST", "/v2/models/vector/infer", headers=headers))
        wire.send(b"%x\r\n" % length if "transfer-encoding" in way else b"", text)
        wire.socket.settimeout(0.1)
        sent = 0
        while True:
            try:
                assert wire.answer().status == 408
                break
            except TimeoutError:
                wire.send(bytes(piece))
                sent += piece
            assert sent < nbytes / 20, "it is served all the same"
    until(lambda: used(hasty) < nbytes, what="the return of its memory")


def test_a_refused_request_whose_body_does_not_end(hasty: ServerProcess) -> None:
    head = infer("vector", b"", headers={"content-length": str(1 << 30), "inference-header-content-length": "3"})
    with hasty.wire() as wire:
        assert wire.ask(head + b"{]}").status == 400
        assert wire.closed()


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
@pytest.mark.parametrize("last", [{"connection": "close"}, {}], ids=["close", "1.0"])
@pytest.mark.parametrize("model, status", [("vector", 400), ("none", 404)])
def test_the_answer_to_a_last_request_that_is_refused(hasty: ServerProcess, way: Headers, last: Headers, model: str, status: int) -> None:
    """It reaches a client that looks for it when it has sent everything: the connection is not reset before."""
    nbytes = 32 << 20
    wrong = {"inputs": [tensor("NONE", "FP32", [nbytes // 4], binary_data_size=nbytes)]}
    with hasty.wire() as wire:
        wire.send(infer(model, wrong, bytes(nbytes), {**way, **last}, "1.1" if last else "1.0"))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert wire.closed()


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_a_last_request_that_is_refused_and_does_not_end(hasty: ServerProcess, way: Headers) -> None:
    wrong = {"inputs": [tensor("NONE", "FP32", [1 << 20], binary_data_size=4 << 20)]}
    with hasty.wire() as wire:
        wire.send(infer("vector", wrong, bytes(4 << 20), {**way, "connection": "close"})[: 1 << 20])
        assert wire.answer().status == 400
        assert wire.closed(), "there is nothing more to come"
        until(lambda: connections(hasty) == 0, what="the end of the connection")


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
@pytest.mark.parametrize("more", [whole(WAYS[0])[: 1 << 20], whole(WAYS[1])[: 1 << 20], b"\0garbage", LIVE * 3], ids=range(4))
def test_what_comes_after_a_last_request(hasty: ServerProcess, way: Headers, more: bytes) -> None:
    with hasty.wire() as wire:
        wire.send(infer("vector", large(16), SIXTEEN, {**way, "connection": "close"}) + more)
        assert wire.answer().status == 200
        assert wire.closed()
        until(lambda: connections(hasty) == 0, what="the end of the connection")


def test_garbage_in_the_rest_of_a_last_request(hasty: ServerProcess) -> None:
    wrong = {"inputs": [tensor("NONE", "FP32", [1], [1])]}
    chunk, *_ = chunked([json.dumps(wrong).encode().ljust(128 << 20)])
    with hasty.wire() as wire, suppress(ConnectionError):
        wire.send(
            request("POST", "/v2/models/vector/infer", b"", {"transfer-encoding": "chunked", "content-length": "", "connection": "close"})
        )
        wire.send(chunk, b"no length\r\n")
        assert wire.answer().status == 400
        assert wire.closed()
    assert "Fatal error" not in hasty.log


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_a_model_may_take_longer(hasty: ServerProcess, tmp_path: Path, way: Headers) -> None:
    gate = tmp_path / "gate"
    with hasty.wire() as waits, hasty.wire() as wire:
        waits.send(told(f"import os\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\nresult = 'done'", way))
        for _ in range(2):
            with hasty.wire() as silent:
                assert silent.closed()
        waits.send(LIVE[:10])  # the beginning of another one
        with hasty.wire() as silent:
            assert silent.closed()
        assert wire.closed()
        gate.touch()
        assert waits.answer().json()["outputs"][0]["data"] == ["done"]


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_a_client_that_does_not_read(hasty: ServerProcess, way: Headers) -> None:
    before = memory_bytes(hasty.pid)
    nbytes = 16 << 20
    with Wire(hasty.port, receive_buffer=4096) as wire:
        wire.send(infer("vector", large(nbytes), bytes(nbytes), way))
        until(lambda: connections(hasty) == 0, what="the end of the connection")
        with pytest.raises(ConnectionError):
            wire.answer()
    assert memory_bytes(hasty.pid) < before + 5 * nbytes


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_a_client_that_only_sends(hasty: ServerProcess, way: Headers) -> None:
    """What it has asked for stays its own: nothing more is read from it."""
    before = memory_bytes(hasty.pid)
    asked = infer("vector", large(4096), bytes(4096), way) * 100
    sent = 0
    with Wire(hasty.port, receive_buffer=4096) as wire, pytest.raises(ConnectionError):
        while sent < 1 << 30:
            wire.send(asked)
            sent += len(asked)
    assert sent < 64 << 20
    assert memory_bytes(hasty.pid) < before + (64 << 20)


def connections(server: ServerProcess) -> int:
    """How many are open to its HTTP port, as the kernel knows."""
    port = f":{server.port:04X}"
    rows = [line.split() for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "01" for row in rows)


def test_more_requests_at_once_than_may_be(hasty: ServerProcess) -> None:
    """Those that were taken are answered, in order, and the connection ends after them."""
    with hasty.wire() as wire:
        wire.send(LIVE * 5000)
        answered = 0
        with suppress(ConnectionError):
            while wire.answer().status == 200:
                answered += 1
    assert 1000 <= answered < 5000


def test_garbage_after_requests(hasty: ServerProcess) -> None:
    with hasty.wire() as wire:
        wire.send(LIVE * 3 + b"\x00garbage\r\n\r\n" + LIVE)
        assert [wire.answer().status for _ in range(3)] == [200] * 3
        assert wire.closed()


def test_a_body_without_end(hasty: ServerProcess) -> None:
    """Of a request that is answered already: it is read, as long as it comes, and forgotten."""
    before = memory_bytes(hasty.pid)
    head = request("POST", "/v2/models/vector/infer", headers={"transfer-encoding": "chunked", "content-length": ""})
    piece = b"".join(chunked([b"[" * 65536])).removesuffix(b"0\r\n\r\n")
    with hasty.wire() as wire, suppress(ConnectionError):
        wire.send(head, *[piece] * 2000)
        assert wire.answer().status == 400
    assert memory_bytes(hasty.pid) < before + (256 << 20)


def test_an_encrypted_connection(tmp_path: Path) -> None:
    copy_model(tmp_path / "models", "vector")
    certificates = Certificates(tmp_path)
    files = ["--http-use-ssl=true", "--http-server-cert", certificates.cert, "--http-server-key", certificates.key]
    with serving(tmp_path, tmp_path / "models", *files, "--http-client-timeout=1", "--http-max-connections=1") as server:
        with socket.create_connection(("127.0.0.1", server.port), 20) as plain:
            secure = certificates.context().wrap_socket(plain, server_hostname="127.0.0.1")
            secure.sendall(LIVE[:20])
            with httpx.Client(base_url=f"https://{server.address}", verify=certificates.context()) as client:
                assert client.get("/v2/health/live").status_code == 503
            assert secure.recv(1000).startswith(b"HTTP/1.1 408")
            secure.close()


MANY = 2000


def test_two_thousand_slow_clients(tmp_path: Path) -> None:
    """They hold up nobody, and each of them is answered in the end."""
    copy_model(tmp_path / "models", "vector")
    whole = infer("vector", large(16), SIXTEEN)
    with ExitStack() as stack, serving(tmp_path, tmp_path / "models") as server:
        wire = stack.enter_context(server.wire())
        slow = [stack.enter_context(server.wire()) for _ in range(MANY)]
        for length in (1, 30, 100, len(whole) - 20):
            for number, one in enumerate(slow):
                one.send(whole[(0 if length == 1 else 1 if length == 30 else 30 if length == 100 else 100) : length])
                if number % 20 == 0:
                    assert_serves(wire)
        for one in slow:
            one.send(whole[len(whole) - 20 :])
        assert [one.answer().binary for one in slow] == [SIXTEEN] * MANY
