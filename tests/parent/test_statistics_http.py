"""Statistics as the client library of Triton's users sees them (spec 6.9)."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List

import gevent
import numpy as np
import pytest
import tritonclient.http as http
from http_wire import Wire, request
from server_process import ServerProcess

PARTS = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]
ROW = [
    "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats", "response_stats", "batch_stats", "memory_usage",
]  # fmt: skip


@pytest.fixture(scope="module")
def hub() -> Iterator[None]:
    """The library's event loop, which it makes once for a thread and keeps."""
    gevent.get_hub()
    yield
    gevent.get_hub().destroy(destroy_loop=True)


@pytest.fixture
def client(hub: None, server: ServerProcess) -> Iterator[http.InferenceServerClient]:
    client = http.InferenceServerClient(server.address)
    yield client
    client.close()


def row_of(client: http.InferenceServerClient, *which: str) -> Dict[str, Any]:
    row: Dict[str, Any]
    (row,) = client.get_inference_statistics(*which)["model_stats"]
    return row


def add(client: http.InferenceServerClient, size: int = 4) -> None:
    inputs: List[http.InferInput] = [http.InferInput(name, [size], "FP32") for name in ("INPUT0", "INPUT1")]
    for one in inputs:
        one.set_data_from_numpy(np.ones(size, np.float32))
    client.infer("add_sub", inputs)


def test_the_form_and_the_counts(client: http.InferenceServerClient) -> None:
    before = row_of(client, "add_sub")
    for _ in range(4):
        add(client)
    with pytest.raises(http.InferenceServerException):
        add(client, 3)
    row = row_of(client, "add_sub", "1")
    assert list(row) == list(before) == ROW
    assert (row["name"], row["version"], row["response_stats"]) == ("add_sub", "1", {})
    assert row["inference_count"] - before["inference_count"] == row["execution_count"] - before["execution_count"] == 4
    assert row["last_inference"] > before["last_inference"]
    stats, earlier = row["inference_stats"], before["inference_stats"]
    assert list(stats) == PARTS
    assert all(list(figures) == ["count", "ns"] for figures in stats.values())
    grown = {part: stats[part]["count"] - earlier[part]["count"] for part in PARTS}
    assert grown == {part: 0 if part in ("fail", "cache_hit", "cache_miss") else 4 for part in PARTS}
    (entry,) = row["batch_stats"]
    assert list(entry) == ["batch_size", "compute_input", "compute_infer", "compute_output"]
    (memory,) = row["memory_usage"]
    assert (memory["type"], memory["id"]) == ("CPU", 0) and memory["byte_size"] >= 2 << 20


def test_all_models(client: http.InferenceServerClient) -> None:
    rows = client.get_inference_statistics()["model_stats"]
    names = [(row["name"], int(row["version"])) for row in rows]
    assert names == sorted(names)
    assert {"add_sub", "decoupled", "versions"} <= {name for name, _ in names}


@pytest.mark.parametrize(
    "path, text",
    [
        ("/v2/models/nobody/stats", "requested model 'nobody' is not available"),
        ("/v2/models/add_sub/versions/7/stats", "requested model version is not available for model 'add_sub'"),
    ],
)
def test_what_is_not_there(wire: Wire, path: str, text: str) -> None:
    answer = wire.ask(request("GET", path))
    assert (answer.status, answer.error) == (400, text)
