"""Instances of several models that share resources (``--rate-limit=execution_count``, spec 5.3)."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from http_wire import tensor
from model_repository import write_model
from server_process import ServerProcess, serving, until

TIMED = """
import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Answers from when to when it executed, after so many seconds as its input says, and no sooner than the file "gate" is gone.'''

    def initialize(self, args):
        self.gate = json.loads(args["model_config"])["parameters"]["gate"]["string_value"]
        self.name = args["model_name"]

    def execute(self, requests):
        began = time.monotonic()
        open(self.gate + "." + self.name, "w").close()
        while os.path.exists(self.gate):
            time.sleep(0.001)
        time.sleep(max(float(request.inputs()[0].as_numpy().flat[0]) for request in requests))
        times = np.array([began, time.monotonic(), len(requests)])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("TIMES", times)]) for _ in requests]
"""
CONFIG = """
input {{ name: "INPUT0" data_type: TYPE_FP32 dims: [1] }}
output {{ name: "TIMES" data_type: TYPE_FP64 dims: [3] }}
parameters {{ key: "gate" value {{ string_value: "{gate}" }} }}
"""


class Limited:
    """A server whose models need resources."""

    def __init__(self, root: Path, server: ServerProcess, pool: ThreadPoolExecutor) -> None:
        self.server = server
        self.gate = root / "gate"
        self._pool = pool

    def ask(self, model: str, seconds: float = 0, *batch: int, **parameters: Any) -> Future[httpx.Response]:
        url = f"http://{self.server.address}/v2/models/{model}/infer"
        body = {"inputs": [tensor("INPUT0", "FP32", [*batch, 1], [seconds])], "parameters": parameters}
        return self.begin(httpx.post, url, json=body, timeout=30)

    def begin(self, function: Callable[..., httpx.Response], *arguments: Any, **more: Any) -> Future[httpx.Response]:
        return self._pool.submit(function, *arguments, **more)

    def ask_and_wait(self, model: str) -> Future[httpx.Response]:
        """Returns when the request has arrived."""
        before = self.pending(model)
        answer = self.ask(model)
        until(lambda: self.pending(model) > before, what="the request's arrival")
        return answer

    def pending(self, model: str) -> int:
        return int(self._report(model)["pending"])

    def is_pending(self, model: str, count: int) -> bool:
        return self.pending(model) == count

    def pids(self, model: str) -> List[int]:
        return [instance["pid"] for instance in self._report(model)["instances"]]

    def _report(self, model: str) -> Dict[str, Any]:
        models = httpx.get(f"http://{self.server.address}/v2/stublet/instances").json()["models"]
        (found,) = [one for one in models if one["name"] == model]
        return dict(found)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"http://{self.server.address}/v2/{path}", json=body, timeout=30)

    @contextmanager
    def busy(self, model: str) -> Iterator[Future[httpx.Response]]:
        """While the model executes a request of its own."""
        self.gate.touch()
        try:
            first = self.ask(model)
            until(Path(f"{self.gate}.{model}").exists, what="the execution of the first request")
            yield first
        finally:
            self.gate.unlink()


def needs(name: str, count: int = 1, instances: int = 1, **more: Any) -> str:
    shared = "global: true" if more.get("shared") else ""
    limited = f'resources {{ name: "{name}" {shared} count: {count} }} priority: {more.get("priority", 1)}'
    return f"instance_group {{ count: {instances} rate_limiter {{ {limited} }} }}\n"


def write(root: Path, name: str, text: str) -> None:
    write_model(root / "models", name, TIMED, CONFIG.format(gate=root / "gate") + text)


@contextmanager
def limited(root: Path, *arguments: str, **models: str) -> Iterator[Limited]:
    for name, text in models.items():
        write(root, name, text)
    with ThreadPoolExecutor(130) as pool:
        with serving(root, root / "models", "--rate-limit=execution_count", *arguments) as server:
            yield Limited(root, server, pool)


def times(answer: Future[httpx.Response]) -> Tuple[float, float, float]:
    response = answer.result()
    assert response.status_code == 200, response.text
    began, ended, together = response.json()["outputs"][0]["data"]
    return began, ended, together


def most_at_once(spans: List[Tuple[float, float, int]]) -> int:
    """How much was taken at once, by (from, to, how much)."""
    events = sorted([(began, 1, count) for began, _, count in spans] + [(ended, -1, count) for _, ended, count in spans])
    taken = most = 0
    for _, sign, count in events:
        taken += sign * count
        most = max(most, taken)
    return most


def test_no_more_execute_at_once_than_there_is_for(tmp_path: Path) -> None:
    models = {"one": needs("R", 1, instances=2), "another": needs("R", 1), "big": needs("R", 2), "free": ""}
    with limited(tmp_path, "--rate-limit-resource=R:2", **models) as served:
        answers = [(served.ask(model, 0.01), count) for _ in range(8) for model, count in (("one", 1), ("another", 1), ("big", 2))]
        free = [served.ask("free", 0.01) for _ in range(8)]
        spans = [(*times(answer)[:2], count) for answer, count in answers]
        assert most_at_once(spans) == 2
        assert [times(answer)[2] for answer in free] == [1] * 8


def test_the_default_is_what_the_greediest_needs(tmp_path: Path) -> None:
    with limited(tmp_path, a=needs("R", 1, instances=3), b=needs("R", 2)) as served:
        spans = [(*times(answer)[:2], 1) for answer in [served.ask("a", 0.02) for _ in range(12)]]
        assert most_at_once(spans) == 2


def test_turns_by_priority(tmp_path: Path) -> None:
    models = {"urgent": needs("R"), "other": needs("R", priority=2), "holder": needs("R")}
    with limited(tmp_path, **models) as served:
        with served.busy("holder"):
            answers = {model: [served.ask(model) for _ in range(60)] for model in ("urgent", "other")}
            until(lambda: all(served.pending(model) == 60 for model in answers))
        began = sorted((times(answer)[0], model) for model, asked in answers.items() for answer in asked)
        first = [model for _, model in began[:60]]
        assert abs(first.count("urgent") - 40) <= 2


def test_who_waits_for_too_long_is_refused(tmp_path: Path) -> None:
    """Also while a batch is formed that waits for others to be done."""
    policy = "default_queue_policy { default_timeout_microseconds: 300000 allow_timeout_override: true }"
    batched = f"max_batch_size: 8 dynamic_batching {{ {policy} }}\n"
    expired = "[request id: <id_unknown>] Request timeout expired"
    with limited(tmp_path, holder=needs("R"), batched=batched + needs("R")) as served:
        with served.busy("holder") as first:
            answers = [served.ask("batched", 0, 1, **more) for more in ({}, {"timeout": 1000}, {}) for _ in range(9)]
            assert {(answer.result().status_code, answer.result().json()["error"]) for answer in answers} == {(503, expired)}
            assert served.pending("batched") == 0
            last = served.ask("batched", 0, 1)
        assert times(first) and times(last)[2] == 1
        statistics = httpx.get(f"http://{served.server.address}/v2/models/batched/stats").json()["model_stats"][0]["inference_stats"]
        assert (statistics["success"]["count"], statistics["fail"]["count"]) == (1, 27)


def test_dynamic_batches_too(tmp_path: Path) -> None:
    batched = "max_batch_size: 8 dynamic_batching { }\n"
    with limited(tmp_path, holder=needs("R"), batched=batched + needs("R")) as served:
        with served.busy("holder"):
            answers = [served.ask("batched", 0, 1) for _ in range(17)]
            until(lambda: served.pending("batched") == 17)
            assert not Path(f"{served.gate}.batched").exists()
        spans = {times(answer) for answer in answers}
        assert len(spans) <= 4 and most_at_once([(began, ended, 1) for began, ended, _ in spans]) == 1


@pytest.mark.parametrize("strategy", ["direct", "oldest"])
def test_sequences_too(strategy: str, tmp_path: Path) -> None:
    section = f"max_batch_size: 2 sequence_batching {{ {strategy} {{ }} }}\n"
    with limited(tmp_path, holder=needs("R"), sequenced=section + needs("R", instances=2)) as served:
        with served.busy("holder"):
            answers: List[Future[httpx.Response]] = []
            for number in range(5):
                position = {"sequence_start": number == 0, "sequence_end": number == 4}
                answers += [served.ask("sequenced", 0, 1, sequence_id=sequence, **position) for sequence in (1, 2, 3)]
                until(partial(served.is_pending, "sequenced", len(answers)))
        spans = [times(answer)[:2] for answer in answers]
        assert most_at_once([(*span, 1) for span in set(spans)]) == 1
        assert all(spans[sequence::3] == sorted(spans[sequence::3]) for sequence in range(3))


def test_what_waits_for_a_resource_is_cancelled_at_once(grpc_core: None, tmp_path: Path) -> None:
    with limited(tmp_path, "--grpc-port", "0", a=needs("R"), b=needs("R")) as served:
        with served.busy("a"), triton.InferenceServerClient(served.server.grpc_address) as client:
            given = triton.InferInput("INPUT0", [1], "FP32")
            given.set_data_from_numpy(np.zeros(1, np.float32))
            told: List[Any] = []
            call = client.async_infer("b", [given], lambda result, error: told.append(error))
            until(lambda: served.pending("b") == 1 or told)
            assert not told, str(told[0])
            call.cancel()
            until(lambda: served.pending("b") == 0)
            until(lambda: told)
            assert "cancelled" in str(told[0]).lower()
        times(served.ask("b"))
        with httpx.Client() as client_of_metrics:
            text = client_of_metrics.get(f"http://127.0.0.1:{served.server.metrics_port}/metrics").text
        assert 'nv_inference_request_failure{model="b",reason="CANCELED",version="1"} 1' in text


def test_a_dead_instance_gives_back_what_it_had(tmp_path: Path) -> None:
    with limited(tmp_path, a=needs("R"), b=needs("R")) as served:
        with served.busy("a") as first:
            waiting = served.ask_and_wait("b")
            os.kill(served.pids("a")[0], signal.SIGKILL)
            assert first.result().status_code == 503
            until(Path(f"{served.gate}.b").exists, what="the execution of what waited")
        times(waiting)


def test_what_waited_at_a_dead_instance_goes_to_another(tmp_path: Path) -> None:
    with limited(tmp_path, a=needs("R"), b=needs("R", instances=2)) as served:
        with served.busy("a"):
            waiting = [served.ask_and_wait("b") for _ in range(4)]
            pid = served.pids("b")[0]
            os.kill(pid, signal.SIGKILL)
            until(lambda: pid not in served.pids("b"))
            assert served.pending("b") == 4
        assert all(times(answer) for answer in waiting)


def test_models_come_and_go(tmp_path: Path) -> None:
    """What there is follows the models that are there, and a model that goes is given its turns to finish."""
    write(tmp_path, "a", needs("R", instances=2))
    write(tmp_path, "big", needs("R", 2))
    with limited(tmp_path, "--model-control-mode=explicit", "--load-model=a") as served:
        assert most_at_once([(*times(answer)[:2], 1) for answer in [served.ask("a", 0.02) for _ in range(6)]]) == 1
        assert served.post("repository/models/big/load").status_code == 200
        assert most_at_once([(*times(answer)[:2], 1) for answer in [served.ask("a", 0.02) for _ in range(6)]]) == 2
        with served.busy("big"):
            waiting = [served.ask_and_wait("a") for _ in range(3)]
            unloaded = served.begin(served.post, "repository/models/a/unload")
            ready = f"http://{served.server.address}/v2/models/a/ready"
            until(lambda: httpx.get(ready).status_code != 200)
            assert served.pending("a") == 3
        assert all(times(answer) for answer in waiting)
        assert unloaded.result().status_code == 200
        assert served.ask("a").result().status_code == 404


def test_groups_change_in_place(tmp_path: Path) -> None:
    write(tmp_path, "a", needs("R", instances=2))
    write(tmp_path, "holder", needs("R"))
    with limited(tmp_path, "--model-control-mode=explicit", "--load-model=*") as served:
        before = served.pids("a")
        config = (tmp_path / "models" / "a" / "config.pbtxt").read_text().split("instance_group")[0]
        with served.busy("holder"):
            waiting = [served.ask_and_wait("a") for _ in range(4)]
            (tmp_path / "models" / "a" / "config.pbtxt").write_text(config + needs("S", instances=2))
            assert served.post("repository/models/a/load").status_code == 200
            # Those that come need what nobody has, and take over what waited at those that go.
            until(Path(f"{served.gate}.a").exists, what="the execution of what waited")
        assert all(times(answer) for answer in waiting)
        until(lambda: len(served.pids("a")) == 2)
        assert not set(before) & set(served.pids("a"))


CALLER = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Asks another model while it executes.'''

    def execute(self, requests):
        responses = []
        for request in requests:
            wanted = pb_utils.InferenceRequest(model_name="called", requested_output_names=["TIMES"], inputs=request.inputs())
            answer = wanted.exec()
            responses.append(pb_utils.InferenceResponse(answer.output_tensors(), answer.error()))
        return responses
