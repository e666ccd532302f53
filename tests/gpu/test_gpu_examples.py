"""The examples that need a GPU run as they stand, where what they need is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Sequence

import pytest
from server_process import DEADLINE, ServerProcess
from test_examples import EXAMPLES, run_client

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "model, modules, options",
    [
        ("gpu_pipeline/edges_bls", ("cupy", "torch"), ()),
        ("cuda_shared_memory/double", ("cupy", "cuda"), ("--allow-client-shm=true",)),
    ],
)
def test_an_example_checks_out(gpu: None, tmp_path: Path, model: str, modules: Sequence[str], options: Sequence[str]) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        pytest.skip(f"examples/{model} needs {', '.join(missing)}, which is not installed (see its requirements.txt)")
    client = EXAMPLES / model / "client.py"
    server = ServerProcess(tmp_path, client.parents[1], *options)
    try:
        server.start(4 * DEADLINE)
        assert run_client(client, server) == ""
        if "pipeline" in model:
            assert "GREY comes in device memory" in server.log and "host memory" not in server.log
        server.stop()
    finally:
        server.cleanup()
