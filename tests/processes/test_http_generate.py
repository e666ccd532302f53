"""``generate`` and ``generate_stream``, as clients see them, those that read slowly or leave among them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple

import httpx
import pytest
from http_wire import Wire, chunked, request
from model_repository import copy_model, write_model
from scripted import scripted
from server_process import ServerProcess, memory_bytes, serving, until
from stublet.parent.backlog import MOST_BYTES

CHAT = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if request.inputs()[0].as_numpy()[0][0] == b"fail":
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no", pb_utils.TritonError.UNAVAILABLE))
        told = json.dumps({"id": request.request_id(), "parameters": json.loads(request.parameters())})
        output = pb_utils.Tensor("TOLD", np.array([[told]], object))
        return pb_utils.InferenceResponse([output], parameters={"p": 1, "q": "x"})
"""
CHAT_CONFIG = """
max_batch_size: 8
input { name: "PROMPT" data_type: TYPE_STRING dims: [1] }
output { name: "TOLD" data_type: TYPE_STRING dims: [1] }
"""

ONE = "generate expects model to produce exactly 1 response, use generate stream for model that generates various number of responses"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("generate")
    write_model(root / "models", "chat", CHAT, CHAT_CONFIG)
    scripted(root / "models", "many", decoupled=True)
    for model in ("add_sub", "every_type", "matrix"):
        copy_model(root / "models", model)
    with serving(root, root / "models", "--http-max-input-size", "100000") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server.address}/v2/models", timeout=20) as client:
        yield client


class Events(NamedTuple):
    """A stream that has ended."""

    status: int
    items: List[Any]


def events(text: str) -> List[Any]:
    """What the events of a stream hold."""
    assert not text or text.endswith("\n\n")
    blocks = text.split("\n\n")[:-1]
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block[6:]) for block in blocks]


def stream(client: httpx.Client, model: str, document: Dict[str, Any]) -> Events:
    answer = client.post(f"/{model}/generate_stream", json=document)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return Events(answer.status_code, events(answer.text))


FOUR = [1, 2, 3, 4]
SUMS = {"OUTPUT0": [2.0, 4.0, 6.0, 8.0], "OUTPUT1": [0.0] * 4, "model_name": "add_sub", "model_version": "1"}


@pytest.mark.parametrize("path", ["add_sub", "add_sub/versions/1"])
def test_generate(client: httpx.Client, path: str) -> None:
    answer = client.post(f"/{path}/generate", json={"INPUT0": FOUR, "INPUT1": FOUR})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.text == json.dumps(SUMS, separators=(",", ":"))


def test_one_element_is_a_scalar_and_parameters_are_members(client: httpx.Client) -> None:
    answer = client.post("/chat/generate", json={"PROMPT": "hi", "id": "7", "a": 1, "parameters": {"b": True}}).json()
    told = json.loads(answer.pop("TOLD"))
    assert told == {"id": "7", "parameters": {"a": 1, "b": True}}
    assert answer == {"id": "7", "model_name": "chat", "model_version": "1", "p": 1, "q": "x"}


def test_stream_of_a_model_that_answers_once(client: httpx.Client) -> None:
    assert stream(client, "add_sub", {"INPUT0": FOUR, "INPUT1": FOUR}) == (200, [SUMS])
    assert stream(client, "chat", {"PROMPT": "fail"}) == (503, [{"error": "no"}])


def item(text: str) -> Dict[str, Any]:
    return {"RESULT": text, "model_name": "many", "model_version": "1"}


def code(text: str) -> Dict[str, Any]:
    return {"CODE": text}


SEND = "sender.send(response({!r}))\n"
END = "sender.send(flags=FINAL)\n"
LATE = "sender.send(response('a'))\nsender.send(failure('late'), FINAL)"
EARLY = "sender.send(failure('early'))\nsender.send(response('a'), FINAL)"


