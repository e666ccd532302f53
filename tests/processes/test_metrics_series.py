"""Every metric of the server at its port: its name, kind, labels and value after known requests (spec 7)."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from http_wire import Wire, infer, request, tensor
from model_repository import copy_model, obey
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, run_serve, serving, until

BATCH_ITEMS = 2
SUCCESSES, FAILURES = 3, 1
BUCKETS = 'model_metrics { metric_control { metric_identifier { family: "nv_inference_first_response_histogram_ms" } histogram_options { buckets: [ 0.5, 60000 ] } } }\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Everything is on; ``obey`` was asked three times, and failed once."""
    root = tmp_path_factory.mktemp("models")
    obey(root)
    obey(root, "maker")
    copy_model(root, "add_sub", extra=BUCKETS)
    arguments = [
        "--metrics-interval-ms",
        "20",
        "--metrics-config",
        "summary_latencies=true",
        "--metrics-config",
        "histogram_latencies=true",
    ]
    arguments += ["--metrics-config", "summary_quantiles=0.5:0.05,0.9:0.01"]
    with serving(tmp_path_factory.mktemp("server"), root, *arguments, tracebacks=True) as server:
        with server.wire() as wire:
            for code in ["time.sleep(0.01)"] * SUCCESSES + ["raise ValueError('no')"] * FAILURES:
                wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], ["import time\n" + code])]}))
        yield server


def text_of(server: ServerProcess) -> str:
    with Wire(server.metrics_port) as wire:
        answer = wire.ask(request("GET", "/metrics"))
    assert answer.status == 200
    return answer.body.decode()


def families(server: ServerProcess) -> Dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text_of(server))}


Labels = Dict[str, str]
OBEY: Labels = {"model": "obey", "version": "1"}


def above(least: float) -> Callable[[float], bool]:
    return lambda value: value > least


def equal(expected: float) -> Callable[[float], bool]:
    return lambda value: value == expected


MICROSECONDS = 10_000 * SUCCESSES
SERIES: List[Tuple[str, str, Labels, Callable[[float], bool]]] = [
    ("nv_inference_request_success", "counter", OBEY, equal(SUCCESSES)),
    *[
        ("nv_inference_request_failure", "counter", {**OBEY, "reason": reason}, equal(FAILURES if reason == "BACKEND" else 0))
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    ],
    ("nv_inference_count", "counter", OBEY, equal(SUCCESSES)),
    ("nv_inference_exec_count", "counter", OBEY, equal(SUCCESSES + FAILURES)),
    ("nv_inference_pending_request_count", "gauge", OBEY, equal(0)),
    ("nv_inference_request_duration_us", "counter", OBEY, above(MICROSECONDS)),
    ("nv_inference_queue_duration_us", "counter", OBEY, above(-1)),
    ("nv_inference_compute_input_duration_us", "counter", OBEY, equal(0)),
    ("nv_inference_compute_infer_duration_us", "counter", OBEY, above(MICROSECONDS)),
    ("nv_inference_compute_output_duration_us", "counter", OBEY, above(0)),
    *[
        sample
        for part, least in (("request", 9900), ("queue", -1), ("compute_input", -1), ("compute_infer", 9900), ("compute_output", 0))
        for sample in (
            (f"nv_inference_{part}_summary_us", "summary", {**OBEY, "quantile": "0.5"}, above(least)),
            (f"nv_inference_{part}_summary_us", "summary", {**OBEY, "quantile": "0.9"}, above(least)),
            (f"nv_inference_{part}_summary_us_count", "summary", OBEY, equal(SUCCESSES)),
            (f"nv_inference_{part}_summary_us_sum", "summary", OBEY, above(least * SUCCESSES)),
        )
    ],
    ("nv_inference_first_response_histogram_ms_bucket", "histogram", {**OBEY, "le": "+Inf"}, equal(SUCCESSES)),
    ("nv_inference_first_response_histogram_ms_bucket", "histogram", {**OBEY, "le": "5000"}, equal(SUCCESSES)),
    ("nv_inference_first_response_histogram_ms_count", "histogram", OBEY, equal(SUCCESSES)),
    ("nv_inference_first_response_histogram_ms_sum", "histogram", OBEY, above(10 * SUCCESSES)),
    ("nv_inference_first_response_histogram_ms_bucket", "histogram", {"model": "add_sub", "version": "1", "le": "0.5"}, equal(0)),
    ("nv_inference_first_response_histogram_ms_bucket", "histogram", {"model": "add_sub", "version": "1", "le": "60000"}, equal(0)),
    ("nv_cpu_memory_total_bytes", "gauge", {}, equal(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))),
    ("nv_cpu_memory_used_bytes", "gauge", {}, above(1 << 20)),
    ("nv_pinned_memory_pool_total_bytes", "gauge", {}, equal(0)),
    ("nv_pinned_memory_pool_used_bytes", "gauge", {}, equal(0)),
    ("stublet_start_time_seconds", "gauge", {}, lambda value: 0 < time.time() - value < 600),
    ("stublet_instance_up", "gauge", {**OBEY, "instance": "obey_0_0"}, equal(1)),
    ("stublet_instance_start_time_seconds", "gauge", {**OBEY, "instance": "obey_0_0"}, lambda value: 0 < time.time() - value < 600),
    ("stublet_shared_memory_capacity_bytes", "gauge", {**OBEY, "arena": "inputs"}, equal(1 << 20)),
    ("stublet_shared_memory_capacity_bytes", "gauge", {**OBEY, "arena": "outputs"}, equal(1 << 20)),
    ("stublet_shared_memory_used_bytes", "gauge", {**OBEY, "arena": "inputs"}, equal(0)),
    ("stublet_ring_round_trip_seconds_count", "summary", OBEY, equal(SUCCESSES + FAILURES)),
    ("stublet_ring_round_trip_seconds_sum", "summary", OBEY, above(0)),
]


