"""What the README tells a newcomer to type does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List

import pytest
from server_process import DEADLINE, ServerProcess, serving

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    only = ("--model-control-mode", "explicit", "--load-model", "add_sub")
    with serving(tmp_path_factory.mktemp("readme"), ROOT / "examples" / "models", *only) as server:
        yield server


def told(start: str) -> List[str]:
    """The blocks of code, and the lines of several commands, that begin so."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [text for block in blocks for text in (block.splitlines() if block.startswith("stublet") else [block]) if text.startswith(start)]


def run(server: ServerProcess, *command: str) -> str:
    """What it prints; the server of the README is at its usual port."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = [word.replace("localhost:8000", server.address) for word in command]
    finished = subprocess.run(given, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=DEADLINE)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_curl(server: ServerProcess) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    infer, generate = (json.loads(run(server, "sh", "-c", command.replace("curl ", "curl -sS ", 1))) for command in told("curl "))
    assert [output["data"] for output in infer["outputs"]] == [[11, 22, 33, 44], [-9, -18, -27, -36]]
    assert (generate["OUTPUT0"], generate["OUTPUT1"]) == ([11, 22, 33, 44], [-9, -18, -27, -36])


def test_python(server: ServerProcess) -> None:
    client, embedded = (run(server, sys.executable, "-c", code) for code in told("import "))
    assert client == "[0. 2. 4. 6.]\n"
    assert embedded == "[2. 2. 2. 2.]\n"


def test_command_line(server: ServerProcess) -> None:
    (infer,) = told("stublet infer ")
    assert "[11., 22., 33., 44.]" in run(server, "sh", "-c", infer)
    (ps,) = told("stublet ps ")
    assert "add_sub_0_0" in run(server, "sh", "-c", ps.replace(" --watch", ""))
