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

ROOT = Path(__file__).parent.parent


class Benchmark(NamedTuple):
    """``tool``: what else has to be installed for it."""

    arguments: List[str]
    tool: str = ""


BENCHMARKS = [
    Benchmark(["stages", "--quick"]),
    Benchmark(["roundtrip", "--quick"]),
    Benchmark(["calls", "--quick", "--only", "is-cancelled,stream"]),
    Benchmark(["serve", "--quick", "--only", "small-4,shm-1M"], "wrk"),
    Benchmark(["grpc", "--quick", "--only", "small-4,large-16M-raw"], "h2load"),
]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.arguments[0])
def test_benchmark_runs(benchmark: Benchmark, tmp_path: Path) -> None:
    if benchmark.tool and shutil.which(benchmark.tool) is None:
        pytest.skip(f"{benchmark.tool} is not installed")
    command = [sys.executable, "-m", "benchmarks", *benchmark.arguments, "--output", str(tmp_path / "out.json")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * DEADLINE)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()
    assert json.loads((tmp_path / "out.json").read_text())["cases"]
