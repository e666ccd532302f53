"""The port for Prometheus: where it listens, what it answers, and that it ends with the rest."""

from __future__ import annotations

import re
import select
import socket
import time
from typing import Any, List

import pytest
from http_wire import Wire, request
from prometheus_client.parser import text_string_to_metric_families

PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    "arguments, pattern",
    [
        ([], r"http://127\.0\.0\.1:\d+/metrics"),
        (["--metrics-address", "127.0.0.2"], r"http://127\.0\.0\.2:\d+/metrics"),
        (["--http-address", "0.0.0.0"], r"http://0\.0\.0\.0:\d+/metrics"),
        (["--allow-metrics=false"], "off"),
        (["--allow-http=false"], r"http://127\.0\.0\.1:\d+/metrics"),
    ],
    ids=" ".join,
)
def test_where_it_listens(serve: Any, arguments: List[str], pattern: str) -> None:
    server = serve(*arguments)
    assert re.fullmatch(rf"HTTP     .*\ngRPC     .*\nmetrics  {pattern}\n", server.out[server.out.index("HTTP") :])
    server.stop()


def test_what_it_answers(serve: Any) -> None:
    server = serve()
    with Wire(server.metrics_port) as wire:
        for _ in range(2):
            answer = wire.ask(request("GET", "/metrics"))
            assert (answer.status, answer.headers["content-type"]) == (200, PLAIN)
            list(text_string_to_metric_families(answer.body.decode()))
        for path in ("/", "/metrics/", "/v2", "/v2/health/ready"):
            assert wire.ask(request("GET", path)).status == 404
        refused = wire.ask(request("POST", "/metrics"))
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    with server.wire() as wire:
        assert wire.ask(request("GET", "/metrics")).status == 404
    server.stop()


@pytest.mark.parametrize("port", ["port", "metrics_port"])
def test_an_endless_head_is_refused(serve: Any, port: str) -> None:
    server = serve()
    with Wire(getattr(server, port)) as wire:
        wire.send(b"GET /metrics HTTP/1.1\r\n")
        for _ in range(100):
            wire.send(b"x: y\r\n" * 1000)
            # What is sent after the answer would be answered with a reset.
            if select.select([wire.socket], [], [], 0.02)[0]:
                break
        assert wire.answer().status == 400
        assert wire.closed()
    server.stop()


def test_an_idle_connection_does_not_hold_up_the_end(serve: Any) -> None:
    server = serve()
    with Wire(server.metrics_port) as wire, socket.create_connection(("127.0.0.1", server.metrics_port)) as silent:
        assert wire.ask(request("GET", "/metrics")).status == 200
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5
        assert wire.closed() and silent.recv(1) == b""
