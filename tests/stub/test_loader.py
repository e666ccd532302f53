"""Where ``model.py`` is found and how it is imported: spec 2.1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict

import pytest
from stublet.stub import c_python_backend_utils, triton_python_backend_utils
from stublet.stub.loader import LoadError, load_class

MODEL = "class TritonPythonModel:\n    pass\n"


pytestmark = pytest.mark.usefixtures("own_imports")


def load(directory: Path, files: Dict[str, str], name: str = "1/model.py") -> Any:
    model = directory / "repository" / "mine"
    write(model, files)
    return load_class(str(model / name))


def write(directory: Path, files: Dict[str, str]) -> None:
    for file, text in files.items():
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


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


def test_the_module_of_tritons_stub_can_be_imported(tmp_path: Path) -> None:
    model = load(tmp_path, {"1/model.py": f"import c_python_backend_utils as c_utils\n{MODEL}    utils = c_utils\n"})
    assert model.utils is c_python_backend_utils


def test_a_second_import_of_the_model_is_another_module(tmp_path: Path) -> None:
    """As ``unittest.main("model")`` in a model does."""
    model = load(tmp_path, {"1/model.py": MODEL + "    def again(self):\n        import model\n        return model\n"})
    again = model().again()
    assert again.__name__ == "model" and again.TritonPythonModel is not model


@pytest.mark.parametrize(
    "files, name, text",
    [
        ({}, "1/model.py", "Failed to preinitialize Python stub: Python model file not found in '{}'"),
        ({"1/model.txt": MODEL}, "1/model.txt", "Model name must end with '.py'. Model name is \"model.txt\"."),
        ({"1/model": MODEL}, "1/model", "Model name must end with '.py'. Model name is \"model\"."),
        ({"1/model.py": "class Model: pass"}, "1/model.py", "the class TritonPythonModel is missing in '{}'"),
        ({"1/model.py/__init__.py": MODEL}, "1/model.py", "Failed to preinitialize Python stub: Python model file not found in '{}'"),
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


@pytest.mark.parametrize("name", ["1/model.py", "backend"])
def test_no_byte_code_is_written(tmp_path: Path, name: str) -> None:
    """The directory may be read-only, and byte code of a file that was replaced within a second would be taken for its own."""
    sys.dont_write_bytecode = False
    files = {
        "1/model.py": f"import sibling, package.module\n{MODEL}",
        "1/sibling.py": "",
        "1/package/__init__.py": "",
        "1/package/module.py": "",
    }
    if name == "backend":
        load_backend(tmp_path, {file[2:]: text for file, text in files.items()})
    else:
        load(tmp_path, files, name)
    assert not list(tmp_path.rglob("__pycache__"))


# Python-based backends


def load_backend(directory: Path, files: Dict[str, str]) -> Any:
    write(directory / "backends" / "mine", files)
    return load_class(str(directory / "backends" / "mine" / "model.py"), str(directory / "backends" / "mine"))


def test_a_backend_is_the_module_model(tmp_path: Path) -> None:
    model = load_backend(tmp_path, {"model.py": f"{MODEL}    def again(self):\n        import model\n        return model\n"})
    assert model.__module__ == "model"
    assert model().again().TritonPythonModel is model


def test_another_module_called_model_does_not_hide_a_backend(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"model.py": "raise ValueError('another')\n"})
    sys.path.insert(0, str(tmp_path / "elsewhere"))
    assert load_backend(tmp_path, {"model.py": MODEL}).__module__ == "model"


def test_the_neighbours_of_a_backend_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path / "backends" / "python", {"shared_by_all.py": "VALUE = 6\n"})
    files = {
        "model.py": f"import sibling, shared_by_all\nfrom package import module\n{MODEL}    values = sibling.VALUE, module.VALUE, shared_by_all.VALUE\n",
        "sibling.py": "VALUE = 4\n",
        "package/__init__.py": "",
        "package/module.py": "VALUE = 5\n",
    }
    assert load_backend(tmp_path, files).values == (4, 5, 6)
    assert sys.path[-2:] == [str(tmp_path / "backends" / "mine"), str(tmp_path / "backends" / "python")]


@pytest.mark.parametrize(
    "files, text",
    [
        ({"other.py": MODEL}, "Failed to preinitialize Python stub: Python model file not found in '{}'"),
        ({"model.py": ""}, "the class TritonPythonModel is missing in '{}'"),
    ],
)
def test_a_backend_that_cannot_be_loaded(tmp_path: Path, files: Dict[str, str], text: str) -> None:
    with pytest.raises(LoadError) as raised:
        load_backend(tmp_path, files)
    assert str(raised.value) == text.format(tmp_path / "backends" / "mine" / "model.py")