@pytest.mark.parametrize(
    "script, status, expected",
    [
        (END, 200, []),
        (SEND.format("a") + END, 200, [item("a")]),
        (SEND.format("a\n\nb") + "sender.send(response('c'), FINAL)", 200, [item("a\n\nb"), item("c")]),
        (LATE, 200, [item("a"), {"error": "late"}]),
        (EARLY, 500, [{"error": "early"}, item("a")]),
    ],
    ids=["none", "one", "two", "error at the end", "error at first"],
)
def test_stream_of_a_decoupled_model(client: httpx.Client, script: str, status: int, expected: Any) -> None:
    assert stream(client, "many", code(script)) == (status, expected)


@pytest.mark.parametrize(
    "script, status, text",
    [
        (END, 501, ONE),
        (SEND.format("a") * 2 + END, 501, ONE),
        (LATE, 501, ONE),
        ("sender.send(failure('early'), FINAL)", 500, "early"),
    ],
    ids=["none", "two", "error after one", "error"],
)
def test_generate_of_a_decoupled_model_that_does_not_answer_once(client: httpx.Client, script: str, status: int, text: str) -> None:
    answer = client.post("/many/generate", json=code(script))
    assert (answer.status_code, answer.json()) == (status, {"error": text})


@pytest.mark.parametrize("script", [SEND.format("a") + END, "sender.send(response('a'), FINAL)"], ids=["with a final flag", "at once"])
def test_generate_of_a_decoupled_model_that_answers_once(client: httpx.Client, script: str) -> None:
    answer = client.post("/many/generate", json=code(script))
    assert (answer.status_code, answer.json()) == (200, item("a"))


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    "path, body, headers, status, text",
    [
        ("nope", b"{}", {}, 404, "Request for unknown model: 'nope' is not found"),
        ("add_sub/versions/9", b"{}", {}, 404, "Request for unknown model: 'add_sub' version 9 is not found"),
        ("add_sub", b"[1]", {}, 400, "attempt to get members for non-object"),
        ("add_sub", b'{"INPUT0":', {}, 400, "failed to parse the request JSON buffer: Expecting value at 10"),
        ("add_sub", b'{"INPUT0":1}', {}, 400, "The schema can not convert input 'INPUT0' to tensor with proper shape"),
        ("add_sub", b'{"a":null}', {}, 400, "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
        ("add_sub", b"{}", {"content-encoding": "gzip"}, 400, "Unsupported content-encoding, only 'identity' is supported."),
        ("add_sub", b" " * 100_001, {}, 400, "request JSON size of 100001 bytes exceeds the maximum allowed input size of 100000 bytes. "
            "Use --http-max-input-size to increase the limit."),
    ],
    ids=["model", "version", "document", "malformed", "shape", "parameter", "encoding", "size"],
)  # fmt: skip
def test_errors_before_execution(
    client: httpx.Client, verb: str, path: str, body: bytes, headers: Dict[str, str], status: int, text: str
) -> None:
    answer = client.post(f"/{path}/{verb}", content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (status, {"error": text})
    assert answer.headers["content-type"] == "application/json"


def test_output_without_a_json_form(client: httpx.Client) -> None:
    text = "output 'RESULT' has strings that are not UTF-8. Please use the binary data format for output RESULT"
    raw = "bad = pb_utils.InferenceResponse([pb_utils.Tensor('RESULT', np.array([b'\\xff'], object))])\n"
    answer = client.post("/many/generate", json=code(raw + "sender.send(bad, FINAL)"))
    assert (answer.status_code, answer.json()) == (400, {"error": text})
    script = raw + "sender.send(response('a'))\nsender.send(bad)\nsender.send(response('b'), FINAL)"
    assert stream(client, "many", code(script)) == (200, [item("a"), {"error": text}, item("b")])


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_only_post(client: httpx.Client, verb: str) -> None:
    answer = client.get(f"/add_sub/{verb}")
    assert (answer.status_code, answer.json(), answer.headers["allow"]) == (405, {"error": "Method Not Allowed"}, "POST")


def test_events_come_as_they_are_made(client: httpx.Client) -> None:
    waits = "sender.send(response('first'))\nuntil(lambda: getattr(model, 'go_on', False))\nmodel.go_on = False\n" + END
    with client.stream(
        "POST", "/many/generate_stream", json=code(f"def later():\n {waits.replace(chr(10), chr(10) + ' ')}\nin_thread(later)")
    ) as answer:
        chunks = answer.iter_text()
        assert events(next(chunks)) == [item("first")]
        assert stream(client, "many", code("model.go_on = True\n" + END)).items == []
        assert list(chunks) == []


WAITS = """
def work():
    until(sender.is_cancelled)
    model.cancelled = getattr(model, 'cancelled', 0) + 1
    sender.send(flags=FINAL)
model.started = getattr(model, 'started', 0) + 1
in_thread(work)
"""


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_a_client_that_leaves_cancels(server: ServerProcess, client: httpx.Client, verb: str) -> None:
    started, cancelled = count(client, "started"), count(client, "cancelled")
    with server.wire() as wire:
        wire.send(request("POST", f"/v2/models/many/{verb}", json.dumps(code(WAITS)).encode()))
        until(lambda: count(client, "started") == started + 1, what="the execution")
        assert count(client, "cancelled") == cancelled
    until(lambda: count(client, "cancelled") == cancelled + 1, what="the cancellation")


def count(client: httpx.Client, what: str) -> int:
    (found,) = stream(client, "many", code(f"sender.send(response(getattr(model, {what!r}, 0)), FINAL)")).items
    return int(found["RESULT"])


def test_a_slow_reader_does_not_make_memory_grow(server: ServerProcess, client: httpx.Client, tmp_path: Path) -> None:
    """300 responses of 1 MiB for a client that reads nothing for a while: the model waits, and none is lost."""
    mark = tmp_path / "sent"
    many = f"""
def work():
    text = 'x' * (1 << 20)
    for _ in range(300):
        sender.send(response(text))
        open({str(mark)!r}, 'a').write('.')
    sender.send(flags=FINAL)
in_thread(work)
"""
    memory = memory_bytes(server.pid)
    with Wire(server.port, receive_buffer=64 << 10) as slow:
        slow.send(request("POST", "/v2/models/many/generate_stream", json.dumps(code(many)).encode()))
        until(lambda: mark.exists() and mark.stat().st_size >= MOST_BYTES >> 20, what="what is sent ahead")
        for _ in range(20):
            assert stream(client, "many", code("sender.send(response('a'), FINAL)")).items == [item("a")]
        assert mark.stat().st_size < 2 * MOST_BYTES >> 20
        assert memory_bytes(server.pid) < memory + 2 * MOST_BYTES
        found, data = 0, b""
        while not data.endswith(b"0\r\n\r\n"):
            data = data[-8:] + slow.socket.recv(1 << 20)
            found += data.count(b"data: {") - data[:8].count(b"data: {")
        assert found == 300


def test_a_thousand_events(client: httpx.Client) -> None:
    answer = stream(client, "many", code("for i in range(1000): sender.send(response(str(i)))\n" + END))
    assert answer.items == [item(str(i)) for i in range(1000)]


def test_a_chunked_request(server: ServerProcess) -> None:
    body = json.dumps({"INPUT0": FOUR, "INPUT1": FOUR}).encode()
    head = request("POST", "/v2/models/add_sub/generate", headers={"transfer-encoding": "chunked", "content-length": ""})
    with server.wire() as wire:
        assert wire.ask(head + b"".join(chunked([body[:10], body[10:]]))).json() == SUMS


def test_the_end_of_the_server_ends_a_stream(tmp_path: Path) -> None:
    scripted(tmp_path / "models", "many", decoupled=True)
    with serving(tmp_path, tmp_path / "models", "--exit-timeout-secs", "2") as server, server.wire() as wire:
        hold = "model.kept = sender\nsender.send(response('first'))"
        wire.send(request("POST", "/v2/models/many/generate_stream", json.dumps(code(hold)).encode()))
        until(lambda: b"first" in wire.socket.recv(1 << 16), what="the first event")
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 10
        assert b'data: {"error":"the server is ending"}\n\n\r\n0\r\n\r\n' in wire.socket.recv(1 << 16)
