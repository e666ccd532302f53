"""The benchmarks run, and find their answers right; what they measure is not looked at."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, NamedTuple

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
