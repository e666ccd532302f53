"""Inferences over every framing and in every coding that HTTP has: chunks, pieces, pipelines, compressed bodies and their limits."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any, Callable, Dict, List, Tuple

import pytest
from add_sub import ANSWER, BLOB0, BLOB1, FLOATS, GOOD, WAYS
from http_wire import Answer, Headers, Wire, chunked, cut, infer, request, tensor
from server_process import ServerProcess

BINARY_GOOD = json.dumps({"inputs": [BLOB0, BLOB1]}).encode()


def by_chunks(pieces: List[bytes], headers: Headers) -> bytes:
    """The binary request in the chunked coding."""
    own = {"transfer-encoding": "chunked", "content-length": "", "inference-header-content-length": str(len(BINARY_GOOD))}
    return infer("add_sub", b"", headers={**own, **headers}) + b"".join(chunked(pieces))


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_chunked_uploads(wire: Wire, way: Headers, size: int) -> None:
    body = BINARY_GOOD + FLOATS + FLOATS
    assert wire.ask(by_chunks(cut(body, range(size, len(body), size)), way)).json() == ANSWER


def test_requests_byte_by_byte(wire: Wire, way: Headers) -> None:
    whole = infer("add_sub", {"inputs": [BLOB0, BLOB1]}, FLOATS + FLOATS, way)
    wire.send(*cut(whole, range(len(whole))))
    assert wire.answer().json() == ANSWER


def test_http_1_0_closes_after_its_answer(wire: Wire) -> None:
    answer = wire.ask(infer("add_sub", GOOD, version="1.0"))
    assert (answer.headers["connection"], answer.json()) == ("close", ANSWER)
    assert wire.closed()


def test_connection_close(wire: Wire, way: Headers) -> None:
    answer = wire.ask(infer("add_sub", GOOD, headers={"connection": "close", **way}))
    assert (answer.headers["connection"], answer.json()) == ("close", ANSWER)
    assert wire.closed()


@pytest.mark.parametrize("ways", [["direct"] * 8, ["asgi"] * 8, ["direct", "asgi"] * 4, ["asgi", "direct", "direct"] * 3], ids="-".join)
def test_pipelined_requests_are_answered_in_order(wire: Wire, ways: List[str]) -> None:
    documents = [{"inputs": [tensor("INPUT0", "FP32", [1], [float(i)])], "id": str(i + 1)} for i in range(len(ways))]
    wire.send(b"".join(infer("vector", document, headers=WAYS[way]) for document, way in zip(documents, ways)))
    answers = [wire.answer().json() for _ in ways]
    assert [(answer["id"], answer["outputs"][0]["data"]) for answer in answers] == [(str(i + 1), [float(i)]) for i in range(len(ways))]


def test_pipelined_good_and_bad_requests(wire: Wire, way: Headers) -> None:
    bad = infer("add_sub", b"{", headers=way)
    wire.send(b"".join([bad, infer("add_sub", GOOD, headers=way), bad, request("GET", "/v2/health/live"), infer("add_sub", GOOD)]))
    assert [wire.answer().status for _ in range(5)] == [400, 200, 400, 200, 200]


def test_a_pipelined_request_whose_body_makes_no_sense(wire: Wire, way: Headers) -> None:
    bad = infer("add_sub", b"no length", headers={"transfer-encoding": "chunked", "content-length": ""})
    good = infer("add_sub", GOOD, headers=way)
    wire.send(good + good + bad)
    assert [wire.answer().status for _ in range(2)] == [200, 200]
    answer = wire.answer()
    assert (answer.status, answer.headers["connection"], answer.body) == (400, "close", b"Invalid HTTP request received.")
    assert wire.closed()


def test_expect_100_continue(wire: Wire) -> None:
    whole = infer("add_sub", GOOD, headers={"expect": "100-continue"})
    head, body = whole.split(b"\r\n\r\n", 1)
    assert wire.ask(head + b"\r\n\r\n").status == 100
    assert wire.ask(body).json() == ANSWER


def test_expect_100_continue_of_a_refused_request(wire: Wire) -> None:
    whole = infer("nope", GOOD, headers={"expect": "100-continue"})
    head, _ = whole.split(b"\r\n\r\n", 1)
    assert wire.ask(head + b"\r\n\r\n").status == 404


def test_one_connection_serves_many_requests(wire: Wire) -> None:
    for number in range(300):
        headers = WAYS["asgi" if number % 3 == 0 else "direct"]
        data = [float(number)] * (number % 7)
        answer: Answer = wire.ask(infer("vector", {"inputs": [tensor("INPUT0", "FP32", [len(data)], data)]}, headers=headers))
        assert answer.json()["outputs"][0]["data"] == data


# Compression

CODINGS: Dict[str, Tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gzip": (gzip.compress, gzip.decompress),
    "deflate": (zlib.compress, zlib.decompress),
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("binary", [False, True])
def test_compressed_requests(wire: Wire, coding: str, binary: bool) -> None:
    document = {"inputs": [BLOB0, BLOB1]} if binary else GOOD
    text = json.dumps(document).encode()
    headers = {"content-encoding": coding, **({"inference-header-content-length": str(len(text))} if binary else {})}
    answer = wire.ask(infer("add_sub", CODINGS[coding][0](text + (FLOATS + FLOATS if binary else b"")), headers=headers))
    assert answer.json() == ANSWER


@pytest.mark.parametrize(
    "accept, coding",
    [
        ("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", "gzip"), ("deflate, gzip", "gzip"), ("gzip;q=0.5, deflate", "deflate"),
        ("GZIP", "gzip"), ("*", "gzip"), ("gzip;q=0, *", "deflate"), ("br, deflate;q=0.2", "deflate"), ("deflate ; q=0.3,gzip; q=0.2", "deflate"),
        ("identity", None), ("br", None), ("gzip;q=0", None), ("gzip;q=0, deflate;q=0", None), ("identity, gzip;q=0.5", None), (",", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nbytes", [16, 1 << 20])
def test_compressed_answers(wire: Wire, accept: str, coding: Any, nbytes: int) -> None:
    document = {
        "inputs": [tensor("INPUT0", "FP32", [nbytes // 4], binary_data_size=nbytes)],
        "parameters": {"binary_data_output": True},
    }
    data = FLOATS * (nbytes // 16)
    answer = wire.ask(infer("vector", document, data, {"accept-encoding": accept}))
    assert answer.headers.get("content-encoding") == coding
    plain = answer._replace(body=CODINGS[coding][1](answer.body)) if coding else answer
    assert plain.binary == data


def test_a_small_body_that_holds_a_large_document_is_refused(server: ServerProcess) -> None:
    """Its 80 MiB are never in memory at once: the limit is on what was unpacked so far."""
    bomb = gzip.compress(b" " * (80 << 20), 1)
    with server.wire() as wire:
        answer = wire.ask(infer("add_sub", bomb, headers={"content-encoding": "gzip"}))
        assert answer.status == 400
        assert "exceeds the maximum allowed input size of 67108864 bytes" in answer.error
        assert wire.ask(infer("add_sub", GOOD)).json() == ANSWER


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_document_over_the_limit_is_refused(server: ServerProcess, framing: str) -> None:
    with server.wire() as wire:
        if framing == "chunked":
            wire.send(infer("add_sub", b"", headers={"transfer-encoding": "chunked", "content-length": ""}))
            wire.send(*chunked([b" " * (1 << 20)] * 65))
        else:
            wire.send(infer("add_sub", b" " * (65 << 20)))
        answer = wire.answer()
        assert answer.status == 400
        assert "exceeds the maximum allowed input size of 67108864 bytes" in answer.error
        assert wire.ask(infer("add_sub", GOOD)).json() == ANSWER
