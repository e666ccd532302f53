"""The benchmark of GPUs takes the ways that it says it measures; how long they take over a stand-in is not looked at."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from stublet.parent import Server, devices
from stublet.parent.placement import gpus

TESTS = Path(__file__).parents[1]

STANDIN = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from standin_cuda import StandinCuda
from stublet.stub.cuda import devices as standin_devices
standin_devices.attach(StandinCuda().driver())
"""


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with models that use the stand-in."""
    for model in (TESTS.parent / "benchmarks" / "gpu_models").iterdir():
        shutil.copytree(model, tmp_path / model.name, ignore=shutil.ignore_patterns("__pycache__"))
        config, python = tmp_path / model.name / "config.pbtxt", tmp_path / model.name / "1" / "model.py"
        config.write_text(config.read_text().replace("kind: KIND_GPU count: 1 gpus: [ 0 ]", "kind: KIND_CPU count: 1"))
        python.write_text(STANDIN + python.read_text())
    monkeypatch.setattr(devices, "CHECK", (sys.executable, str(TESTS / "standin_check.py")))
    monkeypatch.syspath_prepend(str(TESTS.parent))
    module = importlib.import_module("benchmarks.gpu")
    monkeypatch.setattr(module, "MODELS", tmp_path)
    return module


def test_the_models_that_hand_over_on_a_gpu_standin(benchmark: Any) -> None:
    with Server(benchmark.MODELS) as server:
        samples = benchmark.measure(server, 1 << 20, 2)
    assert {side: len(found) for side, found in samples.items()} == {"device": 2, "host": 2, "copy": 2, "copies": 2}


@pytest.mark.parametrize("beside", [None, [[1000, 2000], [3000]]])
def test_the_whole_benchmark_standin(
    benchmark: Any, beside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``beside``: what a program with torch said, if that is installed."""
    monkeypatch.setattr(gpus, "supported_gpus", lambda: (0,))
    monkeypatch.setattr(benchmark, "find_spec", lambda name: beside)
    monkeypatch.setattr(benchmark, "SIZES", {"4 KiB": 4 << 10, "64 KiB": 64 << 10})
    monkeypatch.setattr(benchmark, "_torch", lambda sizes: beside)
    monkeypatch.setattr(benchmark, "_said", lambda *command: command[0])
    output = tmp_path / "out.json"
    benchmark.run(argparse.Namespace(rounds=2, quick=False, commit="abc", output=output))
    written = json.loads(output.read_text())
    kinds = ["bls", "stage"] if beside is None else ["bls", "stage", "queues"]
    assert list(written["cases"]) == [f"{kind} {size}" for kind in kinds for size in ("4 KiB", "64 KiB")]
    assert written["options"] == {"rounds": 2, "gpu": "nvidia-smi", "commit": "abc"}
    claims = [claim["text"] for claim in written["claims"]]
    assert claims[0] == "4 KiB in less than 150 microseconds" and len(claims) == len(kinds)
    assert claims[0] in capsys.readouterr().out
