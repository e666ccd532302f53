"""Tests that need a GPU and its driver. Without one they are skipped, and say why; with REQUIRE_GPU=1 in the environment they fail.

The process of the tests never uses the GPU itself: what does is a program, or a model.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import uvloop
from stublet.shm.cuda import list_devices


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """There is one; otherwise nothing here is run."""
    looked = subprocess.run([sys.executable, list_devices.__file__], capture_output=True, text=True, timeout=60, check=False)
    if looked.stdout and not looked.returncode:
        return
    missing = looked.stderr.strip().splitlines()[-1] if looked.stderr else "the driver sees no GPU"
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, but {missing}")
    pytest.skip(missing)


@pytest.fixture(scope="session", autouse=True)
def libuv(gpu: None) -> None:
    """libuv makes a pipe with the first loop of a process and keeps it; no test should be charged with it."""
    uvloop.new_event_loop().close()
