"""What a model's environment can be made from, and how: a packed environment, a ``requirements.txt``, a ``pyproject.toml``."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import sysconfig
import threading
from typing import Any, Dict, Iterator, List, Protocol, Set

from . import unpack
from .cache import content_hash, identity, key_of
from .program import ProgramFailed, Programs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)

_INCLUDES = re.compile(r"\s*(-r|-c|--requirement|--constraint)\b")
_HAS_NUMPY = "import importlib.util, sys; sys.exit(importlib.util.find_spec('numpy') is None)"


class SourceError(Exception):
    """An environment cannot be made from this; the text, which goes on after its path, says why and what to do."""


class Source(Protocol):
    """One of them. ``path`` is absolute."""

    path: str

    def key(self, ending: threading.Event) -> str:
        """Names what would be made: it differs when what it is made from does.

        Raises:
            SourceError: it is not what it should be.
            OSError: it cannot be read.
            Ended: ``ending`` was set meanwhile.
        """

    def make(self, directory: str, lock: int, ending: threading.Event) -> None:
        """After ``key``, makes the environment in ``directory``, which does not exist yet. Arguments and errors as ``EnvironmentCache.get`` has them.

        Raises:
            SourceError: it cannot be made.
            OSError, Ended: see ``key``.
        """


def source_of(path: str) -> Source:
    """How to make an environment from the file at ``path``, told by its name."""
    suffix = os.path.splitext(path)[1]
    return {".txt": Requirements, ".toml": Project}.get(suffix, Packed)(path)


def root_of(directory: str) -> str:
    """Where in an unpacked directory the environment begins: at its top, or in the one directory that is there."""
    if not os.path.isdir(os.path.join(directory, "bin")):
        entries = os.listdir(directory)
        if len(entries) == 1 and os.path.isdir(os.path.join(directory, entries[0], "bin")):
            return os.path.join(directory, entries[0])
    return directory


def interpreter_of(root: str) -> str:
    """The interpreter of an environment; empty when it has none that can be executed."""
    for name in ("python", "python3"):
        path = os.path.join(root, "bin", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


class Packed:
    """A tar of an environment, compressed or not, as conda-pack makes them."""

    def __init__(self, path: str) -> None:
        self.path = path

    def key(self, ending: threading.Event) -> str:
        self._read = identity(self.path)
        return key_of("packed", content_hash(self.path, ending))

    def make(self, directory: str, lock: int, ending: threading.Event) -> None:
        logger.info("Extracting Python execution env %s", self.path)
        os.mkdir(directory)
        programs = Programs(directory, lock, ending)
        try:
            programs.run(sys.executable, "-I", "-S", unpack.__file__, self.path, directory)
        except ProgramFailed as error:
            raise SourceError(f"cannot be unpacked: {error.last}") from None
        if identity(self.path) != self._read:
            raise SourceError("changed while it was read; load the model again when it is complete")
        root = root_of(directory)
        python = interpreter_of(root)
        if not python:
            raise SourceError("holds no environment: there is no executable interpreter bin/python in it")
        fix_prefixes = os.path.join(root, "bin", "conda-unpack")
        if os.path.isfile(fix_prefixes):
            try:
                programs.run(python, fix_prefixes)
            except ProgramFailed as error:
                logger.warning("The paths in Python execution env %s may be wrong: %s", self.path, error)


class Requirements:
    """A requirements file, installed into a virtual environment of the server's Python.

    It is installed once: a requirement without a version gets what was the newest then. numpy is added when nothing has brought it.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def key(self, ending: threading.Event) -> str:
        return key_of("requirements", _server_python(), *_contents(self.path, set(), ending))

    def make(self, directory: str, lock: int, ending: threading.Event) -> None:
        self._install(directory, ["-r", self.path], lock, ending)

    def _install(self, directory: str, requirements: List[str], lock: int, ending: threading.Event) -> None:
        programs = Programs(os.path.dirname(self.path), lock, ending)
        python = os.path.join(directory, "bin", "python")
        uv = shutil.which("uv")
        logger.info("Building Python execution env %s with %s", self.path, uv or "venv and pip")
        if uv:
            create = [uv, "venv", "--no-project", "--python", sys.executable, directory]
            install = [uv, "pip", "install", "--python", python]
        else:
            create = [sys.executable, "-m", "venv", directory]
            install = [python, "-m", "pip", "install"]
        try:
            programs.run(*create)
            if requirements:
                programs.run(*install, *requirements)
            try:
                programs.run(python, "-I", "-c", _HAS_NUMPY)
            except ProgramFailed:
                # Not along with the rest: a file with hashes takes nothing without one, and something else may bring it.
                programs.run(*install, "numpy")
        except ProgramFailed as error:
            raise SourceError(f"cannot be installed: {error}") from None


class Project(Requirements):
    """The ``dependencies`` of a ``pyproject.toml``. The project itself is not installed, so it need not be one that can be built; what
    else it says of extras, groups and Python's version is not looked at, nor is a lock, which ``uv export`` writes as requirements."""

    def key(self, ending: threading.Event) -> str:
        self._dependencies()
        return key_of("project", _server_python(), content_hash(self.path, ending))

    def make(self, directory: str, lock: int, ending: threading.Event) -> None:
        self._install(directory, self._dependencies(), lock, ending)

    def _dependencies(self) -> List[str]:
        try:
            with open(self.path, "rb") as file:
                content: Dict[str, Any] = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SourceError(f"is no TOML: {error}") from error
        project = content.get("project")
        if not isinstance(project, dict):
            raise SourceError("has no section [project]; name a requirements.txt instead")
        if "dependencies" in (project.get("dynamic") or ()):
            raise SourceError("leaves its dependencies to its build (dynamic); name a requirements.txt instead")
        dependencies = project.get("dependencies", [])
        if not isinstance(dependencies, list) or not all(isinstance(item, str) and not item.startswith("-") for item in dependencies):
            raise SourceError("has 'dependencies' that are not a list of requirements")
        return dependencies


def _server_python() -> str:
    """What the packages of one Python have in common and those of another have not, as in ``cpython-312-x86_64-linux-gnu``."""
    return str(sysconfig.get_config_var("SOABI"))


def _contents(path: str, seen: Set[str], ending: threading.Event) -> Iterator[str]:
    """What a requirements file says, with the files that it includes and those that it names as packages; of a directory, which it is
    and when an entry of it came or went last."""
    if path in seen:
        return
    seen.add(path)
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    yield text
    directory = os.path.dirname(path)
    for line in text.splitlines():
        include = _INCLUDES.match(line)
        for word in _words(line):
            named = os.path.join(directory, word)
            if include and os.path.isfile(named):
                yield from _contents(named, seen, ending)
            elif os.path.isfile(named):
                yield content_hash(named, ending)
            elif os.path.isdir(named):
                yield repr(identity(named))


def _words(line: str) -> List[str]:
    """What in a line may be a path: without options, the scheme of a local URL, and extras."""
    words = re.sub(r"(^|\s)#.*", "", line).split()
    bare = (re.sub(r"^(--?[a-z-]+=)?(file:(//)?)?|\[.*", "", word.strip("'\"")) for word in words)
    return [word for word in bare if word]
