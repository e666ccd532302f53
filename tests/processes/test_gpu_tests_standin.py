"""The tests for a GPU are sound, so far as they need no library that computes on one: they pass where the whole machine's GPU is a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import DEADLINE

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "what",
    [
        "test_driver.py",
        "test_cuda_shared_memory.py::test_regions_of_a_client",
        "test_libraries.py::test_much[1]",
        "test_libraries.py::test_an_instance_that_sees_its_own_gpu_only",
        "test_flows.py::TestFlows::test_a_tensor_goes_to_another_model_on_the_gpu",
    ],
)
def test_a_test_for_a_gpu_passes_standin(what: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS / "gpu" / what)]
    env = {**os.environ, "PYTHONPATH": str(TESTS / "standin_machine"), "REQUIRE_GPU": "1"}
    done = subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True, timeout=4 * DEADLINE, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout
