"""What clients are told of errors in models and in their files: messages, but no frames and no paths, unless ``--expose-tracebacks``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest
from grpc_client import Client, failure, pb
from grpc_client import infer as grpc_infer
from http_wire import infer, request, tensor
from model_repository import ECHO, ECHO_CONFIG, obey, write_model
from mortal import Mortals, error_of, mortal, result_of
from server_process import ServerProcess, serving, until

BROKEN = ECHO.replace("def execute", "def initialize(self, args):\n        raise ValueError('no weights')\n\n    def execute")
MODELS = {
    "raises": (BROKEN, ECHO_CONFIG, "ValueError: no weights"),
    "no_syntax": ("def (:\n", ECHO_CONFIG, "SyntaxError: invalid syntax"),
    "no_class": ("x = 1\n", ECHO_CONFIG, "the class TritonPythonModel is missing in 'model.py'"),
    "no_config": (ECHO, "nonsense: 1", 'no_config/config.pbtxt:2:1: Message type "inference.ModelConfig" has no field named "nonsense".'),
}
"""Code, configuration, and what a client is told of it."""


def serve(root: Path, *arguments: str) -> Iterator[ServerProcess]:
    obey(root / "models")
    for name, (code, config, _) in MODELS.items():
        write_model(root / "models", name, code, config)
    mortal(root / "models", "lost")
    options = ["--model-control-mode=explicit", "--load-model=obey", "--grpc-port", "0", *arguments]
    with serving(root, root / "models", *options, tracebacks=True) as server:
        yield server


@pytest.fixture(scope="module")
def discreet(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from serve(tmp_path_factory.mktemp("discreet"))


@pytest.fixture(scope="module")
def frank(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from serve(tmp_path_factory.mktemp("frank"), "--expose-tracebacks")


def load_errors(server: ServerProcess, name: str) -> List[str]:
    """What is told of a model that does not load: by both protocols, and by both indices."""
    with server.wire() as wire, Client(server.grpc_address) as client:
        texts = [wire.ask(request("POST", f"/v2/repository/models/{name}/load")).error]
        texts.append(failure(client.stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=name)))
        rows: List[Dict[str, str]] = wire.ask(request("POST", "/v2/repository/index")).json()
        texts += [row["reason"] for row in rows if row["name"] == name]
        texts += [row.reason for row in client.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models if row.name == name]
    assert len(texts) == 4
    return texts


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_does_not_load(discreet: ServerProcess, name: str) -> None:
    for text in load_errors(discreet, name):
        assert MODELS[name][2].rpartition("/")[2] in text
        assert "At:" not in text and "File" not in text and "/models" not in text and "\n" not in text


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_does_not_load_with_all_that_is_known(frank: ServerProcess, name: str) -> None:
    for text in load_errors(frank, name):
        assert str(Path("models") / name) in text
    if name == "raises":
        assert all("ValueError: no weights\n\nAt:\n" in text and "): initialize" in text for text in load_errors(frank, name))


def test_the_log_has_it_all(discreet: ServerProcess) -> None:
    load_errors(discreet, "raises")
    assert "in initialize\n" in discreet.log and "models/raises/1/model.py" in discreet.log


def execute(server: ServerProcess, code: str) -> List[str]:
    """What both protocols tell of the failure of that."""
    document: Any = {"inputs": [tensor("CODE", "BYTES", [1], [code])]}
    with server.wire() as wire, Client(server.grpc_address) as client:
        over_grpc = failure(client.infer, grpc_infer("obey", {"CODE": np.array([code], object)}))
        return [wire.ask(infer("obey", document)).error, over_grpc.partition(": ")[2]]


FAILED = "Failed to process the request(s) for model 'obey_0_0', message: "


def test_an_exception_in_execute(discreet: ServerProcess, frank: ServerProcess) -> None:
    text = FAILED + "FileNotFoundError: [Errno 2] No such file or directory: '/etc/no/such'"
    code = "open('/etc/no/such')"
    assert execute(discreet, code) == [text, text]
    for told in execute(frank, code):
        first, _, frames = told.partition("\n\nAt:\n")
        assert first == text and frames.endswith("): execute") and "/models/obey/1/model.py(" in frames


def test_an_error_that_is_the_models_own(discreet: ServerProcess, frank: ServerProcess) -> None:
    code = "returned = [pb_utils.InferenceResponse(error=pb_utils.TritonError('see /srv/help'))]"
    assert execute(discreet, code) == execute(frank, code) == ["see /srv/help"] * 2


@pytest.mark.parametrize("which", ["discreet", "frank"])
def test_an_instance_that_cannot_be_started_again(which: str, discreet: ServerProcess, frank: ServerProcess, tmp_path: Path) -> None:
    """Its file is gone: where that should be, whoever asks the model is told with ``--expose-tracebacks`` only, and the log always is."""
    server = frank if which == "frank" else discreet
    with Mortals(server, tmp_path / "gate") as mortals:
        mortals.load("lost")
        path = Path(result_of(mortals.ask("lost", "result = sys.modules[type(model).__module__].__file__")))
        path.unlink()
        mortals.kill("lost")
        text = until(lambda: "not found" in (answer := mortals.ask("lost")).text and error_of(answer))
        assert (str(path) in text) == (which == "frank") and "model.py" in text
        assert re.search(f"instance 'lost_0_0' did not load: .* not found in '{path}'", server.log)
        mortals.unload("lost")  # else it is tried again and again
