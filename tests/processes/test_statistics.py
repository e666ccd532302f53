"""What is counted of requests however they come: through the embedded server or from other models (spec 6.9)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import numpy as np
import pytest
from model_repository import copy_model
from scripted import Scripted, quiet, room, script, scripted, texts
from server_process import until
from stublet.parent import InvalidArgument, Server, Unavailable

MILLI = 10**6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("statistics")
    for name in ("plain", "answers"):
        scripted(root, name)
    scripted(root, "pair", instances=2)
    scripted(root, "overlapping", max_concurrent="4")
    scripted(root, "many", decoupled=True)
    copy_model(root, "identity_batch")
    copy_model(root, "versions")
    with Server(root, options=room()) as server:
        yield server


class Counted:
    """What the statistics of a model have grown by since this was made."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name
        self._before = self._row()

    def _row(self) -> Dict[str, Any]:
        (row,) = self._server.statistics(self._name)
        return row

    def grown(self, part: str, what: str = "count") -> int:
        return int(self._row()["inference_stats"][part][what] - self._before["inference_stats"][part][what])

    @property
    def numbers(self) -> Dict[str, int]:
        """Those that are not 0."""
        row = self._row()
        found = {part: self.grown(part) for part in ("success", "fail")}
        found |= {name: row[f"{name}_count"] - self._before[f"{name}_count"] for name in ("inference", "execution")}
        return {name: count for name, count in found.items() if count}

    def metric(self, reason: str) -> int:
        statistics = self._server.core.find(self._name).statistics
        statistics.count()
        return int(statistics.failures[["REJECTED", "CANCELED", "BACKEND", "OTHER"].index(reason)])


@pytest.fixture
def get(server: Server) -> Iterator[Callable[[str], Scripted]]:
    with quiet(server):
        yield lambda name: Scripted(server, name)


Get = Callable[[str], Scripted]


def test_a_request_that_succeeds(server: Server, get: Get) -> None:
    counted, before = Counted(server, "plain"), time.time_ns() // MILLI
    get("plain").say("time.sleep(0.02)")
    assert counted.numbers == {"success": 1, "inference": 1, "execution": 1}
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert counted.grown(part) == 1
    assert counted.grown("compute_infer", "ns") >= 20 * MILLI
    whole = sum(counted.grown(part, "ns") for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert counted.grown("success", "ns") == whole
    (row,) = server.statistics("plain")
    assert before - 1 <= row["last_inference"] <= time.time_ns() // MILLI
    assert row["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": server.core.find("plain").memory().inputs + (32 << 20)}]


def test_a_response_with_an_error_is_a_success(server: Server, get: Get) -> None:
    counted = Counted(server, "plain")
    assert get("plain").fail("returned = [failure('no')]") == "INTERNAL: no"
    assert get("plain").fail("returned = [failure('no', pb_utils.TritonError.CANCELLED)]") == "CANCELLED: no"
    assert counted.numbers == {"success": 2, "inference": 2, "execution": 2}


@pytest.mark.parametrize(
    "code", ["raise ValueError('no')", "returned = []", "returned = None", "await asyncio.sleep(0); raise ValueError('no')"]
)
def test_an_execute_that_fails(server: Server, get: Get, code: str) -> None:
    counted = Counted(server, "plain")
    was = counted.metric("BACKEND")
    get("plain").fail(code)
    until(lambda: counted.numbers == {"fail": 1, "execution": 1})
    assert counted.metric("BACKEND") == was + 1


def test_a_request_that_is_wrong_counts_nowhere(server: Server, get: Get) -> None:
    counted = Counted(server, "plain")
    with pytest.raises(InvalidArgument):
        server.infer("plain", {"WRONG": np.zeros(1, np.float32)})
    assert counted.numbers == {}


def test_waiting_is_no_computing(server: Server, get: Get) -> None:
    """In the ring of the one instance, or before both of two."""
    for name, requests in (("plain", 3), ("pair", 4)):
        counted, model = Counted(server, name), get(name)
        for stream in [model.stream("time.sleep(0.1)") for _ in range(requests)]:
            assert texts(stream) == [""]
        assert counted.numbers["execution"] == requests
        instances = 1 if name == "plain" else 2
        rounds = requests // instances
        assert counted.grown("compute_infer", "ns") >= 100 * MILLI * requests
        assert counted.grown("queue", "ns") >= 70 * MILLI * instances * sum(range(rounds))


def test_executions_that_overlap(server: Server, get: Get) -> None:
    counted = Counted(server, "overlapping")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(get("overlapping").say, ["await asyncio.sleep(0.1)"] * 4))
    assert counted.numbers == {"success": 4, "inference": 4, "execution": 4}
    assert counted.grown("compute_infer", "ns") >= 400 * MILLI


