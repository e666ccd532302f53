"""Model repositories: directories of models, each a directory with ``config.pbtxt`` and numbered version directories (spec 5.6)."""

from __future__ import annotations

import os
from typing import Any, Dict, List, NamedTuple, Sequence

from . import model_config
from .model_config import ConfigError


class RepositoryError(Exception):
    """A repository cannot be read, or two of them claim the same model."""


class ModelFiles(NamedTuple):
    """A model as found: its name, its directory (absolute), and its version numbers, ascending."""

    name: str
    path: str
    versions: List[int]


def scan(roots: Sequence[str]) -> Dict[str, ModelFiles]:
    """The models of all repositories, by name. Files, hidden directories, and directories with neither versions nor a config are ignored.

    Raises:
        RepositoryError: a root is not a directory, or a model is in two of them.
    """
    found: Dict[str, ModelFiles] = {}
    for root in roots:
        if not os.path.isdir(root):
            raise RepositoryError(f"the model repository '{root}' is not a directory")
        for entry in sorted(os.scandir(root), key=lambda e: e.name):
            if not entry.is_dir() or entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            files = ModelFiles(entry.name, os.path.abspath(entry.path), _versions(entry.path))
            if not files.versions and not os.path.exists(os.path.join(files.path, model_config.FILE_NAME)):
                continue
            if files.name in found:
                raise RepositoryError(
                    f"model '{files.name}' appears in two or more repositories: '{found[files.name].path}' and '{files.path}'"
                )
            found[files.name] = files
    return found


def _versions(path: str) -> List[int]:
    """Directories whose names are positive integers without a leading zero; others are not versions."""
    return sorted(
        int(entry.name)
        for entry in os.scandir(path)
        if entry.name.isascii() and entry.name.isdigit() and not entry.name.startswith("0") and entry.is_dir()
    )


def load_config(files: ModelFiles) -> Any:
    """The model's configuration, completed and checked.

    Raises:
        ConfigError: no file, not readable, does not parse, or does not hold.
    """
    path = os.path.join(files.path, model_config.FILE_NAME)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise ConfigError(f"model '{files.name}' has no {model_config.FILE_NAME} in '{files.path}'") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    config = model_config.parse(text, path)
    model_config.complete(config, files.name)
    model_config.check(config, files.name)
    if not files.versions:
        raise ConfigError(f"at least one version must be available under the version policy of model '{files.name}'")
    return config
