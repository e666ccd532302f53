"""The programs that look at GPUs so that the server need not: run by path, with whatever is set."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
from stublet.shm.cuda import check, check_region, list_devices


@pytest.mark.parametrize(
    "program, given", [(check, "00 00 00\n"), (check_region, "0 1 00\n"), (list_devices, "")], ids=["check", "check_region", "list_devices"]
)
def test_they_find_their_module_where_the_directory_of_a_program_is_not_trusted(program: ModuleType, given: str) -> None:
    assert program.__file__ is not None
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, program.__file__], input=given, capture_output=True, text=True, env=environment, check=False)
    assert "no CUDA driver" in done.stdout + done.stderr or "CUDA_ERROR" in done.stdout + done.stderr
