"""The Python environment that a model asks for with ``EXECUTION_ENV_PATH`` (spec 2.13): a virtual environment, a conda or uv environment,
a packed one, or a list of requirements to install."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from typing import Any, Dict, NamedTuple, Optional

from ..model_config import ConfigError, environment_path
from .cache import Ended, EnvironmentCache, cache_root
from .source import SourceError, interpreter_of, root_of, source_of

logger = logging.getLogger(__name__)

_NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class Environment(NamedTuple):
    """How to start a stub in it."""

    interpreter: Optional[str]
    """None: the server's own."""
    variables: Dict[str, Optional[str]]
    """Variables to set, or, with None, to remove, as an activation would."""


def prepare(config: Any, model_dir: str, ending: Optional[threading.Event] = None) -> Environment:
    """The environment that the model asks for, unpacked or installed when that has not been done before, which may take minutes.

    Args:
        ending: to be set, in another thread, when the server ends: what is being made is given up within a moment, and removed.

    Raises:
        ConfigError: it does not exist, cannot be unpacked or installed, or has no interpreter; with what to do.
    """
    path = environment_path(config, model_dir)
    if not path:
        return Environment(None, {})
    where = f"EXECUTION_ENV_PATH of model '{config.name}': '{path}'"
    if os.path.isdir(path):
        root = path
    elif os.path.isfile(path):
        root = root_of(_made(path, where, ending or threading.Event()))
    else:
        raise ConfigError(f"{where} " + ("is neither a file nor a directory" if os.path.exists(path) else "does not exist"))
    interpreter = interpreter_of(root)
    if not interpreter:
        raise ConfigError(f"{where} holds no environment: '{root}/bin/python' is not an executable interpreter")
    return Environment(interpreter, _variables(root))


def _made(path: str, where: str, ending: threading.Event) -> str:
    """The directory in the cache of what is made from the file at ``path``."""
    source = source_of(path)
    cache = EnvironmentCache(cache_root())
    started = time.monotonic()

    def make(directory: str, lock: int) -> None:
        source.make(directory, lock, ending)
        logger.info("Python execution env %s is ready after %.1f s: %s", path, time.monotonic() - started, directory)

    try:
        return cache.get(source.key(ending), path, _usable, make, ending)
    except Ended:
        raise ConfigError(f"{where} was given up: the server is ending") from None
    except (SourceError, OSError) as error:
        if any(text in str(error) for text in _NO_ROOM):
            raise ConfigError(
                f"{where} finds no room on the disk of '{cache.directory}': free some, or set STUBLET_CACHE to a directory on another disk"
            ) from error
        if isinstance(error, OSError):
            raise ConfigError(
                f"{where} cannot be made ready in '{cache.directory}' (STUBLET_CACHE names another directory): {error}"
            ) from error
        raise ConfigError(f"{where} {error}") from error


def _usable(environment: str) -> bool:
    """False when its interpreter went away: those of virtual environments are links to what they were made with."""
    return os.path.isdir(environment) and bool(interpreter_of(root_of(environment)))


def _variables(root: str) -> Dict[str, Optional[str]]:
    libraries = os.path.join(root, "lib")
    variables: Dict[str, Optional[str]] = {
        "VIRTUAL_ENV": root,
        "PATH": _prefixed(os.path.join(root, "bin"), "PATH"),
        # For the interpreter and what it loads. The stub takes it away again: the model's child programs are not all of this environment.
        "LD_LIBRARY_PATH": _prefixed(libraries, "LD_LIBRARY_PATH"),
        "STUBLET_LIBRARIES": libraries,
        "PYTHONHOME": None,
    }
    if os.path.isdir(os.path.join(root, "conda-meta")):
        variables["CONDA_PREFIX"] = root
    return variables


def _prefixed(directory: str, name: str) -> str:
    rest = os.environ.get(name, "")
    return f"{directory}:{rest}" if rest else directory
