"""Priorities and deadlines of requests, by every way to the server: who goes first, who is refused, and when (spec 5.4)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List

import httpx
import numpy as np
import tritonclient.grpc as triton
from batched import Batched, batched, company, refusal
from http_wire import infer, tensor
from model_repository import obey
from server_process import until

OVERRIDE = "allow_timeout_override: true"
EXPIRED = "Request timeout expired"


def passed(seconds: float) -> None:
    """Waits until so much time has passed."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, what="a moment")


def counted(model: Batched) -> List[int]:
    parts = model.statistics()["inference_stats"]
    return [parts["success"]["count"], parts["fail"]["count"]]


def test_a_deadline_that_passes_in_the_queue_is_kept_on_time(tmp_path: Path) -> None:
    with batched(tmp_path, f"default_queue_policy {{ {OVERRIDE} }}") as model:
        with model.busy():
            began = time.monotonic()
            answers = [model.ask(str(number), timeout=100_000 * number) for number in (3, 1, 2)]
            assert [refusal(answer) for answer in answers] == [(503, f"[request id: {number}] {EXPIRED}") for number in (3, 1, 2)]
            assert 0.3 <= time.monotonic() - began < 5  # the model is still busy
        assert counted(model) == [1, 3]


def test_the_default_deadline_and_a_request_that_wants_to_wait_longer(tmp_path: Path) -> None:
    with batched(tmp_path, f"default_queue_policy {{ {OVERRIDE} default_timeout_microseconds: 20000 }}") as model, model.busy():
        for timeout in (0, 60_000_000):
            assert refusal(model.ask("late", timeout=timeout)) == (503, f"[request id: late] {EXPIRED}")


def test_a_request_may_not_say_so_where_that_is_not_allowed(tmp_path: Path) -> None:
    with batched(tmp_path, "default_queue_policy { default_timeout_microseconds: 60000000 }") as model:
        with model.busy():
            answer = model.ask("hasty", timeout=1000)
            passed(0.05)
        assert company(answer) == ["hasty"]


def test_delay_keeps_those_who_are_late_behind_all_others(tmp_path: Path) -> None:
    levels = "priority_levels: 2 default_priority_level: 1"  # so that no batch is handed over while another is executed
    with batched(tmp_path, f"{levels} default_queue_policy {{ {OVERRIDE} timeout_action: DELAY }}") as model:
        with model.busy():
            late = model.ask("late", rows=4, timeout=1000)
            passed(0.05)
            others = [model.ask(name, rows=4) for name in "ab"]
        assert [company(other) for other in others] == [[*"ab"]] * 2 and company(late) == ["late"]
        assert counted(model) == [4, 0]


def test_a_deadline_that_passes_in_execution_is_no_failure(tmp_path: Path) -> None:
    """It is for the queue alone."""
    with batched(tmp_path, f"default_queue_policy {{ {OVERRIDE} }}") as model, ThreadPoolExecutor(1) as pool:
        model.gate.touch()
        body = {"id": "slow", "inputs": [tensor("INPUT0", "FP32", [1, 2], [1, 1])], "parameters": {"timeout": 300_000}}
        answer = pool.submit(httpx.post, f"http://{model.server.address}/v2/models/company/infer", json=body, timeout=30)
        until(Path(f"{model.gate}.begun").exists, what="the execution")
        passed(0.35)
        model.gate.unlink()
        assert company(answer) == ["slow"]


def test_each_level_has_its_own_policy(tmp_path: Path) -> None:
    section = """
    priority_levels: 2 default_priority_level: 2
    default_queue_policy { default_timeout_microseconds: 60000000 }
    priority_queue_policy { key: 1 value { max_queue_size: 1 allow_timeout_override: true } }
    """
    with batched(tmp_path, section) as model:
        with model.busy():
            low = [model.ask(f"low{number}", rows=4, timeout=1000) for number in range(3)]
            assert refusal(model.ask("hasty", priority=1, timeout=1000)) == (503, f"[request id: hasty] {EXPIRED}")
            high = model.ask("high", rows=4, priority=1)
            assert refusal(model.ask("more", priority=1)) == (503, "[request id: more] Exceeds maximum queue size")
        assert company(high) == company(low[0]) == ["high", "low0"] and company(low[1]) == company(low[2]) == ["low1", "low2"]
        assert counted(model) == [5, 2]


def test_over_grpc(grpc_core: None, tmp_path: Path) -> None:
    section = f"priority_levels: 3 default_priority_level: 2 default_queue_policy {{ {OVERRIDE} }}"
    with batched(tmp_path, section, arguments=["--grpc-port", "0"]) as model:
        with triton.InferenceServerClient(model.server.grpc_address) as client:
            asked = triton.InferInput("INPUT0", [4, 2], "FP32")
            asked.set_data_from_numpy(np.ones((4, 2), np.float32))
            done: List[Any] = []

            def ask(name: str, **parameters: Any) -> None:
                client.async_infer(
                    "company", [asked], lambda result, error: done.append((name, result, error)), request_id=name, **parameters
                )

            with model.busy():
                for waiting, (name, priority) in enumerate((("low", 3), ("none", 0), ("high", 1), ("lower", 3))):
                    ask(name, priority=priority)
                    until(lambda expected=waiting + 1: model.pending() == expected, what="the request's arrival")  # type: ignore[misc]
                ask("hasty", timeout=20_000)
                until(lambda: done, what="the refusal")
                ((name, _, error),) = done
                assert (name, error.status(), error.message()) == ("hasty", "StatusCode.UNAVAILABLE", f"[request id: hasty] {EXPIRED}")
            until(lambda: len(done) == 5, what="all answers")
            told = {name: result.as_numpy("COMPANY")[0][0].decode() for name, result, error in done if error is None}
        together = ['["high", "none"]', '["low", "lower"]']
        assert told == {"high": together[0], "none": together[0], "low": together[1], "lower": together[1]}


def test_of_a_request_that_a_model_makes(tmp_path: Path) -> None:
    obey(tmp_path / "models")
    call = """
inputs = [pb_utils.Tensor("INPUT0", np.ones((1, 2), np.float32))]
request = pb_utils.InferenceRequest("mine", inputs=inputs, requested_output_names=[], model_name="company", timeout=5)
result = request.exec().error().message()
"""
    with batched(tmp_path, f"default_queue_policy {{ {OVERRIDE} }}") as model, model.busy(), model.server.wire() as wire:
        answer = wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [call])]}))
        assert answer.json()["outputs"][0]["data"] == [f"[request id: mine] {EXPIRED}"]


def test_what_is_no_priority_or_deadline(tmp_path: Path) -> None:
    wrong: List[Dict[str, Any]] = [{"priority": -1}, {"priority": "high"}, {"timeout": -5}, {"timeout": 1.5}]
    with batched(tmp_path) as model:
        for parameters in wrong:
            status, error = refusal(model.ask("x", **parameters))
            assert status == 400 and next(iter(parameters)) in error
