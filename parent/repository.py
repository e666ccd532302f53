"""Model repositories: directories of models, each a directory with ``config.pbtxt`` and numbered version directories (spec 5.6).

What is decided here looks at directories and starts nothing: which models there are, what their configurations say, which file runs
them, and whether any of that has changed.
"""

from __future__ import annotations

import os
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from . import model_config
from .model_config import ConfigError

_CACHE = "__pycache__"
_CONFIGS = "configs"


class RepositoryError(Exception):
    """A repository, or a model's directory, cannot be read, or two repositories claim the same model."""


class ModelFiles(NamedTuple):
    """A model as found: its name, its directory (absolute), and its version numbers, ascending."""

    name: str
    path: str
    versions: List[int]


class ModelFile(NamedTuple):
    """What a stub imports. ``backend_dir`` is the directory of a Python-based backend, "" for an ordinary model. ``version_dir`` is
    what ``get_model_dir`` tells the model."""

    path: str
    backend_dir: str
    version_dir: str

    def settings(self) -> Dict[str, str]:
        """As a stub is told."""
        return {"path": self.path, "backend_dir": self.backend_dir, "model_dir": self.version_dir}


class Scan(NamedTuple):
    """What is in the repositories: ``models``, and ``faults``, why others cannot be had, both by name."""

    models: Dict[str, ModelFiles]
    faults: Dict[str, str]


def scan(roots: Sequence[str]) -> Scan:
    """The models of all repositories. Files, hidden directories, those whose names are not UTF-8, and those with neither versions nor a config
    are ignored.

    Raises:
        RepositoryError: a root is not a directory, or cannot be read.
    """
    check_roots(roots)
    found = Scan({}, {})
    for name in names_in(roots):
        try:
            files = find(roots, name)
        except RepositoryError as error:
            found.faults[name] = str(error)
        else:
            if files is not None:
                found.models[name] = files
    return found


def names_in(roots: Sequence[str]) -> List[str]:
    """The names of everything in the repositories that may be a model, in order.

    Raises:
        RepositoryError: a root cannot be read.
    """
    names: Set[str] = set()
    for root in dict.fromkeys(map(os.path.abspath, roots)):
        try:
            names.update(entry.name for entry in os.scandir(root) if _may_be_model(entry.name) and entry.is_dir())
        except OSError as error:
            raise RepositoryError(f"the model repository '{root}' cannot be read: {error.strerror}") from error
    return sorted(names)


def _may_be_model(name: str) -> bool:
    """Whether a directory's name is one that a model can have. No client could say, or be told, one that is not text."""
    return not (name.startswith(".") or name == _CACHE or any("\ud800" <= character <= "\udfff" for character in name))


def find(roots: Sequence[str], name: str) -> Optional[ModelFiles]:
    """The model of that name, as ``scan`` would find it, or None.

    Raises:
        RepositoryError: its directory cannot be read, or it is in two repositories.
    """
    found = [files for files in (_look(root, name) for root in dict.fromkeys(map(os.path.abspath, roots))) if files is not None]
    if len(found) > 1:
        places = " and ".join(f"'{files.path}'" for files in found[:2])
        raise RepositoryError(f"model '{name}' appears in two or more repositories: {places}")
    return found[0] if found else None


def check_roots(roots: Sequence[str]) -> None:
    """Checks that every repository is there.

    Raises:
        RepositoryError: one is not a directory.
    """
    for root in roots:
        if not os.path.isdir(root):
            raise RepositoryError(f"the model repository '{root}' is not a directory")


def _look(root: str, name: str) -> Optional[ModelFiles]:
    path = os.path.join(root, name)
    if not (_may_be_model(name) and os.path.isdir(path)):
        return None
    try:
        files = ModelFiles(name, path, versions_in(path))
    except OSError as error:
        raise RepositoryError(f"the directory of model '{name}' cannot be read: {error}") from error
    return files if files.versions or os.path.exists(os.path.join(path, model_config.FILE_NAME)) else None


def versions_in(path: str) -> List[int]:
    """Directories whose names are positive integers without a leading zero; others are not versions."""
    return sorted(
        int(entry.name)
        for entry in os.scandir(path)
        if entry.name.isascii() and entry.name.isdigit() and not entry.name.startswith("0") and entry.is_dir()
    )


