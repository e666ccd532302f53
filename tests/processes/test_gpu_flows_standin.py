"""What tensors on GPUs do between models (``gpu_flows``), over a stand-in for the driver."""

from __future__ import annotations

from pathlib import Path

from gpu_flows import Flows

TESTS = Path(__file__).parents[1]


class TestFlowsStandin(Flows):
    gpu = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from standin_cuda import StandinCuda
from stublet.stub.cuda import devices
devices.attach(StandinCuda(devices=1).driver())
"""
    check = TESTS / "standin_check.py"
