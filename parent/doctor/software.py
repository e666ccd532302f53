"""Checks of what is installed: Python, packages, the interpreters of models' environments, a GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from typing import Iterator, List, Sequence, Tuple

from .. import model_config, repository
from ..environments.source import interpreter_of, root_of
from ..model_config import ConfigError, environment_path
from ..repository import RepositoryError
from .finding import Finding, failure, ok, warning

OLDEST = (3, 10)
OLDEST_OF_MODELS = (3, 9)
_PACKAGES = ("numpy", "msgpack", "posix_ipc", "uvloop", "httptools", "grpcio", "tritonclient")
_ANSWER_SECONDS = 30
_ASK = "import sys, numpy; print('%d.%d' % sys.version_info[:2], numpy.__version__)"


def check_python() -> Finding:
    """The server's own interpreter."""
    text = f"{platform.python_version()} at {sys.executable}, {platform.system()} on {platform.machine()}"
    if sys.version_info[:2] < OLDEST:
        return failure(
            "python",
            text,
            f"the server needs Python {OLDEST[0]}.{OLDEST[1]} or newer; models may use {OLDEST_OF_MODELS[0]}.{OLDEST_OF_MODELS[1]}",
        )
    if platform.system() != "Linux":
        return failure("python", text, "stublet needs Linux: eventfd, pidfd and memory files")
    return ok("python", text)


def check_packages(names: Sequence[str] = _PACKAGES) -> Finding:
    """What the server imports."""
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return failure(
            "packages", f"not installed: {', '.join(missing)}", "pip install stublet, in an environment of its own, brings all of them"
        )
    return ok("packages", ", ".join(found))


def check_gpu() -> Finding:
    """Whether the CUDA driver is there, and how many devices it has. No context is made."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ok("gpu", "no CUDA driver: models run on the CPU")
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return warning("gpu", f"the CUDA driver answers with error {status}", "see nvidia-smi; in a container: docker run --gpus all")
    return ok("gpu", f"{count.value} device{'s' * (count.value != 1)}")


def check_environments(repositories: Sequence[str]) -> Iterator[Finding]:
    """The models of the repositories: whether their configuration can be read, and the interpreter of those that ask for one."""
    try:
        found = repository.scan(repositories)
    except RepositoryError as error:
        yield failure("models", str(error), "name directories that hold one directory for each model")
        return
    for name, reason in found.faults.items():
        yield failure(f"model {name}", reason, "correct the directory")
    plain = 0
    for files in found.models.values():
        asked, findings = _environment(files.name, files.path)
        plain += not asked and not findings
        yield from findings
    if plain:
        yield ok("models", f"{plain} that run in the server's own environment")


def _environment(name: str, directory: str) -> Tuple[bool, List[Finding]]:
    """Whether a model asks for an environment, and what is to be said of it."""
    what = f"model {name}"
    path = os.path.join(directory, model_config.FILE_NAME)
    text = ""
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    try:
        environment = environment_path(model_config.parse(text, path), directory)
    except ConfigError as error:
        return False, [failure(what, str(error), "correct the file")]
    if not environment:
        return False, []
    if os.path.isfile(environment):
        return True, [ok(what, f"its environment is made from {environment} when it is loaded for the first time")]
    interpreter = interpreter_of(root_of(environment)) if os.path.isdir(environment) else ""
    if not interpreter:
        return True, [
            failure(what, f"EXECUTION_ENV_PATH '{environment}' holds no environment", "it is a directory with bin/python, or a packed one")
        ]
    return True, [_interpreter(what, interpreter)]


def _interpreter(what: str, interpreter: str) -> Finding:
    try:
        done = subprocess.run([interpreter, "-I", "-c", _ASK], capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return failure(what, f"{interpreter} does not run: {error}", "was it made on another machine, or its Python removed?")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return failure(what, f"{interpreter}: {last}", "install numpy there")
    version, numpy = done.stdout.split()
    if tuple(map(int, version.split("."))) < OLDEST_OF_MODELS:
        return failure(
            what, f"{interpreter} is Python {version}", f"models need Python {OLDEST_OF_MODELS[0]}.{OLDEST_OF_MODELS[1]} or newer"
        )
    return ok(what, f"{interpreter}: Python {version}, numpy {numpy}")


def software_checks(repositories: Sequence[str]) -> Iterator[Finding]:
    """All of them."""
    yield check_python()
    yield check_packages()
    yield check_gpu()
    if repositories:
        yield from check_environments(repositories)
