"""Finds and imports ``model.py`` (spec 2.1)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

from . import c_python_backend_utils, triton_python_backend_utils

_BACKEND_MODULE = "model"


class LoadError(Exception):
    """The model cannot be loaded; the text says why."""


def load_class(path: str, backend_dir: str = "") -> Any:
    """The class ``TritonPythonModel`` of a model file.

    The file becomes module ``<version>.<stem>``, so that relative imports work, and the version and model directories go to the end
    of ``sys.path``, so that plain imports of its neighbours do. That of a Python-based backend becomes module ``model``, and the
    directories that go to the end are the backend's and the folder ``python`` beside it. No byte code is written: a model's directory
    may be read-only, and belongs to its owner.

    Args:
        path: ``<repository>/<model>/<version>/model.py``, or ``<backends>/<backend>/model.py``.
        backend_dir: ``<backends>/<backend>`` when the file is that of a Python-based backend.

    Raises:
        LoadError: no such file, not a .py file, or it has no such class. Whatever the file itself raises passes through.
    """
    directory, file_name = os.path.split(path)
    stem, extension = os.path.splitext(file_name)
    if extension != ".py":
        raise LoadError(f"Model name must end with '.py'. Model name is \"{file_name}\".")
    if not os.path.isfile(path):
        raise LoadError(f"Failed to preinitialize Python stub: Python model file not found in '{path}'")
    sys.dont_write_bytecode = True
    sys.modules["triton_python_backend_utils"] = triton_python_backend_utils
    sys.modules["c_python_backend_utils"] = c_python_backend_utils
    if backend_dir:
        _append_to_path(backend_dir, os.path.join(os.path.dirname(backend_dir), "python"))
        module = _import_backend(path)
    else:
        model_dir, version = os.path.split(directory)
        _append_to_path(directory, model_dir)
        package = types.ModuleType(version)
        package.__path__ = [directory]
        sys.modules[version] = package
        module = importlib.import_module(f"{version}.{stem}")
    model_class = getattr(module, "TritonPythonModel", None)
    if model_class is None:
        raise LoadError(f"the class TritonPythonModel is missing in '{path}'")
    return model_class


def _append_to_path(*directories: str) -> None:
    for directory in directories:
        if directory not in sys.path and os.path.isdir(directory):
            sys.path.append(directory)


def _import_backend(path: str) -> types.ModuleType:
    """By its path and not by its name: whatever else is called ``model`` comes before it on ``sys.path``."""
    spec = importlib.util.spec_from_file_location(_BACKEND_MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_BACKEND_MODULE] = module
    spec.loader.exec_module(module)
    return module