def config_paths(files: ModelFiles, config_name: str = "") -> List[str]:
    """Where the configuration of a model may be: the first of these that is there."""
    paths = [os.path.join(files.path, _CONFIGS, f"{config_name}.pbtxt")] if config_name else []
    return [*paths, os.path.join(files.path, model_config.FILE_NAME)]


def read_config(files: ModelFiles, config_name: str = "") -> Any:
    """The model's ``configs/<config_name>.pbtxt``, if it has one, or ``config.pbtxt``; an empty configuration when it has none.

    Raises:
        ConfigError: not readable, or does not parse.
    """
    *named, path = config_paths(files, config_name)
    if named and os.path.lexists(named[0]):
        config = _read_config(named[0])
        config.name = files.name  # it may be written for several models
        return config
    return _read_config(path)


def _read_config(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return model_config.messages.ModelConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return model_config.parse(text, path)


def settle(config: Any, files: ModelFiles, backend_directory: str = "") -> List[int]:
    """Completes a configuration that was read, so far as that can be done without the model's own code, and checks that it can be run.

    Returns:
        The versions to serve, ascending.

    Raises:
        ConfigError: with Triton's text where it has one.
    """
    if not files.versions:
        raise ConfigError(f"at least one version must be available under the version policy of model '{files.name}'")
    if not config.backend and not config.platform:
        config.backend = _backend_of(config, files)
    model_config.complete(config, files.name)
    model_config.check_identity(config, files.name, backend_directory)
    return model_config.chosen_versions(config, files.versions)


def _backend_of(config: Any, files: ModelFiles) -> str:
    """The backend of a model that names none: ``python`` when a version has the file, else what follows the last dot of its name."""
    file = config.default_model_filename or model_config.MODEL_FILE_NAME
    if any(os.path.isfile(os.path.join(files.path, str(version), file)) for version in files.versions):
        return model_config.PYTHON
    backend = files.name.rpartition(".")[2] if "." in files.name else ""
    if not backend:
        raise ConfigError(
            f"Invalid model name: Could not determine backend for model '{files.name}' with no backend in model configuration. Expected"
            " model name of the form 'model.<backend_name>'."
        )
    return backend


def model_file(backend_directory: str, files: ModelFiles, version: int, config: Any) -> ModelFile:
    """The file that a stub of this version imports, for a configuration that was checked (spec 2.1)."""
    version_dir = os.path.join(files.path, str(version))
    backend_dir = "" if config.backend == model_config.PYTHON else model_config.python_based_backend(backend_directory, config.backend)
    if backend_dir:
        return ModelFile(os.path.join(backend_dir, model_config.MODEL_FILE_NAME), backend_dir, version_dir)
    return ModelFile(os.path.join(version_dir, config.default_model_filename), "", version_dir)


def fingerprint(path: str) -> FrozenSet[Tuple[str, int, int]]:
    """(path, time of change in ns, bytes) of every file below a directory, or of the file itself: when it is the same, nothing changed."""
    return frozenset(_stats(path, set())) if os.path.isdir(path) else frozenset(_stat(path))


def _stats(directory: str, seen: Set[Tuple[int, int]]) -> Iterator[Tuple[str, int, int]]:
    for root, directories, names in os.walk(directory, followlinks=True):
        for name in list(directories):
            if name == _CACHE or _seen(os.path.join(root, name), seen):
                directories.remove(name)
        for name in names:
            yield from _stat(os.path.join(root, name))


def _seen(directory: str, seen: Set[Tuple[int, int]]) -> bool:
    """Whether a directory was met before, as one that links to a directory above it is."""
    try:
        about = os.stat(directory)
    except OSError:
        return True
    key = about.st_dev, about.st_ino
    before = key in seen
    seen.add(key)
    return before


def _stat(path: str) -> Iterator[Tuple[str, int, int]]:
    try:
        about = os.stat(path)
    except OSError:  # a link that leads nowhere, or just removed
        return
    yield path, about.st_mtime_ns, about.st_size
