"""How models are imported, in a server: spec 2.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
from stublet.parent import Server
from stublet.parent.instance import LoadFailed
from stublet.parent.options import ServerOptions

CONFIG = """
input { name: "INPUT0" data_type: TYPE_FP32 dims: [1] }
output { name: "OUTPUT0" data_type: TYPE_STRING dims: [1] }
"""

MODEL = """
import os, sys
import numpy as np
import triton_python_backend_utils as pb_utils
{imports}

class TritonPythonModel:
    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", np.array([str({value})], object))]) for _ in requests]
"""


def model(value: str, imports: str = "") -> str:
    """A model that answers the text of an expression."""
    return MODEL.format(imports=imports, value=value)


def write(directory: Path, files: Dict[str, str]) -> None:
    for file, text in files.items():
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def ask(server: Server, name: str) -> str:
    (answer,) = server.infer(name, {"INPUT0": np.zeros(1, np.float32)})["OUTPUT0"]
    return bytes(answer).decode()


def test_models_with_helpers_of_the_same_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(
            tmp_path / name,
            {
                "config.pbtxt": CONFIG,
                "1/model.py": model("(helper.NAME, sub.NAME)", "import helper\nfrom .package import sub"),
                "1/helper.py": f"NAME = 'helper of {name}'\n",
                "1/package/__init__.py": "",
                "1/package/sub.py": "from ..helper import NAME\nNAME += '!'\n",
            },
        )
    with Server(tmp_path) as server:
        for name in ("a", "b"):
            assert ask(server, name) == str((f"helper of {name}", f"helper of {name}!"))
    assert not list(tmp_path.rglob("__pycache__"))


def test_another_file_name(tmp_path: Path) -> None:
    write(
        tmp_path / "m", {"config.pbtxt": CONFIG + 'default_model_filename: "main.py"', "2/main.py": model("__name__"), "2/model.py": "x = "}
    )
    with Server(tmp_path) as server:
        assert ask(server, "m") == "2.main"


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "m", {"config.pbtxt": CONFIG, "1/model.py": model("helper.VALUE", "import helper"), "1/helper.py": "VALUE = 1\n"})
    for path in (tmp_path / "m" / "1", tmp_path / "m"):
        path.chmod(0o555)
    with Server(tmp_path) as server:
        assert ask(server, "m") == "1"
    assert sorted(path.name for path in (tmp_path / "m" / "1").iterdir()) == ["helper.py", "model.py"]


@pytest.mark.parametrize(
    "files, complaint",
    [
        ({"1/other.py": "", "config.pbtxt": 'backend: "python"'}, "Failed to preinitialize Python stub: Python model file not found in '{}/m/1/model.py'"),
        ({"1/model.txt": "", "config.pbtxt": 'backend: "python" default_model_filename: "model.txt"'}, "Model name must end with '.py'. Model name is \"model.txt\"."),
        ({"1/other.py": ""}, "Invalid model name: Could not determine backend for model 'm' with no backend in model configuration."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("complete", [True, False])
def test_models_that_have_no_file(tmp_path: Path, files: Dict[str, str], complaint: str, complete: bool) -> None:
    write(tmp_path / "m", files)
    with pytest.raises(LoadFailed) as caught, Server(tmp_path, options=ServerOptions(auto_complete_config=complete)):
        pass
    assert complaint.format(tmp_path) in str(caught.value)


# Python-based backends


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    """A directory with one Python-based backend and one that is none."""
    write(
        tmp_path / "backends",
        {
            "mine/model.py": model(
                "(__name__, helper.NAME, shared.NAME, self.args['model_repository'], pb_utils.get_model_dir(), sorted(os.listdir(pb_utils.get_model_dir())))",
                "import helper, shared",
            ),
            "mine/helper.py": "NAME = 'of the backend'\n",
            "python/shared.py": "NAME = 'of all'\n",
            "library/libtriton_library.so": "",
        },
    )
    return tmp_path / "backends"


def options(backends: Path, **others: Any) -> ServerOptions:
    return ServerOptions(backend_directory=str(backends), **others)


@pytest.mark.parametrize("complete", [True, False])
def test_a_backend_serves_models_beside_ordinary_ones(tmp_path: Path, backends: Path, complete: bool) -> None:
    root = tmp_path / "models"
    write(root / "first", {"config.pbtxt": 'backend: "mine"' + CONFIG, "1/weights.json": "{}"})
    write(root / "second", {"config.pbtxt": 'backend: "mine"' + CONFIG})
    (root / "second" / "3").mkdir()
    write(root / "ordinary", {"config.pbtxt": CONFIG, "1/model.py": model("__name__")})
    with Server(root, options=options(backends, auto_complete_config=complete)) as server:
        common = ("model", "of the backend", "of all")
        assert ask(server, "first") == str((*common, str(root / "first"), str(root / "first" / "1"), ["weights.json"]))
        assert ask(server, "second") == str((*common, str(root / "second"), str(root / "second" / "3"), []))
        assert ask(server, "ordinary") == "1.model"
        assert server.core.find("first").config.backend == "mine"
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_backend_that_the_models_name_says(tmp_path: Path, backends: Path) -> None:
    write(tmp_path / "models" / "m.mine", {"config.pbtxt": CONFIG, "1/weights.json": "{}"})
    with Server(tmp_path / "models", options=options(backends)) as server:
        assert ask(server, "m.mine").startswith("('model', ")


@pytest.mark.parametrize("backend", ["library", "unknown", "../backends/mine", "."])
def test_backends_that_are_none(tmp_path: Path, backends: Path, backend: str) -> None:
    write(tmp_path / "models" / "m", {"config.pbtxt": f'backend: "{backend}"' + CONFIG, "1/model.py": model("1")})
    with pytest.raises(LoadFailed, match=f"unable to find backend library for backend '{backend}' of model 'm'"):
        with Server(tmp_path / "models", options=options(backends)):
            pass
