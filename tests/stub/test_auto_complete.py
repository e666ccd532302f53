"""``auto_complete_config`` as a stub runs it: spec 2.2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import pytest
from stublet.stub import auto_complete
from stublet.stub.loader import LoadError

pytestmark = pytest.mark.usefixtures("own_imports")

CONFIG = {"name": "mine", "max_batch_size": 0, "input": [], "output": []}
IMPORT = "import triton_python_backend_utils as pb_utils\n"


def complete(directory: Path, body: str, before: str = "    @staticmethod\n", after: str = "") -> Dict[str, Any]:
    """What a model makes of ``CONFIG`` whose method has that body."""
    path = directory / "mine" / "1" / "model.py"
    path.parent.mkdir(parents=True)
    method = f"{before}    def auto_complete_config(config):\n        {body}\n" if body else "    pass\n"
    path.write_text(f"{IMPORT}class TritonPythonModel:\n{method}{after}")
    config = json.dumps(CONFIG)
    settings = {"path": str(path), "backend_dir": "", "model_dir": str(path.parent), "model_name": "mine", "config": config}
    text = auto_complete.run(settings)
    assert isinstance(text, str)
    result: Dict[str, Any] = json.loads(text)
    return result


def test_a_model_without_it(tmp_path: Path) -> None:
    assert complete(tmp_path, "") == CONFIG


def test_the_model_is_given_its_configuration(tmp_path: Path) -> None:
    assert complete(tmp_path, f"assert config.as_dict() == {CONFIG!r}; return config") == CONFIG


def test_what_it_changes(tmp_path: Path) -> None:
    add = "config.add_input({'name': 'A', 'data_type': 'TYPE_FP32', 'dims': [4]})"
    completed = complete(tmp_path, f"{add}; config.set_max_batch_size(8); return config")
    assert completed == {**CONFIG, "max_batch_size": 8, "input": [{"name": "A", "data_type": "TYPE_FP32", "dims": [4]}]}


def test_without_the_decorator(tmp_path: Path) -> None:
    assert complete(tmp_path, "return config", before="") == CONFIG


def test_no_instance_is_made(tmp_path: Path) -> None:
    complete(tmp_path, "return config", after="    def __init__(self):\n        raise ValueError('made')\n")


@pytest.mark.parametrize("value", ["None", "config.as_dict()", "5", "pb_utils.ModelConfig"])
def test_what_is_no_model_config(tmp_path: Path, value: str) -> None:
    with pytest.raises(LoadError) as caught:
        complete(tmp_path, f"return {value}")
    assert str(caught.value) == "auto_complete_config function in model 'mine' must return a valid pb.ModelConfig object."


@pytest.mark.parametrize(
    "body, error",
    [
        ("raise KeyError('gone')", KeyError),
        ("exit(3)", SystemExit),
        ("config.add_input({'name': 'A'})", ValueError),
        ("config.as_dict()['name'] = object(); return config", TypeError),
    ],
)
def test_what_the_model_raises_passes_through(tmp_path: Path, body: str, error: type) -> None:
    with pytest.raises(error):
        complete(tmp_path, body)
