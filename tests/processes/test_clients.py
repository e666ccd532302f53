"""Clients that are slow, stop half-way, or leave: nobody else notices, and the memory is given back."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from http_wire import Headers, Wire, infer, request, tensor
from model_repository import copy_model, obey
from server_process import ServerProcess, descendants, memory_bytes, serving, until

WAYS: List[Headers] = [{}, {"accept-encoding": "identity"}]
"""An inference is served by callbacks in the protocol, or, where a header asks for something special, through ASGI."""

NBYTES = 4 << 20
MARGIN = 5 * NBYTES
"""What the memory may vary by; a leak of the 25 repetitions would be five times that."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("clients")
    obey(root / "models")
    copy_model(root / "models", "vector")
    with serving(root, root / "models") as server:
        yield server


def large(nbytes: int) -> Dict[str, Any]:
    return {
        "inputs": [tensor("INPUT0", "FP32", [nbytes // 4], binary_data_size=nbytes)],
        "parameters": {"binary_data_output": True},
    }


def code(text: str) -> Dict[str, Any]:
    return {"inputs": [tensor("CODE", "BYTES", [1], [text])]}


def told(text: str) -> bytes:
    return infer("obey", code(text))


def assert_serves(server: ServerProcess) -> None:
    with server.wire() as wire:
        answer = wire.ask(infer("vector", large(16), bytes(16)))
        assert (answer.status, answer.binary) == (200, bytes(16))


def test_a_slow_reader_holds_nobody_up(server: ServerProcess) -> None:
    nbytes = 64 << 20
    data = bytes(range(256)) * (nbytes // 256)
    with Wire(server.port, receive_buffer=64 << 10) as slow:
        slow.send(infer("vector", large(nbytes), data))
        received = bytearray(slow.socket.recv(1000))
        for _ in range(20):
            started = time.monotonic()
            assert_serves(server)
            assert time.monotonic() - started < 2
            received += slow.socket.recv(100_000)
        while len(received) < nbytes:
            received += slow.socket.recv(1 << 20)
        head, body = bytes(received).split(b"\r\n\r\n", 1)
        skip = int(head.split(b"inference-header-content-length: ")[1].split(b"\r\n")[0])
        while len(body) < skip + nbytes:
            body += slow.socket.recv(1 << 20)
        assert body[skip:] == data
        assert slow.ask(infer("vector", large(16), bytes(16))).binary == bytes(16)


def stops_half_way(server: ServerProcess) -> None:
    with server.wire() as wire:
        wire.send(infer("vector", large(NBYTES), bytes(NBYTES))[: NBYTES // 2])


def stops_in_the_document(server: ServerProcess) -> None:
    with server.wire() as wire:
        wire.send(infer("vector", b" " * NBYTES)[: NBYTES // 2])


def stops_in_the_headers(server: ServerProcess) -> None:
    with server.wire() as wire:
        wire.send(infer("vector", large(16), bytes(16))[:40])


def stops_half_way_through_asgi(server: ServerProcess) -> None:
    with server.wire() as wire:
        wire.send(infer("vector", large(NBYTES), bytes(NBYTES), WAYS[1])[: NBYTES // 2])


def leaves_before_the_answer(server: ServerProcess) -> None:
    with server.wire() as wire:
        wire.send(told(f"time.sleep(0.02); result = 'x' * {NBYTES}"))


def leaves_before_the_answer_of_asgi(server: ServerProcess) -> None:
    with server.wire() as wire:
        text = f"time.sleep(0.02); result = 'x' * {NBYTES}"
        wire.send(infer("obey", code(text), headers=WAYS[1]))


def leaves_within_the_answer(server: ServerProcess) -> None:
    with Wire(server.port, receive_buffer=4096) as wire:
        wire.send(infer("vector", large(NBYTES), bytes(NBYTES)))
        assert wire.socket.recv(100)


def leaves_within_the_answer_of_asgi(server: ServerProcess) -> None:
    with Wire(server.port, receive_buffer=4096) as wire:
        wire.send(infer("vector", large(NBYTES), bytes(NBYTES), WAYS[1]))
        assert wire.socket.recv(100)


def leaves_with_requests_in_the_pipeline(server: ServerProcess) -> None:
    with Wire(server.port, receive_buffer=4096) as wire:
        wire.send(infer("vector", large(NBYTES // 4), bytes(NBYTES // 4)) * 4)
        assert wire.socket.recv(100)


def is_refused_within_its_body(server: ServerProcess) -> None:
    document = json.dumps(large(NBYTES)).encode() + b"}"
    with server.wire() as wire:
        wire.send(infer("vector", document, bytes(NBYTES)))
        assert wire.answer().status == 400


def sends_strings_that_are_none(server: ServerProcess) -> None:
    document = {"inputs": [tensor("CODE", "BYTES", [1], binary_data_size=NBYTES)]}
    with server.wire() as wire:
        assert wire.ask(infer("obey", document, b"\xff" * NBYTES)).status == 400


def is_answered_with_an_error(server: ServerProcess) -> None:
    with server.wire() as wire:
        assert wire.ask(told("returned = [pb_utils.InferenceResponse(error=pb_utils.TritonError('no'))]" + "#" * NBYTES)).status == 500


def gets_no_form_of_its_output(server: ServerProcess) -> None:
    with server.wire() as wire:
        text = f"returned = [pb_utils.InferenceResponse([pb_utils.Tensor('RESULT', np.array([b'\\xff' * {NBYTES}], object))])]"
        assert wire.ask(told(text)).status == 400


def reads_it_all(server: ServerProcess) -> None:
    with server.wire() as wire:
        assert wire.ask(infer("vector", large(NBYTES), bytes(NBYTES))).status == 200


@pytest.mark.parametrize(
    "client",
    [
        stops_half_way, stops_in_the_document, stops_in_the_headers, stops_half_way_through_asgi, leaves_before_the_answer,
        leaves_before_the_answer_of_asgi, leaves_within_the_answer, leaves_within_the_answer_of_asgi, leaves_with_requests_in_the_pipeline,
        is_refused_within_its_body, sends_strings_that_are_none, is_answered_with_an_error, gets_no_form_of_its_output, reads_it_all,
    ],
    ids=lambda client: client.__name__,
)  # fmt: skip
def test_a_client_that(server: ServerProcess, client: Callable[[ServerProcess], None]) -> None:
    def repeat(times: int) -> None:
        for _ in range(times):
            client(server)
            # One at a time, for several at once take the memory of several: the connection is gone, and the model is done.
            until(lambda: connections(server) == 0, what="the end of the connection")
            with server.wire() as wire:
                assert wire.ask(told("pass")).status == 200
            until(lambda: connections(server) == 0, what="the end of the connection")
        assert_serves(server)

    repeat(5)
    before = memory(server)
    repeat(25)
    until(lambda: memory(server) < before + MARGIN, 5, f"memory of {before} bytes plus a margin, now {memory(server)}")


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_idle_connections_hold_no_data(server: ServerProcess, way: Headers) -> None:
    requests = [infer("vector", large(NBYTES), bytes(NBYTES), way), infer("obey", code("pass" + "#" * NBYTES), headers=way)]
    with contextlib.ExitStack() as stack:
        before = 0
        for number in range(25):
            wire = stack.enter_context(server.wire())
            for one in requests:
                assert wire.ask(one).status == 200
            before = before or (number == 5 and memory(server))
        until(lambda: memory(server) < before + MARGIN, 5, f"memory of {before} bytes plus a margin, now {memory(server)}")


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_more_than_the_machine_has(server: ServerProcess, way: Headers) -> None:
    """The header alone says so; nothing else need be sent."""
    text = json.dumps(large(1 << 50)).encode()
    headers = {"content-length": str(len(text) + (1 << 50)), "inference-header-content-length": str(len(text)), **way}
    with server.wire() as wire:
        answer = wire.ask(request("POST", "/v2/models/vector/infer", b"", headers) + text)
        assert answer.status == 503
        assert answer.error.startswith(
            "the inputs of a request to model 'vector' find no room: 1125899906842624 bytes of shared memory are needed"
        )
    assert_serves(server)


def test_answers_are_not_mixed_up(server: ServerProcess) -> None:
    def ask(client: int) -> bool:
        with server.wire() as wire:
            for number in range(40):
                value = client * 1000.0 + number
                size = (1, 3, 5000)[number % 3]
                data = struct.pack("<f", value) * size
                answer = wire.ask(infer("vector", {**large(4 * size), "id": f"{client}/{number}"}, data, WAYS[number % 2]))
                if answer.binary != data or answer.json()["id"] != f"{client}/{number}":
                    return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(16)))


def memory(server: ServerProcess) -> int:
    return sum(memory_bytes(pid) for pid in (server.pid, *descendants(server.pid)))


def connections(server: ServerProcess) -> int:
    """How many connections the server has."""
    mine = f":{server.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(mine) and row[3] == "01" for row in rows)


@pytest.mark.parametrize("way", WAYS, ids=["direct", "asgi"])
def test_what_is_announced_but_not_sent_takes_no_memory(server: ServerProcess, way: Headers) -> None:
    nbytes = 2 << 30
    text = json.dumps(large(nbytes)).encode()
    headers = {"content-length": str(len(text) + nbytes), "inference-header-content-length": str(len(text)), **way}
    before = memory(server)
    with server.wire() as boaster:
        boaster.send(request("POST", "/v2/models/vector/infer", b"", headers) + text, bytes(NBYTES))
        assert_serves(server)
        assert memory(server) < before + 2 * NBYTES + MARGIN