"""


@pytest.mark.parametrize("capacity, waits", [(1, True), (2, False)])
def test_a_call_that_waits_for_what_its_caller_has(capacity: int, waits: bool, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "caller", CALLER, CONFIG.format(gate="") + needs("R"))
    with limited(tmp_path, f"--rate-limit-resource=R:{capacity}", called=needs("R")) as served:
        answer = served.ask("caller").result()
        if waits:
            assert answer.status_code == 500
            assert "each of these instances waits for the next: caller_0_0 -> called_0_0 -> caller_0_0;" in answer.text
        else:
            assert answer.status_code == 200
        times(served.ask("called"))


@pytest.mark.parametrize(
    "text, complaint",
    [
        (
            needs("R", 3),
            'Resource count for "R" is limited to 2 which will prevent scheduling of one or more model instances, the minimum required count is 3',
        ),
        (
            needs("Q") + needs("Q", shared=True),
            'Resource "Q" is present as both global and device-specific resource in the model configuration.',
        ),
        (needs("P", shared=True), 'Resource "P" is present as both global and device-specific resource in the model configuration.'),
    ],
)
def test_models_that_cannot_be(text: str, complaint: str, tmp_path: Path) -> None:
    write(tmp_path, "bad", text)
    options = ("--rate-limit-resource=r:2", "--model-control-mode=explicit", "--load-model=good")
    with limited(tmp_path, *options, good=needs("P")) as served:
        refused = served.post("repository/models/bad/load")
        assert refused.status_code == 400
        assert refused.json()["error"] == f"load failed for model 'bad': version 1 is at UNAVAILABLE state: {complaint};"
        times(served.ask("good"))


def test_without_the_option_nothing_is_limited(tmp_path: Path) -> None:
    write(tmp_path, "a", needs("R") + needs("R", shared=True))
    with ThreadPoolExecutor(16) as pool, serving(tmp_path, tmp_path / "models", "--rate-limit-resource=R:0") as server:
        served = Limited(tmp_path, server, pool)
        assert most_at_once([(*times(answer)[:2], 1) for answer in [served.ask("a", 0.05) for _ in range(8)]]) == 2
