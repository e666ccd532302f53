"""Iterative sequences: requests that the model wants to execute again, until it has done with them (spec 2.8)."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, List

import httpx
import numpy as np
import pytest
from http_wire import tensor
from model_repository import write_model
from scripted import room
from sequence_models import write_count
from server_process import serving, until
from stublet.parent import Cancelled, InvalidArgument, Server, Unavailable, backlog


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("iterative")
    write_count(root, "count")
    write_count(root, "oldest", "oldest { max_candidate_sequences: 4 }")
    write_count(root, "stream", decoupled=True)
    write_count(root, "hasty", "max_sequence_idle_microseconds: 1000")
    write_count(root, "lone", more="instance_group { count: 1 kind: KIND_CPU }")
    with Server(root, options=room()) as server:
        yield server


def given(until: int, pause: float = 0) -> Any:
    return {"UNTIL": np.array([[until, pause]], np.float32)}


def said(server: Server, model: str, until: int, **more: Any) -> Any:
    return int(server.infer(model, given(until), **more)["OUT"].flat[0])


@pytest.mark.parametrize("model", ["count", "oldest"])
def test_a_request_is_executed_until_the_model_has_done_with_it(server: Server, model: str) -> None:
    assert [said(server, model, until) for until in (1, 2, 5)] == [1, 2, 5]


def test_the_first_time_it_is_a_start(server: Server) -> None:
    assert server.infer("count", given(1))["FLAGS"].tolist() == [[1]]
    assert server.infer("count", given(2))["FLAGS"].tolist() == [[0]]


@pytest.mark.parametrize("model", ["count", "oldest"])
def test_many_at_a_time_are_executed_together(server: Server, model: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda until: server.infer(model, given(until, 0.002)), (30, 31, 32, 33)))
    assert [int(answer["OUT"].flat[0]) for answer in answers] == [30, 31, 32, 33]
    company = [eval(answer["COMPANY"].flat[0]) for answer in answers]
    assert max(map(max, company)) == 4 and [len(one) for one in company] == [30, 31, 32, 33]


def test_a_decoupled_model_says_something_each_time(server: Server) -> None:
    assert [int(one["OUT"].flat[0]) for one in server.infer_stream("stream", given(5))] == [1, 2, 3, 4, 5]
    with ThreadPoolExecutor(6) as pool:
        streams = pool.map(lambda until: [int(one["OUT"].flat[0]) for one in server.infer_stream("stream", given(until))], range(3, 15))
        assert list(streams) == [list(range(1, until + 1)) for until in range(3, 15)]


def test_ids_of_clients(server: Server) -> None:
    assert said(server, "count", 3, parameters={"sequence_id": "mine", "sequence_start": True}) == 3
    with pytest.raises(InvalidArgument, match="sequence mine to model 'count' must specify the START flag on the first request"):
        said(server, "count", 3, parameters={"sequence_id": "mine"})
    with pytest.raises(InvalidArgument, match="must specify batch-size 1 due to requirements of sequence batcher"):
        server.infer("count", {"UNTIL": np.ones((2, 2), np.float32)})


def test_one_that_the_model_does_not_give_back_in_time(server: Server) -> None:
    text = r"inference request for sequence \d+ to model 'hasty' must specify the START flag on the first request of the sequence"
    with pytest.raises(InvalidArgument, match=text):
        server.infer("hasty", given(2, 0.1))
    assert int(server.infer("hasty", given(1, 0.1))["OUT"].flat[0]) == 1, "an answer is one, though it is late"


def test_one_that_is_cancelled_is_not_executed_again(server: Server) -> None:
    with pytest.raises(TimeoutError):
        server.infer("count", given(1_000_000), timeout=0.2)
    model = server.core.find("count")
    until(lambda: model.in_flight == 0 and model.pending() == 0)
    assert said(server, "count", 2) == 2
    (statistics,) = server.statistics("count")
    assert statistics["inference_stats"]["fail"]["count"] >= 1


def test_a_stream_that_is_left(server: Server) -> None:
    stream = server.infer_stream("stream", given(1_000_000))
    assert int(next(stream)["OUT"].flat[0]) == 1
    stream.close()
    model = server.core.find("stream")
    until(lambda: model.in_flight == 0 and model.pending() == 0)


def test_one_that_waits_to_be_executed_again_is_cancelled(server: Server) -> None:
    model = server.core.find("lone")
    outcomes: List[Any] = []
    done = threading.Event()

    def ask(value: int) -> None:
        try:
            outcomes.append(said(server, "lone", value, timeout=1))
        except (TimeoutError, Cancelled) as error:
            outcomes.append(type(error))
        done.set()

    threads = [threading.Thread(target=ask, args=(value,)) for value in (10**9, 10**9, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == sorted(map(str, [20, TimeoutError, TimeoutError]))
    until(lambda: model.in_flight == 0 and model.pending() == 0)


def test_each_execution_counts_and_each_request_once(tmp_path: Path) -> None:
    write_count(tmp_path, "count")
    with Server(tmp_path) as server:
        assert said(server, "count", 7) == 7
        (told,) = server.statistics("count")
    assert (told["inference_count"], told["execution_count"]) == (1, 7)
    assert told["inference_stats"]["success"]["count"] == 1 and told["batch_stats"][0]["compute_infer"]["count"] == 7


def test_an_instance_that_dies(tmp_path: Path) -> None:
    write_count(tmp_path, "count")
    with Server(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(said, server, "count", 10**9)
        model = server.core.find("count")
        until(lambda: model.in_flight)
        os.kill(model.instances[0].pid, 9)
        with pytest.raises(Unavailable, match=r"Stub process 'count_0_0' is not healthy: it ended with SIGKILL"):
            asked.result()


def test_over_http(tmp_path: Path) -> None:
    write_count(tmp_path / "models", "count")
    write_count(tmp_path / "models", "stream", decoupled=True)
    with serving(tmp_path, tmp_path / "models") as server:
        inputs = [tensor("UNTIL", "FP32", [1, 2], [4, 0])]
        answer = httpx.post(f"http://{server.address}/v2/models/count/infer", json={"inputs": inputs})
        assert answer.json()["outputs"][0]["data"] == [4]
        answer = httpx.post(f"http://{server.address}/v2/models/stream/generate_stream", json={"UNTIL": [4.0, 0.0]})
        assert re.findall(r'"OUT":(\d+)', answer.text) == ["1", "2", "3", "4"]


def test_a_stream_that_is_not_read_does_not_fill_the_memory(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MOST_RESPONSES", 100)
    stream = server.infer_stream("stream", given(10**6))
    model = server.core.find("stream")
    (words,) = [instance.channel._words for instance in model.instances]
    until(lambda: any(words.held), what="the server's word that the model is to wait")
    for number in range(1, 500):
        assert int(next(stream)["OUT"].flat[0]) == number
    stream.close()
    until(lambda: model.in_flight == 0 and model.pending() == 0)


STATEFUL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Counts up to its input, and remembers nothing itself.'''

    def execute(self, requests):
        for request in requests:
            until, count = (tensor.as_numpy() for tensor in request.inputs())
            last = count.flat[0] + 1 >= until.flat[0]
            outputs = [pb_utils.Tensor("OUT", count + 1), pb_utils.Tensor("NEXT", count + 1)]
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            request.get_response_sender().send(pb_utils.InferenceResponse(outputs), flags)
            if not last:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
"""
STATEFUL_CONFIG = """
max_batch_size: 4
input { name: "UNTIL" data_type: TYPE_INT32 dims: [1] }
output { name: "OUT" data_type: TYPE_INT32 dims: [1] }
model_transaction_policy { decoupled: true }
sequence_batching {
  iterative_sequence: true
  oldest { max_candidate_sequences: 8 }
  state { input_name: "COUNT" output_name: "NEXT" data_type: TYPE_INT32 dims: [1] }
}
"""


def test_what_is_said_each_time_is_told_the_next_time(tmp_path: Path) -> None:
    write_model(tmp_path, "counts", STATEFUL, STATEFUL_CONFIG)
    with Server(tmp_path) as server, ThreadPoolExecutor(6) as pool:

        def counts(until: int) -> List[int]:
            return [int(one["OUT"].flat[0]) for one in server.infer_stream("counts", {"UNTIL": np.array([[until]], np.int32)})]

        assert list(pool.map(counts, range(1, 13))) == [list(range(1, until + 1)) for until in range(1, 13)]
        sequences = server.core.find("counts")._sequences
        assert sequences is not None
        until(lambda: not sequences._memories, what="the end of every sequence, which follows its last answer")
