"""Where a model is loaded from: its directory in a repository, perhaps with another configuration, or files that came with the request
to load it (spec 5.6).

Everything here came from a client or a model, and nothing of it is trusted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import suppress
from typing import Any, Callable, Hashable, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import model_config, repository
from .errors import InvalidArgument, NotFound
from .repository import ModelFiles, RepositoryError

_FILE = "file:"
_NOT_FOUND = "failed to poll from model repository"
_MOST_PARTS = 64
"""Of the path of a file."""


class Source(NamedTuple):
    """What a model is loaded from. ``config_json`` replaces its ``config.pbtxt`` unless it is ""; so does, in its directory,
    ``configs/<config_name>.pbtxt``, if there is one. ``temporary`` is a directory to be removed when nothing uses it any more, "" for
    none."""

    files: ModelFiles
    config_json: str = ""
    temporary: str = ""
    config_name: str = ""

    def config(self) -> Any:
        """The configuration as it is written.

        Raises:
            ConfigError: it cannot be read, or does not parse.
        """
        return model_config.parse_json(self.config_json) if self.config_json else repository.read_config(self.files, self.config_name)


class Identity(NamedTuple):
    """What is the same when the same is loaded again: ``whole``; and ``but_groups``, the same without the instance groups."""

    whole: Hashable
    but_groups: Hashable


def check_name(name: object) -> str:
    """A model's name as it came.

    Raises:
        InvalidArgument: it is none, in Triton's words.
    """
    if not isinstance(name, str):
        raise InvalidArgument(f"the name of a model must be text, not {type(name).__name__}")
    if not name:
        raise InvalidArgument("Model name cannot be empty. Please enter a valid name to deploy.")
    if name in (os.curdir, os.pardir) or set(name) & {"/", "\\", "\0"} or not _encodes(name):
        raise InvalidArgument("model name must not contain path traversal characters")
    return name


def in_repository(roots: Sequence[str], name: str, config_json: str = "", config_name: str = "") -> Source:
    """The model in one of the repositories.

    Raises:
        NotFound: in none of them.
        InvalidArgument: in two of them, or its directory cannot be read.
    """
    try:
        files = repository.find(roots, name)
    except RepositoryError as error:
        raise InvalidArgument(f"failed to load '{name}', {error}") from error
    if files is None:
        raise NotFound(f"failed to load '{name}', {_NOT_FOUND}")
    return Source(files, config_json, config_name=config_name)


async def in_request(name: str, config_json: str, given: Mapping[str, bytes], workspace: Callable[[], str]) -> Source:
    """A directory made of files that came with the request: ``{"file:1/model.py": content}``.

    Args:
        workspace: gives the directory to make it in.

    Raises:
        InvalidArgument: there is no configuration with them, or a path leads elsewhere.
    """
    if not config_json:
        raise InvalidArgument(f"failed to load '{name}', {_NOT_FOUND}: files are given without a configuration")
    contents = [(_path_parts(name, key), content) for key, content in given.items()]
    run = asyncio.get_running_loop().run_in_executor
    try:
        temporary = tempfile.mkdtemp(prefix="model-", dir=await run(None, workspace))
    except OSError as error:
        raise _not_written(name, error) from error
    path = os.path.join(temporary, name)
    written = run(None, _write, path, contents)
    try:
        await asyncio.shield(written)
        return Source(ModelFiles(name, path, repository.versions_in(path)), config_json, temporary)
    except BaseException as error:
        with suppress(OSError):
            await written
        remove(temporary)
        if isinstance(error, OSError):
            raise _not_written(name, error) from error
        raise


def identity(source: Source, config: Any, backend_directory: str) -> Optional[Identity]:
    """The identity of a source: the configuration, and every file of the model, of its backend, and the file that its environment is made
    from. None, like no other, when its files came with the request.

    Args:
        config: as ``source.config`` gave it.
    """
    if source.temporary:
        return None
    environment = model_config.environment_path(config, source.files.path)
    paths = [
        source.files.path,
        model_config.python_based_backend(backend_directory, config.backend),
        environment if os.path.isfile(environment) else "",
    ]
    prints = [repository.fingerprint(path) for path in filter(None, paths)]
    configs = repository.config_paths(source.files, source.config_name)
    others = [frozenset(file for file in files if file[0] not in configs) for files in prints]
    without = type(config)()
    without.CopyFrom(config)
    without.ClearField("instance_group")
    return Identity((source.config_json, *prints), (without.SerializeToString(deterministic=True), *others))


def remove(temporary: str) -> None:
    """Removes the directory of a source, if it has one."""
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)


def _path_parts(name: str, key: object) -> Tuple[str, ...]:
    if not isinstance(key, str) or not key.startswith(_FILE):
        raise InvalidArgument(f"failed to load '{name}', a file is named 'file:<version>/<path>', not {key!r}")
    # Triton's users write "file:/1/model.py" too.
    parts = key[len(_FILE) :].lstrip("/").split("/")
    if "\0" in key or not _encodes(key) or len(parts) > _MOST_PARTS or any(part in ("", os.curdir, os.pardir) for part in parts):
        raise InvalidArgument(f"failed to load '{name}', the path of '{key}' must lead to a file in the model's directory")
    return tuple(parts)


def _write(path: str, contents: Sequence[Tuple[Tuple[str, ...], bytes]]) -> None:
    os.mkdir(path)
    for parts, content in contents:
        file = os.path.join(path, *parts)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "xb") as out:
            out.write(content)


def _not_written(name: str, error: OSError) -> InvalidArgument:
    return InvalidArgument(f"failed to load '{name}', its files cannot be written: {error.strerror}")


def _encodes(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no file name can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
