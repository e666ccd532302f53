"""Dynamic batching by real instances, over both protocols: who is executed with whom, in which order, and who is refused (spec 5.4)."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import tritonclient.grpc as triton
from batched import COMPANY, CONFIG, batched, company, refusal
from model_repository import obey, write_model
from server_process import run_serve, serving, until
from stublet.parent import Server


def test_those_that_wait_are_executed_together(tmp_path: Path) -> None:
    with batched(tmp_path) as model:
        with model.busy() as first:
            others = [model.ask(name, rows=2) for name in "abcde"]
        assert company(first) == ["first"]
        assert [company(one) for one in others] == [[*"abcd"]] * 4 + [["e"]]
        stats = model.statistics()
        assert (stats["inference_count"], stats["execution_count"]) == (11, 3)
        assert [(one["batch_size"], one["compute_infer"]["count"]) for one in stats["batch_stats"]] == [(1, 1), (2, 1), (8, 1)]
        assert all(one["compute_infer"]["ns"] > 0 for one in stats["batch_stats"])
        assert all(part["ns"] >= 0 for part in stats["inference_stats"].values())
        assert stats["inference_stats"]["queue"]["ns"] > 0


def test_outputs_are_each_requests_own_and_one_error_is_nobody_elses(tmp_path: Path) -> None:
    with batched(tmp_path) as model:
        with model.busy():
            answers = [model.ask(str(value), value=value) for value in (1, 2, -3, 4)]
        assert [answer.result().json()["outputs"][1]["data"] for answer in answers if answer is not answers[2]] == [
            [v, v] for v in (1, 2, 4)
        ]
        assert refusal(answers[2]) == (500, "negative")


@pytest.mark.parametrize("ragged, expected", [("", [["a"], ["b"], ["c"]]), ("allow_ragged_batch: true", [[*"abc"]] * 3)])
def test_shapes(tmp_path: Path, ragged: str, expected: List[List[str]]) -> None:
    with batched(tmp_path, ragged=ragged) as model:
        with model.busy():
            answers = [model.ask(name, width=width) for name, width in (("a", 2), ("b", 3), ("c", 2))]
        assert [company(answer) for answer in answers] == expected


def test_a_delay_and_a_preferred_size(tmp_path: Path) -> None:
    with batched(tmp_path, "max_queue_delay_microseconds: 20000000 preferred_batch_size: [ 3 ]") as model:
        answers = [model.ask(name) for name in "abc"]
        assert [company(answer) for answer in answers] == [[*"abc"]] * 3


def test_a_delay_that_passes(tmp_path: Path) -> None:
    with batched(tmp_path, "max_queue_delay_microseconds: 300000") as model:
        answers = [model.ask(name) for name in "ab"]
        assert [company(answer) for answer in answers] == [[*"ab"]] * 2


def test_priorities(tmp_path: Path) -> None:
    with batched(tmp_path, "priority_levels: 3 default_priority_level: 2") as model:
        with model.busy():
            answers = [
                model.ask(name, rows=4, priority=priority) for name, priority in (("low", 3), ("none", 0), ("high", 1), ("lower", 3))
            ]
        assert [company(answer) for answer in answers] == [["low", "lower"], ["high", "none"], ["high", "none"], ["low", "lower"]]


def test_a_queue_that_is_full(tmp_path: Path) -> None:
    with batched(tmp_path, "default_queue_policy { max_queue_size: 2 }") as model:
        with model.busy():
            accepted = [model.ask(name) for name in "ab"]
            assert refusal(model.ask("c")) == (503, "[request id: c] Exceeds maximum queue size")
            assert refusal(model.ask()) == (503, "[request id: <id_unknown>] Exceeds maximum queue size")
        assert [company(one) for one in accepted] == [[*"ab"]] * 2
        stats = model.statistics()["inference_stats"]
        assert (stats["success"]["count"], stats["fail"]["count"]) == (3, 2)


def test_a_deadline_that_passes_in_the_queue(tmp_path: Path) -> None:
    with batched(tmp_path, "default_queue_policy { allow_timeout_override: true }") as model:
        with model.busy():
            patient = model.ask("patient")
            assert refusal(model.ask("hasty", timeout=20_000)) == (503, "[request id: hasty] Request timeout expired")
        assert company(patient) == ["patient"]


def test_order_is_preserved_across_instances(tmp_path: Path) -> None:
    with batched(tmp_path, "preserve_ordering: true preferred_batch_size: [ 1 ]", instances=2) as model:
        answers = [model.ask(str(number)) for number in range(20)]
        assert [company(answer) for answer in answers] == [[str(number)] for number in range(20)]


def test_an_instance_that_dies_with_a_batch(tmp_path: Path) -> None:
    with batched(tmp_path) as model:
        with model.busy() as first:
            others = [model.ask(name) for name in "ab"]
            (pid,) = model.server.stubs().values()
            os.kill(pid, signal.SIGKILL)
            assert first.result().status_code == 503
        assert [company(other) for other in others] == [["a", "b"]] * 2


def test_over_grpc(grpc_core: None, tmp_path: Path) -> None:
    config = CONFIG.format(
        section="max_queue_delay_microseconds: 5000000 preferred_batch_size: [ 2 ]", ragged="", instances=1, gate=tmp_path / "none"
    )
    write_model(tmp_path / "models", "company", COMPANY, config)
    with serving(tmp_path, tmp_path / "models", "--grpc-port", "0") as server, triton.InferenceServerClient(server.grpc_address) as client:
        asked = triton.InferInput("INPUT0", [1, 2], "FP32")
        asked.set_data_from_numpy(np.ones((1, 2), np.float32))
        done: List[Any] = []
        for name in "ab":
            client.async_infer("company", [asked], lambda result, error: done.append((result, error)), request_id=name)
        until(lambda: len(done) == 2, what="both answers")
        for result, error in done:
            assert error is None and sorted(json.loads(result.as_numpy("COMPANY")[0][0])) == ["a", "b"]


def test_requests_of_models_and_embedded(tmp_path: Path) -> None:
    section = "max_queue_delay_microseconds: 20000000 preferred_batch_size: [ 2 ]"
    write_model(tmp_path / "models", "company", COMPANY, CONFIG.format(section=section, ragged="", instances=1, gate=tmp_path / "none"))
    obey(tmp_path / "models")
    call = """