@pytest.mark.parametrize("name, kind, labels, holds", SERIES, ids=[f"{name} {' '.join(labels.values())}" for name, _, labels, _ in SERIES])
def test_each_series(server: ServerProcess, name: str, kind: str, labels: Labels, holds: Callable[[float], bool]) -> None:
    found = [
        (family.type, sample.value)
        for family in families(server).values()
        for sample in family.samples
        # The parser appends _total to the names of counters, which Triton, and so this server, does not.
        if sample.name in (name, f"{name}_total") and sample.labels == labels
    ]
    ((found_kind, value),) = found
    assert found_kind == kind and holds(value), value


def test_the_processors_are_busy_in_part(server: ServerProcess) -> None:
    """Some of the time, while this test keeps asking."""

    def some() -> bool:
        (sample,) = families(server)["nv_cpu_utilization"].samples
        assert 0 <= sample.value <= 1 and sample.labels == {}
        return bool(sample.value > 0)

    until(some)


def test_the_text_is_as_triton_writes_it(server: ServerProcess) -> None:
    text = text_of(server)
    for line in (
        "# HELP nv_inference_request_success Number of successful inference requests, all batch sizes",
        "# TYPE nv_inference_request_success counter",
        'nv_inference_request_success{model="obey",version="1"} 3',
        'nv_inference_request_failure{model="obey",reason="BACKEND",version="1"} 1',
        'nv_inference_first_response_histogram_ms_bucket{model="obey",version="1",le="5000"} 3',
        'nv_inference_first_response_histogram_ms_bucket{model="add_sub",version="1",le="60000"} 0',
        'nv_inference_request_summary_us_count{model="add_sub",version="1"} 0',
        'nv_inference_request_summary_us{model="add_sub",version="1",quantile="0.5"} NaN',
    ):
        assert line in text.splitlines()
    assert not re.search(r"^nv_\w+_total{", text, re.MULTILINE) and not re.search(r"\.0$", text, re.MULTILINE)


def test_no_family_comes_twice(server: ServerProcess) -> None:
    names = re.findall(r"^# TYPE (\S+)", text_of(server), re.MULTILINE)
    assert len(names) == len(set(names))


