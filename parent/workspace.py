"""The server's temporary directory. It goes with the server, however that ends.

The server removes it in the end; the fork server does if the server was killed; and if both were killed, the next server that makes one
does: the directory is locked (flock) for as long as its server lives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from typing import Callable, Optional

_PREFIX = "stublet-server-"

_NEW_SECONDS = 60.0
"""One that is younger may belong to a server that is about to lock it."""


class Workspace:
    """Any thread may use it.

    Args:
        remove_at_end: takes the path of a directory that is to be removed if this process is killed.
    """

    def __init__(self, remove_at_end: Callable[[str], None]) -> None:
        self._remove_at_end = remove_at_end
        self._making = threading.Lock()
        self._path = ""
        self._lock: Optional[int] = None

    def path(self) -> str:
        """The directory, which nobody else may enter. It is made when it is asked for first.

        Raises:
            OSError: it cannot be made.
        """
        with self._making:
            if not self._path:
                _remove_abandoned()
                path = tempfile.mkdtemp(prefix=_PREFIX)
                self._remove_at_end(path)
                self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self._path = path
            return self._path

    def hand_over(self, directory: str, uid: int, gid: int) -> None:
        """Gives what a model is made of to the user that it runs as.

        Args:
            directory: the model's; nothing is done if it is elsewhere.

        Raises:
            OSError: the server may not do that.
        """
        inside = os.path.relpath(directory, self._path) if self._path else os.pardir
        if inside.split(os.sep)[0] == os.pardir:
            return
        os.chmod(self._path, 0o711)
        for parent, _, files in os.walk(os.path.join(self._path, inside.split(os.sep)[0])):
            for path in (parent, *(os.path.join(parent, file) for file in files)):
                os.chown(path, uid, gid, follow_symlinks=False)

    def close(self) -> None:
        """Removes it."""
        if self._lock is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def _remove_abandoned() -> None:
    """Removes what servers left that were killed together with their fork servers."""
    root = tempfile.gettempdir()
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if not name.startswith(_PREFIX):
            continue
        with suppress(OSError):
            about = os.lstat(path)
            # Not one of another user, nor a link that somebody put there.
            if about.st_uid != os.geteuid() or time.time() - about.st_mtime < _NEW_SECONDS:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
