"""Finds and imports ``model.py`` (spec 2.1)."""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any

from . import triton_python_backend_utils


class LoadError(Exception):
    """The model cannot be loaded; the text says why."""


def load_class(path: str) -> Any:
    """The class ``TritonPythonModel`` of a model file.

    The file becomes module ``<version>.<stem>``, so that relative imports work, and the version and model directories go to the end
    of ``sys.path``, so that plain imports of its neighbours do.

    Args:
        path: ``<repository>/<model>/<version>/model.py``.

    Raises:
        LoadError: no such file, not a .py file, or it has no such class. Whatever the file itself raises passes through.
    """
    version_dir, file_name = os.path.split(path)
    stem, extension = os.path.splitext(file_name)
    if extension != ".py":
        raise LoadError(f"Model name must end with '.py'. Model name is \"{file_name}\".")
    if not os.path.isfile(path):
        raise LoadError(f"Python model file not found in '{path}'")
    sys.modules["triton_python_backend_utils"] = triton_python_backend_utils
    model_dir, version = os.path.split(version_dir)
    for directory in (version_dir, model_dir):
        if directory not in sys.path:
            sys.path.append(directory)
    package = types.ModuleType(version)
    package.__path__ = [version_dir]
    sys.modules[version] = package
    module = importlib.import_module(f"{version}.{stem}")
    model_class = getattr(module, "TritonPythonModel", None)
    if model_class is None:
        raise LoadError(f"the class TritonPythonModel is missing in '{path}'")
    return model_class
