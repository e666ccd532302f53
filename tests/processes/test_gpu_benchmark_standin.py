"""The benchmark of GPUs takes the ways that it says it measures; how long they take over a stand-in is not looked at."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest
from stublet.parent import Server, devices

TESTS = Path(__file__).parents[1]

STANDIN = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from standin_cuda import StandinCuda
from stublet.stub.cuda import devices as standin_devices
standin_devices.attach(StandinCuda().driver())
"""


def test_the_models_that_hand_over_on_a_gpu_standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (TESTS.parent / "benchmarks" / "gpu_models").iterdir():
        shutil.copytree(model, tmp_path / model.name, ignore=shutil.ignore_patterns("__pycache__"))
        config, python = tmp_path / model.name / "config.pbtxt", tmp_path / model.name / "1" / "model.py"
        config.write_text(config.read_text().replace("kind: KIND_GPU count: 1 gpus: [ 0 ]", "kind: KIND_CPU count: 1"))
        python.write_text(STANDIN + python.read_text())
    monkeypatch.setattr(devices, "CHECK", (sys.executable, str(TESTS / "standin_check.py")))
    monkeypatch.syspath_prepend(str(TESTS.parent))
    measure = importlib.import_module("benchmarks.gpu").measure
    with Server(tmp_path) as server:
        samples = measure(server, 1 << 20, 2)
    assert {side: len(found) for side, found in samples.items()} == {"device": 2, "host": 2, "copy": 2, "copies": 2}
