"""Where ``model.py`` is found and how it is imported: spec 2.1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from stublet.stub import triton_python_backend_utils
from stublet.stub.loader import LoadError, load_class

MODEL = "class TritonPythonModel:\n    pass\n"


@pytest.fixture(autouse=True)
def own_imports() -> Iterator[None]:
    """A stub loads one model in its life; this process loads many."""
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


def load(directory: Path, files: Dict[str, str], name: str = "1/model.py") -> Any:
    for file, text in files.items():
        path = directory / "repository" / "mine" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return load_class(str(directory / "repository" / "mine" / name))


def test_the_class_is_found_and_the_module_is_named_after_the_version(tmp_path: Path) -> None:
    model = load(tmp_path, {"1/model.py": MODEL})
    assert model.__name__ == "TritonPythonModel" and model.__module__ == "1.model"
    assert model().__class__ is model


@pytest.mark.parametrize("name", ["7/model.py", "12/my-model_2.py"])
def test_another_version_and_another_file_name(tmp_path: Path, name: str) -> None:
    model = load(tmp_path, {name: MODEL}, name)
    assert model.__module__ == name.replace("/", ".")[: -len(".py")]


@pytest.mark.parametrize(
    "statement",
    ["from . import sibling", "import sibling", "from .sibling import VALUE as _\nimport sibling", "import parent_sibling as sibling",
     "from package import module as sibling", "from .package import module as sibling"],
)  # fmt: skip
def test_its_neighbours_can_be_imported(tmp_path: Path, statement: str) -> None:
    model = load(
        tmp_path,
        {
            "1/model.py": f"{statement}\n{MODEL}    value = sibling.VALUE\n",
            "1/sibling.py": "VALUE = 5\n",
            "1/package/__init__.py": "",
            "1/package/module.py": "VALUE = 5\n",
            "parent_sibling.py": "VALUE = 5\n",
        },
    )
    assert model.value == 5


def test_its_directories_come_last(tmp_path: Path) -> None:
    """A neighbour called like a module of the standard library must not hide it from everyone."""
    model = load(tmp_path, {"1/model.py": f"import json\n{MODEL}    dumps = staticmethod(json.dumps)\n", "1/json.py": ""})
    assert model.dumps([1]) == "[1]"
    directory = tmp_path / "repository" / "mine"
    assert sys.path[-2:] == [str(directory / "1"), str(directory)]
    load(tmp_path, {"1/model.py": MODEL})
    assert sys.path.count(str(directory)) == 1


def test_pb_utils_can_be_imported(tmp_path: Path) -> None:
    model = load(tmp_path, {"1/model.py": f"import triton_python_backend_utils as pb_utils\n{MODEL}    utils = pb_utils\n"})
    assert model.utils is triton_python_backend_utils


def test_a_second_import_of_the_model_is_another_module(tmp_path: Path) -> None:
    """As ``unittest.main("model")`` in a model does."""
    model = load(tmp_path, {"1/model.py": MODEL + "    def again(self):\n        import model\n        return model\n"})
    again = model().again()
    assert again.__name__ == "model" and again.TritonPythonModel is not model


@pytest.mark.parametrize(
    "files, name, text",
    [
        ({}, "1/model.py", "Python model file not found in '{}'"),
        ({"1/model.txt": MODEL}, "1/model.txt", "Model name must end with '.py'. Model name is \"model.txt\"."),
        ({"1/model": MODEL}, "1/model", "Model name must end with '.py'. Model name is \"model\"."),
        ({"1/model.py": "class Model: pass"}, "1/model.py", "the class TritonPythonModel is missing in '{}'"),
        ({"1/model.py/__init__.py": MODEL}, "1/model.py", "Python model file not found in '{}'"),
    ],
)
def test_what_cannot_be_loaded_is_told(tmp_path: Path, files: Dict[str, str], name: str, text: str) -> None:
    with pytest.raises(LoadError) as raised:
        load(tmp_path, files, name)
    assert str(raised.value) == text.format(tmp_path / "repository" / "mine" / name)


@pytest.mark.parametrize(
    "code, error",
    [("import no_such_module", ModuleNotFoundError), ("1 / 0", ZeroDivisionError), ("x = = 1", SyntaxError), ("exit(3)", SystemExit)],
)
def test_what_the_file_raises_passes_through(tmp_path: Path, code: str, error: type) -> None:
    with pytest.raises(error):
        load(tmp_path, {"1/model.py": f"{code}\n{MODEL}"})
