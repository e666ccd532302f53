"""Offers to speak another protocol than HTTP/1.1, as Java's client makes one with each request: they are as if they were not there."""

from __future__ import annotations

import json
from typing import Dict, List

import pytest
from add_sub import ANSWER, BLOB0, BLOB1, FLOATS, GOOD, WAYS
from http_wire import Headers, Wire, chunked, cut, infer, request, tensor
from server_process import ServerProcess

OFFERS: Dict[str, Headers] = {
    "h2c": {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"},
    "websocket": {"upgrade": "websocket", "connection": "keep-alive, upgrade", "sec-websocket-version": "13"},
}
H2C = OFFERS["h2c"]
BODY = json.dumps({"inputs": [BLOB0, BLOB1]}).encode() + FLOATS + FLOATS
BINARY = {"inference-header-content-length": str(len(BODY) - 32)}


@pytest.fixture(params=OFFERS)
def offer(request: pytest.FixtureRequest) -> Headers:
    return OFFERS[request.param]


def requests(offer: Headers, way: Headers) -> List[bytes]:
    """The same inference with its length and in chunks."""
    headers = {**BINARY, **way, **offer}
    in_chunks = infer("add_sub", b"", headers={**headers, "transfer-encoding": "chunked", "content-length": ""})
    return [infer("add_sub", BODY, headers=headers), in_chunks + b"".join(chunked(cut(BODY, range(50, len(BODY), 50))))]


def test_the_body_in_the_same_segment(wire: Wire, offer: Headers, way: Headers) -> None:
    for whole in requests(offer, way):
        assert wire.ask(whole).json() == ANSWER


def test_the_body_in_later_segments(wire: Wire, offer: Headers, way: Headers) -> None:
    for whole in requests(offer, way):
        head = whole.index(b"\r\n\r\n") + 4
        wire.send(*cut(whole, [head, head + 1, head + 60]))
        assert wire.answer().json() == ANSWER


def test_byte_by_byte(wire: Wire, way: Headers) -> None:
    for whole in requests(H2C, way):
        wire.send(*cut(whole, range(len(whole))))
        assert wire.answer().json() == ANSWER


def test_many_large_bodies(wire: Wire, way: Headers) -> None:
    data = FLOATS * (1 << 16)
    document = {
        "inputs": [tensor("INPUT0", "FP32", [len(data) // 4], binary_data_size=len(data))],
        "parameters": {"binary_data_output": True},
    }
    for _ in range(3):
        assert wire.ask(infer("vector", document, data, {**way, **H2C})).binary == data


def test_a_pipeline(wire: Wire) -> None:
    """Of requests with an offer and without, some of which stop the parser where another is being answered."""
    headers = [{**WAYS[way], **offer} for way in WAYS for offer in (*OFFERS.values(), {})] * 3
    documents = [{"inputs": [tensor("INPUT0", "FP32", [1], [float(i)])], "id": str(i + 1)} for i in range(len(headers))]
    wire.send(b"".join(infer("vector", document, headers=each) for document, each in zip(documents, headers)))
    answers = [wire.answer().json() for _ in headers]
    assert [(answer["id"], answer["outputs"][0]["data"]) for answer in answers] == [(str(i + 1), [float(i)]) for i in range(len(headers))]


def test_no_body(wire: Wire, offer: Headers) -> None:
    live, absent = request("GET", "/v2/health/live", headers=offer), request("GET", "/v2/models/nope", headers=offer)
    wire.send(live + absent + live)
    assert [wire.answer().status for _ in range(3)] == [200, 404, 200]


def test_the_last_request(wire: Wire, way: Headers) -> None:
    answer = wire.ask(infer("add_sub", GOOD, headers={**way, **H2C, "Connection": "Upgrade, HTTP2-Settings, close"}))
    assert (answer.headers["connection"], answer.json()) == ("close", ANSWER)
    assert wire.closed()


def test_http_1_0(wire: Wire) -> None:
    assert wire.ask(infer("add_sub", GOOD, headers=H2C, version="1.0")).json() == ANSWER
    assert wire.closed()


def test_expect_100_continue(wire: Wire) -> None:
    head, body = infer("add_sub", GOOD, headers={**H2C, "expect": "100-continue"}).split(b"\r\n\r\n", 1)
    assert wire.ask(head + b"\r\n\r\n").status == 100
    assert wire.ask(body).json() == ANSWER


@pytest.mark.parametrize("target", ["localhost:80", "/v2/health/live", "http://localhost/v2/health/live"])
@pytest.mark.parametrize("offer", [{}, H2C])
def test_no_tunnels(wire: Wire, target: str, offer: Headers) -> None:
    answer = wire.ask(request("CONNECT", target, headers=offer) + infer("add_sub", GOOD))
    assert (answer.status, answer.body) == (400, b"Invalid HTTP request received.")
    assert wire.closed()


def test_nothing_is_logged(server: ServerProcess, wire: Wire) -> None:
    assert wire.ask(infer("add_sub", GOOD, headers=H2C)).json() == ANSWER
    assert "pgrade" not in server.log
