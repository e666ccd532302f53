"""The examples that need a GPU run as they stand, where what they need is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import pytest
from server_process import DEADLINE, ServerProcess
from test_examples import EXAMPLES, run_client

from .libraries import needs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "model, modules, options",
    [
        ("gpu_pipeline/edges_bls", ("cupy", "torch"), ()),
        ("cuda_shared_memory/double", ("cupy", "cuda.bindings.runtime"), ("--allow-client-shm=true",)),
    ],
)
def test_an_example_checks_out(gpu: None, tmp_path: Path, model: str, modules: Sequence[str], options: Sequence[str]) -> None:
    needs(*modules)
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
