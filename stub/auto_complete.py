"""Asks a model's ``auto_complete_config`` for its configuration, in a process that does nothing else (spec 2.2)."""

from __future__ import annotations

import json
from typing import Any, Dict

from .loader import LoadError, load_class
from .model_config import ModelConfig


def run(settings: Dict[str, Any]) -> str:
    """The configuration as the model completes it, as JSON text; that of a model without ``auto_complete_config`` is as it was.

    Args:
        settings: ``path`` and ``backend_dir`` of the model file, ``model_name``, and ``config``, which is JSON text.

    Raises:
        LoadError: the model cannot be loaded, or what it returned is not a ModelConfig. Whatever the model raises passes through.
    """
    model_class = load_class(settings["path"], settings["backend_dir"])
    if not hasattr(model_class, "auto_complete_config"):
        unchanged: str = settings["config"]
        return unchanged
    completed = model_class.auto_complete_config(ModelConfig(settings["config"]))
    if not isinstance(completed, ModelConfig):
        name = settings["model_name"]
        raise LoadError(f"auto_complete_config function in model '{name}' must return a valid pb.ModelConfig object.")
    return json.dumps(completed.as_dict())
