"""KServe's own clients, REST v2 and gRPC."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
from server_process import DEADLINE, ServerProcess

PROGRAM = Path(__file__).parent.parent / "kserve_client.py"
ADDED = {"OUTPUT0": [list(range(1, 17))], "OUTPUT1": [list(range(-1, 15))]}
MODELS = {"model ready": True, "other model ready": False}
UNKNOWN = "Request for unknown model: 'nope' is not found"


@pytest.fixture(scope="module")
def told(example_server: ServerProcess) -> Dict[str, Any]:
    """What the program was told."""
    command = [sys.executable, str(PROGRAM), f"http://{example_server.address}", example_server.grpc_address]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE)
    assert finished.returncode == 0, finished.stderr
    found: Dict[str, Any] = json.loads(finished.stdout)
    return found


def test_rest(told: Dict[str, Any], example_server: ServerProcess) -> None:
    url = f"http://{example_server.address}/v2/models/nope/infer"
    error = f"{UNKNOWN}, '404 Not Found' for url '{url}'"
    assert told["rest"] == {**MODELS, "JSON": ADDED, "binary": ADDED, "binary output": ADDED, "id": "7", "error": error}


def test_grpc(told: Dict[str, Any]) -> None:
    assert told["grpc"] == {
        "live": True,
        "ready": True,
        **MODELS,
        "typed": ADDED,
        "raw": ADDED,
        "id": "7",
        "error": f"NOT_FOUND: {UNKNOWN}",
    }
