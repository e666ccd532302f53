"""Queues that are full: who is refused, at once and with a reason, and that nobody is forgotten, however many come (``--max-queue-size``)."""

from __future__ import annotations

import resource
import socket
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import httpx
import numpy as np
import pytest
from batched import COMPANY, CONFIG, Batched, batched, company, refusal
from grpc_client import Client
from grpc_client import infer as grpc_infer
from http_wire import infer, tensor
from model_repository import write_model
from server_process import serving, until
from stublet.parent.options import DEFAULT_MAX_QUEUE_SIZE
from stublet.parent.scheduling.scheduler import LOOKAHEAD

MANY = 10_000
FULL = "Exceeds maximum queue size"
PLAIN = CONFIG[: CONFIG.index("dynamic_batching")]


@contextmanager
def plain(root: Path, *arguments: str, instances: int = 1) -> Iterator[Batched]:
    """A model of the default scheduler."""
    gate = root / "gate"
    write_model(root / "models", "company", COMPANY, PLAIN.format(ragged="", instances=instances, gate=gate))
    with ThreadPoolExecutor(40) as pool, serving(root, root / "models", *arguments) as server:
        yield Batched(server, gate, pool)


def counts(model: Batched) -> Dict[str, int]:
    parts = model.statistics()["inference_stats"]
    return {part: parts[part]["count"] for part in ("success", "fail")}


def test_the_default_scheduler(tmp_path: Path) -> None:
    with plain(tmp_path, "--max-queue-size=3") as model:
        with model.busy():
            accepted: List[Future[httpx.Response]] = [model.ask(str(number)) for number in range(LOOKAHEAD - 1 + 3)]
            assert refusal(model.ask("more")) == (503, f"[request id: more] {FULL}")
            assert refusal(model.ask()) == (503, f"[request id: <id_unknown>] {FULL}")
            assert model.pending() == LOOKAHEAD - 1 + 3
        assert [company(answer) for answer in accepted] == [[str(number)] for number in range(LOOKAHEAD - 1 + 3)]
        assert company(model.ask("again")) == ["again"]
        assert counts(model) == {"success": 1 + LOOKAHEAD - 1 + 3 + 1, "fail": 2}
        metrics = httpx.get(f"http://127.0.0.1:{model.server.metrics_port}/metrics").text
        assert 'nv_inference_request_failure{model="company",reason="REJECTED",version="1"} 2' in metrics


def test_a_policy_that_names_none_and_one_that_does(tmp_path: Path) -> None:
    with batched(tmp_path / "none", arguments=["--max-queue-size=2"]) as model, model.busy():
        accepted = [model.ask(name) for name in "ab"]
        assert refusal(model.ask("c")) == (503, f"[request id: c] {FULL}")
    assert [company(answer) for answer in accepted] == [[*"ab"]] * 2
    section = "default_queue_policy { max_queue_size: 3 }"
    with batched(tmp_path / "own", section, arguments=["--max-queue-size=2"]) as model, model.busy():
        accepted = [model.ask(name) for name in "abc"]
        assert refusal(model.ask("d")) == (503, f"[request id: d] {FULL}")


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both this process and the server may have a connection for each request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY + 1000
    assert hard == resource.RLIM_INFINITY or hard >= wanted, "this test needs 11,000 file descriptors"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("limit", [100, DEFAULT_MAX_QUEUE_SIZE])
def test_ten_thousand_over_http(tmp_path: Path, limit: int) -> None:
    body = {"inputs": [tensor("INPUT0", "FP32", [1, 2], [1, 1])], "outputs": [{"name": "OUTPUT0"}]}
    message = infer("company", body)
    with plain(tmp_path, f"--max-queue-size={limit}") as model, ExitStack() as stack:
        with model.busy() as first:
            connections = []
            for _ in range(MANY):
                connection = stack.enter_context(closing(socket.create_connection(("127.0.0.1", model.server.port), 60)))
                connection.sendall(message)
                connections.append(connection)
            expected = min(LOOKAHEAD - 1 + limit, MANY)
            until(lambda: model.pending() + counts(model)["fail"] == MANY, what="the arrival of all")
            assert model.pending() == expected
        statuses = Counter(connection.recv(12)[9:] for connection in connections)
        assert statuses == Counter({b"200": expected, b"503": MANY - expected})
        assert company(first) == ["first"]
        assert counts(model) == {"success": expected + 1, "fail": MANY - expected}


GRPC_REQUEST = grpc_infer("company", {"INPUT0": np.ones((1, 2), np.float32)}, ["OUTPUT0"])


def test_ten_thousand_over_grpc(grpc_core: None, tmp_path: Path) -> None:
    """They all wait, and those that are cancelled meanwhile are the only ones that are not executed."""
    with plain(tmp_path, "--grpc-port", "0") as model, Client(model.server.grpc_address) as client:
        with model.busy():
            calls: List[Any] = [client.stub.ModelInfer.future(GRPC_REQUEST, timeout=120) for _ in range(MANY)]
            until(lambda: model.pending() == MANY, what="the arrival of all")
            for call in calls[-5:]:
                call.cancel()
            until(lambda: model.pending() == MANY - 5, what="the cancellations")
        assert all(call.result(60).outputs for call in calls[:-5]) and all(call.cancelled() for call in calls[-5:])
        assert counts(model) == {"success": MANY - 5 + 1, "fail": 5}


def test_ten_thousand_over_grpc_to_a_full_queue(grpc_core: None, tmp_path: Path) -> None:
    """Each that is refused is told why, though they all come at one moment."""
    with plain(tmp_path, "--max-queue-size=100", "--grpc-port", "0") as model, Client(model.server.grpc_address) as client:
        accepted = LOOKAHEAD - 1 + 100
        with model.busy():
            calls: List[Any] = [client.stub.ModelInfer.future(GRPC_REQUEST, timeout=120) for _ in range(MANY)]
            until(lambda: sum(call.done() for call in calls) == MANY - accepted, what="the refusal of all others")
            refused = Counter(f"{call.exception().code().name}: {call.exception().details()}" for call in calls if call.done())
            assert refused == {f"UNAVAILABLE: [request id: <id_unknown>] {FULL}": MANY - accepted}
        assert sum(call.exception(60) is None for call in calls) == accepted
        assert counts(model) == {"success": accepted + 1, "fail": MANY - accepted}