inputs = [pb_utils.Tensor("INPUT0", np.ones((1, 2), np.float32))]
answer = pb_utils.InferenceRequest("model", inputs=inputs, requested_output_names=[], model_name="company").exec()
result = answer.output_tensors()[0].as_numpy()[0][0].decode()
"""
    with Server(tmp_path / "models") as server, ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.infer, "obey", {"CODE": np.array([call], dtype=object)})
        mine = server.infer("company", {"INPUT0": np.ones((1, 2), np.float32)}, request_id="embedded", timeout=20)
        assert sorted(json.loads(mine["COMPANY"][0][0])) == sorted(json.loads(other.result(20)["RESULT"][0])) == ["embedded", "model"]


@pytest.mark.parametrize(
    "section, complaint",
    [
        ("preferred_batch_size: [ 9 ]", "dynamic batching preferred size must be <= max batch size for company"),
        ("preferred_batch_size: [ 0 ]", "dynamic batching preferred size must be positive for company"),
        ("priority_levels: 3", "default priority level must be in range [1, 3] for company"),
        ("priority_levels: 3 default_priority_level: 4", "default priority level must be in range [1, 3] for company"),
        (
            "priority_levels: 3 default_priority_level: 1 priority_queue_policy { key: 4 value { } }",
            "priority queue policy must have priority level in range [1, 3] for company",
        ),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "Only one priority level is allowed when 'preserve_ordering' is true for company",
        ),
        (
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for company",
        ),
    ],
)
def test_configurations_that_cannot_be(tmp_path: Path, section: str, complaint: str) -> None:
    config = CONFIG.format(section=section, ragged="", instances=1, gate="")
    write_model(tmp_path, "company", COMPANY, config)
    done = run_serve(str(tmp_path), "--http-port", "0", "--metrics-port", "0", "--grpc-port", "0")
    assert done.returncode == 1 and complaint in done.stderr