def test_a_model_cannot_take_a_name_of_the_servers(server: ServerProcess) -> None:
    family = 'pb_utils.MetricFamily("nv_inference_count", "", pb_utils.MetricFamily.GAUGE)'
    code = f"try: {family}\nexcept pb_utils.TritonModelException as error: result = str(error)"
    with server.wire() as wire:
        answer = wire.ask(infer("maker", {"inputs": [tensor("CODE", "BYTES", [1], [code])]}))
    assert answer.json()["outputs"][0]["data"][0].endswith("'nv_inference_count' is a metric of the server's")


def value_of(server: ServerProcess, name: str, labels: Labels) -> Optional[float]:
    """None if there is no such series."""
    found = [
        sample.value for family in families(server).values() for sample in family.samples if sample.name == name and sample.labels == labels
    ]
    return found[0] if found else None


def test_an_instance_that_dies_is_down_until_its_model_is_loaded_again(repository: Path, serve: Any) -> None:
    obey(repository, instances=2, restart_limit="0")
    server = serve("--model-control-mode", "explicit", "--load-model", "obey")
    first, second = ({**OBEY, "instance": f"obey_0_{number}"} for number in range(2))
    started = value_of(server, "stublet_instance_start_time_seconds", first)
    os.kill(server.stubs()["obey_0_0"], signal.SIGKILL)
    until(lambda: value_of(server, "stublet_instance_up", first) == 0)
    assert value_of(server, "stublet_instance_start_time_seconds", first) is None
    assert value_of(server, "stublet_instance_up", second) == 1
    with server.wire() as wire:
        assert wire.ask(request("POST", "/v2/repository/models/obey/load")).status == 200
    again = value_of(server, "stublet_instance_start_time_seconds", first)
    assert value_of(server, "stublet_instance_up", first) == 1 and started is not None and again is not None and again > started
    server.stop()


def test_shared_memory_is_in_use_while_a_request_is(repository: Path, serve: Any, tmp_path: Path) -> None:
    obey(repository)
    server = serve()
    inputs = {**OBEY, "arena": "inputs"}
    capacity = value_of(server, "stublet_shared_memory_capacity_bytes", inputs)
    gate = tmp_path / "gate"
    code = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.005)\n#" + "x" * (3 << 20)
    with server.wire() as wire:
        wire.send(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]}))
        until(lambda: (value_of(server, "stublet_shared_memory_used_bytes", inputs) or 0) >= 3 << 20)
        grown = value_of(server, "stublet_shared_memory_capacity_bytes", inputs)
        assert capacity is not None and grown is not None and grown >= capacity + (2 << 20)
        gate.touch()
        assert wire.answer().status == 200
    until(lambda: value_of(server, "stublet_shared_memory_used_bytes", inputs) == 0)
    server.stop()


def test_the_ring_round_trip_leaves_out_the_time_in_execute(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    with server.wire() as wire:
        for _ in range(2):
            assert wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], ["import time; time.sleep(0.05)"])]})).status == 200
    seconds = value_of(server, "stublet_ring_round_trip_seconds_sum", OBEY)
    infer_us = value_of(server, "nv_inference_compute_infer_duration_us_total", OBEY)
    assert seconds is not None and infer_us is not None
    # The counter is cut to whole microseconds.
    assert 0 < seconds <= (infer_us + 1) / 1e6 - 2 * 0.05
    server.stop()


def test_what_is_off_is_absent(repository: Path, serve: Any) -> None:
    copy_model(repository, "add_sub")
    server = serve("--metrics-config", "counter_latencies=false", "--allow-cpu-metrics=false", "--allow-gpu-metrics=false")
    names = set(families(server))
    assert {"nv_inference_request_success", "nv_inference_count", "stublet_instance_up"} <= names
    assert not any(re.search(r"duration|summary|histogram|nv_cpu|nv_gpu", name) for name in names)
    server.stop()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--metrics-config", "summary_latency=true"], "--metrics-config: unknown key 'summary_latency'; did you mean summary_latencies?"),
        (["--metrics-interval-ms", "0"], "--metrics-interval-ms"),
    ],
)
def test_wrong_options(repository: Path, arguments: List[str], complaint: str) -> None:
    ended = run_serve(str(repository), *arguments)
    assert ended.returncode == 2 and complaint in " ".join(ended.stderr.split())