def test_a_batch_counts_by_its_size(server: Server, get: Get) -> None:
    counted = Counted(server, "identity_batch")
    (spec,) = server.core.find("identity_batch").inputs
    for size in (1, 2, 2):
        server.infer("identity_batch", {spec.name: np.zeros([size, *[max(dim, 1) for dim in spec.shape[1:]]], spec.dtype.numpy)})
    assert counted.numbers == {"success": 3, "inference": 5, "execution": 3}
    (row,) = server.statistics("identity_batch")
    sizes = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in row["batch_stats"]}
    assert sizes[1] >= 1 and sizes[2] >= 2


def test_large_inputs_take_a_while_to_copy(server: Server, get: Get) -> None:
    counted = Counted(server, "plain")
    get("plain").say("", np.zeros(4 << 20, np.float32))
    assert counted.grown("compute_input", "ns") > MILLI // 10


def test_a_cancelled_one_is_a_failure_unless_it_is_executed(server: Server, get: Get) -> None:
    counted, plain = Counted(server, "plain"), get("plain")
    was = counted.metric("CANCELED")
    channel = server.core.find("plain").instances[0].channel
    with plain.stream("until(request.is_cancelled)") as running:
        until(channel.executing)
        with plain.stream("result = 'never'"):
            until(lambda: server.core.find("plain").pending() == 1)
        until(lambda: counted.metric("CANCELED") == was + 1)
        assert server.core.find("plain").pending() == 0
        running.close()
    until(lambda: counted.numbers == {"success": 1, "fail": 1, "inference": 1, "execution": 1})


def test_calls_of_models_count_for_the_callee(server: Server, get: Get) -> None:
    caller, callee = Counted(server, "plain"), Counted(server, "answers")
    assert get("plain").say("result = said(call('answers', 'result = 1').exec())") == "1"
    assert get("plain").say("result = said(call('answers', 'raise ValueError(1)').exec())").startswith("error: ")
    assert caller.numbers == {"success": 2, "inference": 2, "execution": 2}
    assert callee.numbers == {"success": 1, "fail": 1, "inference": 1, "execution": 2}


def test_a_stream_is_one_success_with_many_responses(server: Server, get: Get) -> None:
    counted, many = Counted(server, "many"), get("many")
    assert many.items("[sender.send(response(i)) for i in range(3)]; sender.send(failure('x')); sender.send(flags=FINAL)")[:3] == [
        "0",
        "1",
        "2",
    ]
    assert counted.numbers == {"success": 1, "inference": 1, "execution": 1}
    responses = server.statistics("many")[0]["response_stats"]
    assert [responses[str(i)]["success"]["count"] >= 1 for i in range(3)] == [True] * 3
    assert responses["3"]["fail"]["count"] == 1 and responses["4"]["empty_response"]["count"] == 1
    assert many.items("raise ValueError('no')")[0].startswith("error: ")
    assert counted.numbers == {"success": 1, "fail": 1, "inference": 1, "execution": 2}
    assert many.items("in_thread(lambda: (time.sleep(0.05), sender.send(response('late'), FINAL)))") == ["late"]
    assert counted.numbers == {"success": 2, "fail": 1, "inference": 2, "execution": 3}
    assert counted.grown("compute_output", "ns") > 30 * MILLI


def test_a_dead_process_fails_what_it_had_and_what_comes(tmp_path: Path) -> None:
    scripted(tmp_path, "plain", restart_limit="0")
    with Server(tmp_path) as server:
        counted = Counted(server, "plain")
        for code in ("os._exit(3)", "result = 'never'"):
            with pytest.raises(Unavailable):
                server.infer("plain", script(code), timeout=30)
        assert counted.numbers == {"fail": 2}
        assert counted.metric("BACKEND") == 2
        assert "stublet_instance_up" in server.metrics()
        assert 'stublet_instance_up{instance="plain_0_0",model="plain",version="1"} 0' in server.metrics()


def test_who_is_asked_for(server: Server) -> None:
    assert [row["name"] for row in server.statistics()] == sorted(row["name"] for row in server.statistics())
    versions = sorted(server.core.models["versions"])
    assert [(row["name"], row["version"]) for row in server.statistics("versions")] == [("versions", str(number)) for number in versions]
    (one,) = server.statistics("versions", str(versions[0]))
    assert one["version"] == str(versions[0])
    for name, version, text in (
        ("nobody", "", "requested model 'nobody' is not available"),
        ("plain", "7", "requested model version is not available for model 'plain'"),
        ("plain", "0", "requested model version is not available for model 'plain'"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            server.statistics(name, version)
        assert str(caught.value) == text
    with pytest.raises(InvalidArgument, match="version should be an integral value > 0"):
        server.statistics("plain", "x")
