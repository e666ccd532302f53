"""A short form of ``scripts/chaos``; the seed of a failure is in what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 15


def test_stubs_may_die_as_they_like(tmp_path: Path) -> None:
    # A process of its own: tritonclient keeps an event loop for each thread that it was used in.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "chaos", "--seconds", str(SECONDS)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
