"""Environments made once and kept: directories named by a hash of what they were made from, shared by all models and servers of a user.

An environment is made where it will stay, because environments know their own path (in scripts, and through conda-unpack), so a rename
cannot publish it. Instead the file ``complete`` beside it is written last::

    <cache>/environments/<key>/env/...     the environment
    <cache>/environments/<key>/complete    what it was made from; without this file the directory is half-made
    <cache>/environments/<key>.lock        locked (flock) by who makes it, and by the programs that help; else not there

A lock goes with its holders, however they end. So a directory that is not complete and not locked is what a killed server left; it goes
when the next environment is made. Complete ones stay: a user may delete any that no model uses.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import threading
from contextlib import contextmanager, suppress
from typing import Callable, Dict, Iterator, Optional, Tuple

logger = logging.getLogger(__name__)

_FORMAT = "1"
"""Part of every key. To be changed when environments are made in another way."""

_LOOK_SECONDS = 0.1
_CHUNK = 1 << 20

_hashes: Dict[Tuple[object, ...], str] = {}
_hashing = threading.Lock()


class Ended(Exception):
    """The server is ending. What was being made has been removed."""


def cache_root() -> str:
    """Where things are kept: ``$STUBLET_CACHE``, ``$XDG_CACHE_HOME/stublet`` or ``~/.cache/stublet``."""
    chosen = os.environ.get("STUBLET_CACHE")
    if chosen:
        return os.path.abspath(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "stublet")


def key_of(*parts: str) -> str:
    """The name of the environment that is made from these."""
    return hashlib.sha256("\0".join((_FORMAT, *parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def identity(path: str) -> Tuple[object, ...]:
    """What changes when the file at ``path`` is written or replaced."""
    stat = os.stat(path)
    return (os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_dev, stat.st_ino)


def content_hash(path: str, ending: threading.Event) -> str:
    """A hash of the file's content, remembered while the file looks untouched: an archive of gigabytes is read once.

    Raises:
        OSError: it cannot be read.
        Ended: ``ending`` was set meanwhile.
    """
    with _hashing:  # in turn: of two models that share an archive, one reads it
        known = identity(path)
        if known not in _hashes:
            digest = hashlib.sha256()
            with open(path, "rb", buffering=0) as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    if ending.is_set():
                        raise Ended
            _hashes[known] = digest.hexdigest()
        return _hashes[known]


class EnvironmentCache:
    """The environments below ``root``. Threads and processes may use it at the same time."""

    def __init__(self, root: str) -> None:
        self.directory = os.path.join(root, "environments")

    def get(self, key: str, origin: str, usable: Callable[[str], bool], make: Callable[[str, int], None], ending: threading.Event) -> str:
        """The directory of the environment ``key``. It is made if it is not there, or not usable any more; one that another thread or
        server is making is waited for.

        Args:
            origin: what it is made from, for people.
            usable: whether the environment in this directory still is what it was; its interpreter may have been uninstalled.
            make: makes one in this directory, which does not exist yet. The programs that it starts should inherit this descriptor,
                which is the lock: if they outlive the server, no other builds in the same place. When it raises, all is removed.
            ending: ends the wait for another's work.

        Raises:
            OSError: the cache cannot be written.
            Ended: ``ending`` was set during the wait.
        """
        container = os.path.join(self.directory, key)
        environment = os.path.join(container, "env")
        if _complete(container) and usable(environment):
            return environment
        # Others may use what is here (an image may carry it, made by root), and change nothing.
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        with self._lock(key, origin, ending) as lock:
            if _complete(container) and usable(environment):
                return environment
            self._remove_half_made(but=key)
            _remove(container)
            os.mkdir(container, mode=0o755)
            try:
                make(environment, lock)
                with open(os.path.join(container, "complete"), "w", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{origin}\n")
            except BaseException:
                _remove(container)
                raise
        return environment

    @contextmanager
    def _lock(self, key: str, origin: str, ending: threading.Event) -> Iterator[int]:
        """The descriptor of the lock of ``key``, once it is held."""
        waiting = False
        while True:
            lock = self._try_lock(key)
            if lock is not None:
                break
            if not waiting:
                logger.info("Waiting for another model or server that prepares Python execution env %s", origin)
                waiting = True
            if ending.wait(_LOOK_SECONDS):
                raise Ended
        try:
            yield lock
        finally:
            self._unlock(key, lock)

    def _try_lock(self, key: str) -> Optional[int]:
        """The descriptor, or None when another holds the lock."""
        path = self._lock_path(key)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder before may have removed the name meanwhile: then this lock is nobody's.
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        return None

    def _unlock(self, key: str, lock: int) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._lock_path(key))
        os.close(lock)

    def _lock_path(self, key: str) -> str:
        return os.path.join(self.directory, f"{key}.lock")

    def _remove_half_made(self, but: str) -> None:
        """Removes what killed servers left."""
        for name in os.listdir(self.directory):
            container = os.path.join(self.directory, name)
            if name == but or not os.path.isdir(container) or _complete(container):
                continue
            lock = self._try_lock(name)
            if lock is None:
                continue
            try:
                if not _complete(container):
                    _remove(container)
            finally:
                self._unlock(name, lock)


def _complete(container: str) -> bool:
    return os.path.exists(os.path.join(container, "complete"))


def _remove(container: str) -> None:
    # In this order: what is removed by half must not count as made.
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(container, "complete"))
    shutil.rmtree(container, ignore_errors=True)
