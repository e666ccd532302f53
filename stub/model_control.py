"""``pb_utils.load_model``, ``unload_model`` and ``is_model_ready``: other models of the same server (spec 1.12)."""

from __future__ import annotations

import re
from typing import Any, Dict, Optional

from .error import TritonModelException
from .host import ask, refusal

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def load_model(model_name: str, config: str = "", files: Optional[Dict[str, bytes]] = None) -> None:
    """Loads a model, or loads it again, and waits until it serves. The server must let models be controlled.

    Args:
        model_name: the model's directory in the repository.
        config: JSON text that replaces its configuration.
        files: contents by "file:<version>/<file name>", which replace its directory; needs ``config``.

    Raises:
        TypeError: an argument of a wrong Python type.
        TritonModelException: the model did not load; one that served before still does.
    """
    _expect("load_model", "model_name", model_name, str)
    _expect("load_model", "config", config, str)
    if files is not None:
        if not isinstance(files, dict):
            raise TritonModelException(f"failed to load model '{model_name}', files should be a dictionary of file paths and file contents")
        for path, content in files.items():
            _expect("load_model", "the path of a file", path, str)
            _expect("load_model", f"the content of '{path}'", content, bytes)
    ask("Failed to load model: ", "model.load", model_name, config, dict(files or {}))


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Begins to unload a model, and does not wait for the end of it.

    Args:
        model_name: the model.
        unload_dependents: for an ensemble, also unloads the models that it is made of.

    Raises:
        TypeError: an argument of a wrong Python type.
        TritonModelException: the server refuses.
    """
    _expect("unload_model", "model_name", model_name, str)
    _expect("unload_model", "unload_dependents", unload_dependents, bool)
    ask("Failed to unload model: ", "model.unload", model_name, unload_dependents)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model can be asked now.

    Args:
        model_name: the model.
        model_version: a number as text; without it, whichever version the server would choose.

    Raises:
        TypeError: an argument of a wrong Python type.
        TritonModelException: there is no such model, or the version is not a number above 0.
    """
    _expect("is_model_ready", "model_name", model_name, str)
    _expect("is_model_ready", "model_version", model_version, str)
    prefix = "Failed to check model readiness: "
    if model_version:
        number = _INTEGER.fullmatch(model_version)
        if number is None or int(model_version) <= 0:
            details = "" if number else " (details: stol)"
            reason = (
                f"failed to get model version from specified version string '{model_version}'{details}, "
                "version should be an integral value > 0"
            )
            raise TritonModelException(refusal(prefix, reason))
    return bool(ask(prefix, "model.ready", model_name, model_version))


def _expect(where: str, what: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{where}: {what} must be {kind.__name__}, not {type(value).__name__}")
