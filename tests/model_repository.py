"""Model repositories made by a test: what a model does, as text."""

from __future__ import annotations

import shutil
from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""The repository of well-behaved models."""

ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", r.inputs()[0].as_numpy())]) for r in requests]
"""

ECHO_CONFIG = """
input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }
"""


def write_model(root: Path, name: str, code: str = ECHO, config: str = ECHO_CONFIG) -> Path:
    """A model of that code; returns its directory."""
    directory = root / name
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(code)
    (directory / "config.pbtxt").write_text(f'backend: "python"\n{config}')
    return directory


def copy_model(root: Path, source: str, name: str = "", extra: str = "") -> Path:
    """A copy of one of the models of the tests, with more configuration."""
    directory = root / (name or source)
    shutil.copytree(MODELS / source, directory, ignore=shutil.ignore_patterns("__pycache__"))
    with (directory / "config.pbtxt").open("a") as config:
        config.write(extra)
    return directory


def python(code: str) -> str:
    """A string for config.pbtxt."""
    return '"' + code.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def obey(root: Path, name: str = "obey", instances: int = 1, **hooks: str) -> Path:
    """A copy of the model ``obey`` that runs these pieces of Python at ``initialize`` or ``finalize``."""
    extra = f"instance_group {{ count: {instances} kind: KIND_CPU }}\n"
    for hook, code in hooks.items():
        extra += f'parameters {{ key: "{hook}" value {{ string_value: {python(code)} }} }}\n'
    return copy_model(root, "obey", name, extra)
