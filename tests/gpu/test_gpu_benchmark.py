"""The benchmark of GPUs runs; what it measures is not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_benchmarks import run_benchmark

pytestmark = pytest.mark.gpu


def test_the_benchmark_runs(gpu: None, tmp_path: Path) -> None:
    finished = run_benchmark("gpu", "--quick", "--output", str(tmp_path / "out.json"))
    assert finished.returncode == 0, finished.stderr
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert {"bls 4 KiB", "bls 16 MiB", "stage 16 MiB"} <= cases.keys()
