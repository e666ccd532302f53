"""The benchmarks run, and find their answers right; what they measure is not looked at."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple

import pytest
from server_process import DEADLINE
from stublet.parent.placement.gpus import supported_gpus

ROOT = Path(__file__).parent.parent


class Benchmark(NamedTuple):
    """``tool``: what else has to be installed for it."""

    arguments: List[str]
    tool: str = ""


BENCHMARKS = [
    Benchmark(["stages", "--quick"]),
    Benchmark(["roundtrip", "--quick"]),
    Benchmark(["overload", "--quick"]),
    Benchmark(["recovery", "--quick"]),
    Benchmark(["calls", "--quick", "--only", "is-cancelled,stream,stream-grpc"]),
    Benchmark(["serve", "--quick", "--only", "small-4,batch-concatenated,ensemble-small-4,shm-1M"], "wrk"),
    Benchmark(["grpc", "--quick", "--only", "small-4,large-16M-raw,shm-1M"], "h2load"),
    Benchmark(["grpc", "--quick", "--only", "large-16M-perf-1", "--perf-analyzer", "perf_analyzer"], "perf_analyzer"),
]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.arguments[0])
def test_benchmark_runs(benchmark: Benchmark, tmp_path: Path) -> None:
    if benchmark.tool and shutil.which(benchmark.tool) is None:
        pytest.skip(f"{benchmark.tool} is not installed")
    finished = run_benchmark(*benchmark.arguments, "--output", str(tmp_path / "out.json"))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()
    assert json.loads((tmp_path / "out.json").read_text())["cases"]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["grpc", "--only", "large-16M-perf-4"], "large-16M-perf-4: only with --perf-analyzer\nbenchmarks: nothing was measured\n"),
        (["grpc", "--perf-analyzer", "/nowhere"], "benchmarks: there is no perf_analyzer at '/nowhere' (PyPI: perf-analyzer)\n"),
        (["grpc", "--only", "medium"], "benchmarks: no case 'medium'; there are small-1, "),
    ],
    ids=["without its option", "no such tool", "no such case"],
)
def test_what_cannot_be_measured(arguments: List[str], complaint: str, tmp_path: Path) -> None:
    finished = run_benchmark(*arguments, "--output", str(tmp_path / "out.json"))
    assert finished.returncode == 1 and finished.stderr.startswith(complaint)


def run_benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * DEADLINE)


def test_without_a_gpu_nothing_is_said_of_one(tmp_path: Path) -> None:
    if supported_gpus():
        pytest.skip("this machine has a GPU: tests/gpu runs the benchmark")
    finished = run_benchmark("gpu", "--quick", "--output", str(tmp_path / "out.json"))
    assert finished.returncode == 1 and finished.stderr.startswith("benchmarks: there is no GPU on this machine that stublet can use")
    assert not (tmp_path / "out.json").exists()


def measured(
    device: float = 100.0, host: float = 50_000.0, copy: float = 3000.0, torch: float = 600.0, much: float = 600.0
) -> Dict[str, Dict[str, Dict[str, float]]]:
    """Medians as the benchmark of GPUs has them. ``device``: microseconds for 4 KiB, ``much`` for 1 GiB, of which its copy takes 500.
    ``copy``: GB/s, of 4000 that the device can do."""
    handed = {"4 KiB": device, "64 MiB": device + 50, "1 GiB": much}
    copies = {"4 KiB": 10.0, "64 MiB": 50.0, "1 GiB": 500.0}
    found: Dict[str, Dict[str, Dict[str, float]]] = {}
    for size, took in handed.items():
        found[f"bls {size}"] = {"device": {"p50_us": took}, "host": {"p50_us": host}}
        found[f"stage {size}"] = {"copy": {"p50_us": copies[size], "gb_per_s": copy}, "copies": {"gb_per_s": 4000.0}}
        found[f"queues {size}"] = {"device": {"p50_us": took}, "torch": {"p50_us": torch + took}}
    return found


@pytest.mark.parametrize(
    "different, broken",
    [
        ({}, ""),
        ({"host": 2000.0}, "64 MiB"),
        ({"copy": 2799.0}, "1 GiB"),
        ({"device": 160.0}, "4 KiB"),
        ({"much": 800.0}, "without the copy"),
        ({"torch": -1.0}, "torch.multiprocessing"),
    ],
)
def test_what_is_said_of_what_a_gpu_does(monkeypatch: pytest.MonkeyPatch, different: Dict[str, float], broken: str) -> None:
    monkeypatch.syspath_prepend(ROOT)
    claims = importlib.import_module("benchmarks.gpu_claims").judge(measured(**different))
    assert len(claims) == 5
    wrong = [claim.text for claim in claims if not claim.holds]
    assert (len(wrong) == 1 and broken in wrong[0]) if broken else not wrong


def test_nothing_is_said_of_what_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    medians = {case: sides for case, sides in measured().items() if case.endswith("4 KiB") and not case.startswith("queues")}
    assert [claim.text for claim in importlib.import_module("benchmarks.gpu_claims").judge(medians)] == [
        "4 KiB in less than 150 microseconds"
    ]
