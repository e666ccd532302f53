"""Unpacks a packed environment, and trusts nothing that the archive says about where its entries belong.

``unpack`` is run as a program by path, in a process of its own: a large environment is 100,000 files, and the server would share its
interpreter lock with all of them. So this file imports the standard library only.

Names and targets are checked as text, and before anything is written the directory that it goes to is resolved with all symlinks in it:
links that were harmless when they came may together lead outside later. Nothing is ever written through a link.
"""

from __future__ import annotations

import errno
import os
import sys
import tarfile
import zlib
from contextlib import suppress
from gzip import BadGzipFile
from lzma import LZMAError
from typing import Any, Dict, List

_DAMAGED = (tarfile.TarError, BadGzipFile, EOFError, zlib.error, LZMAError)
_FILTER: Dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
_REFUSED: Any = getattr(tarfile, "FilterError", ())

_MODE = 0o755
"""The permissions that an archive may ask for."""

_CHUNK = 1 << 20
_BLOCK_BYTES = 512

_LEAST_LIMIT_BYTES = 1 << 30
_MOST_RATIO = 100
"""An environment is unpacked to three or four times the size of its archive."""

_ROOM_BYTES = 64 << 20
"""What is to be left of the disk."""


class UnpackError(Exception):
    """The archive is damaged, or an entry of it is refused; the text says which and why."""


def unpack(archive: str, directory: str) -> None:
    """Unpacks a tar, compressed or not, into ``directory``, which exists and is empty.

    Raises:
        UnpackError: it is none, it is damaged, or an entry is refused. What was unpacked before stays.
        OSError: an entry cannot be written.
    """
    if not tarfile.is_tarfile(archive):
        raise UnpackError("it is no tar archive, compressed or not")
    try:
        with tarfile.open(archive) as tar:
            _Unpacking(tar, directory, max(_LEAST_LIMIT_BYTES, _MOST_RATIO * os.path.getsize(archive))).run()
    except _DAMAGED as error:
        raise UnpackError(f"it is damaged: {error}") from error


class _Unpacking:
    def __init__(self, tar: tarfile.TarFile, directory: str, limit: int) -> None:
        self._tar = tar
        self._limit = limit
        self._taken = 0
        self._root = os.path.realpath(directory)
        self._links: List[str] = []
        self._safe = ""
        """The directory that was resolved last; the entries of a directory follow each other."""

    def run(self) -> None:
        # In the order of the archive: to look at all members first would decompress it twice.
        for member in self._tar:
            self._count(member)
            try:
                self._extract(member)
            except _REFUSED as error:
                raise UnpackError(f"its entry '{member.name}' is refused: {error}") from error
        # To the very end, where the compression's checksum is.
        while self._tar.fileobj is not None and self._tar.fileobj.read(_CHUNK):
            pass
        for link in self._links:
            if not self._is_within(os.path.realpath(link)):
                raise UnpackError(f"its entry '{os.path.relpath(link, self._root)}' is refused: it is a link that leads outside")

    def _count(self, member: tarfile.TarInfo) -> None:
        """What the entry will take, whatever the archive, which may be small, says."""
        self._taken += _BLOCK_BYTES + member.size
        if self._taken > self._limit:
            raise UnpackError(f"its entries take more than {self._limit} bytes, which is no environment of that size")
        disk = os.statvfs(self._root)
        if member.size + _ROOM_BYTES > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _extract(self, member: tarfile.TarInfo) -> None:
        self._check_name(member, member.name)
        if member.isdev():
            raise UnpackError(f"its entry '{member.name}' is refused: it is a device or a pipe")
        path = self._path(member.name)
        if path == self._root:
            return
        self._check_directory(member, os.path.dirname(path))
        if member.issym():
            self._check_target(member, os.path.join(os.path.dirname(path), member.linkname))
        elif member.islnk():
            self._check_name(member, member.linkname)
            self._check_target(member, self._path(member.linkname))
        if os.path.islink(path) or (os.path.exists(path) and not member.isdir()):
            os.unlink(path)
        if member.issym() or member.islnk():
            # Not by tarfile, which may make something else of a link that it cannot make.
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if member.issym():
                os.symlink(member.linkname, path)
            else:
                os.link(self._path(member.linkname), path, follow_symlinks=False)
        else:
            # Its owner may change everything, as conda-unpack does, and nobody else anything.
            member.name = os.path.normpath(member.name)
            member.mode = (member.mode or 0) & _MODE | (0o700 if member.isdir() else 0o600)
            member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
            self._tar.extract(member, self._root, **_FILTER)
        if os.path.islink(path):
            self._links.append(path)
            self._safe = ""

    def _path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self._root, name))

    def _check_name(self, member: tarfile.TarInfo, name: str) -> None:
        if os.path.isabs(name):
            raise UnpackError(f"its entry '{member.name}' is refused: Path is absolute")
        if ".." in name.split("/"):
            raise UnpackError(f"its entry '{member.name}' is refused: Path contains '..'")

    def _check_directory(self, member: tarfile.TarInfo, directory: str) -> None:
        if directory == self._safe:
            return
        existing = directory
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        try:
            # Strict: what cannot be resolved, such as a path that grew too long, is not taken for what it looks like.
            inside = self._is_within(os.path.realpath(existing, strict=True))
        except OSError:
            inside = False
        if not inside:
            raise UnpackError(f"its entry '{member.name}' is refused: a link in its path leads outside or nowhere")
        if existing == directory:
            self._safe = directory

    def _check_target(self, member: tarfile.TarInfo, target: str) -> None:
        if os.path.isabs(member.linkname):
            raise UnpackError(f"its entry '{member.name}' is refused: it is a link to '{member.linkname}': Path is absolute")
        if not self._is_within(os.path.realpath(target)):
            raise UnpackError(f"its entry '{member.name}' is refused: it is a link to '{member.linkname}', which is outside")

    def _is_within(self, resolved: str) -> bool:
        return resolved == self._root or resolved.startswith(self._root + os.sep)


def main(archive: str, directory: str) -> int:
    """Unpacks; says what is wrong on standard error."""
    try:
        unpack(archive, directory)
    except (UnpackError, OSError) as error:
        with suppress(BrokenPipeError):
            print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
