"""Packed environments: what is unpacked, and what an archive cannot do."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.environments import unpack as module
from stublet.parent.environments.unpack import UnpackError, unpack

UNFILTERED: Dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}
"""As in Pythons whose tarfile has no filters."""


def entry(name: str, content: bytes = b"", link: str = "", kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> Tuple[Any, bytes]:
    """An entry of an archive."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size, member.mode = kind, link, len(content), mode
    return member, content


def symlink(name: str, target: str) -> Tuple[Any, bytes]:
    return entry(name, link=target, kind=tarfile.SYMTYPE)


def hardlink(name: str, target: str) -> Tuple[Any, bytes]:
    return entry(name, link=target, kind=tarfile.LNKTYPE)


def folder(name: str) -> Tuple[Any, bytes]:
    return entry(name, kind=tarfile.DIRTYPE, mode=0o755)


def pack(path: Path, entries: Iterable[Tuple[Any, bytes]], compression: str = "") -> str:
    """An archive of these; returns its path."""
    with tarfile.open(path, f"w:{compression}") as tar:
        for member, content in entries:
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_a_small_archive_cannot_become_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_LIMIT_BYTES", 1 << 20)
    into = tmp_path / "into"
    into.mkdir()
    bomb = pack(tmp_path / "bomb", [entry(f"{number}", bytes(1 << 19)) for number in range(64)], "xz")
    limit = max(1 << 20, 100 * os.path.getsize(bomb))
    with pytest.raises(UnpackError) as caught:
        unpack(bomb, str(into))
    assert str(caught.value) == f"its entries take more than {limit} bytes, which is no environment of that size"
    assert sum(file.stat().st_size for file in into.iterdir()) <= limit


def test_many_empty_entries_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(module, "_MOST_RATIO", 1)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(UnpackError, match="its entries take more than 1048576 bytes"):
        unpack(pack(tmp_path / "bomb", (entry(str(number)) for number in range(3000)), "gz"), str(into))
    assert len(os.listdir(into)) == (1 << 20) // 512


def test_an_entry_that_is_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM_BYTES", 1 << 60)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(OSError, match="No space left on device"):
        unpack(pack(tmp_path / "packed", [entry("file", b"content")]), str(into))
    assert os.listdir(into) == []


@pytest.fixture(params=["filtered", "unfiltered"])
def into(tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to unpack in, beside nothing else than the archive."""
    if request.param == "unfiltered":
        monkeypatch.setattr(module, "_FILTER", UNFILTERED)
    directory = tmp_path / "into"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_what_is_in_it_is_unpacked(tmp_path: Path, into: Path, compression: str) -> None:
    entries = [
        folder("./"),
        folder("./bin"),
        entry("./bin/python3.12", b"program", mode=0o755),
        symlink("./bin/python", "python3.12"),
        entry("lib/deep/module.py", b"x" * 100_000),
        symlink("lib/deep/up", "../../bin/python3.12"),
        symlink("lib64", "lib"),
        entry("lib64/late", b"through a link that stays inside"),
        symlink("dangling", "lib/pruned"),
        hardlink("bin/again", "bin/python3.12"),
    ]
    unpack(pack(tmp_path / "packed", entries, compression), str(into))
    assert (into / "bin" / "python").read_bytes() == b"program"
    assert os.access(into / "bin" / "python", os.X_OK)
    assert not os.access(into / "lib" / "deep" / "module.py", os.X_OK)
    assert (into / "lib" / "deep" / "module.py").stat().st_size == 100_000
    assert (into / "lib" / "deep" / "up").read_bytes() == b"program"
    assert (into / "lib" / "late").read_bytes() == b"through a link that stays inside"
    assert (into / "bin" / "again").samefile(into / "bin" / "python")
    assert os.readlink(into / "dangling") == "lib/pruned"


@pytest.mark.parametrize(
    "entries, reason",
    [
        ([entry("/outside")], "its entry '/outside' is refused: Path is absolute"),
        ([entry("../outside")], "its entry '../outside' is refused: Path contains '..'"),
        ([folder("a"), entry("a/../../outside")], "Path contains '..'"),
        ([entry("a/../b")], "Path contains '..'"),
        ([symlink("link", "/etc/passwd")], "its entry 'link' is refused: it is a link to '/etc/passwd': Path is absolute"),
        ([symlink("a/link", "../../outside")], "its entry 'a/link' is refused: it is a link to '../../outside', which is outside"),
        ([symlink("link", "..")], "it is a link to '..', which is outside"),
        ([hardlink("link", "/etc/passwd")], "Path is absolute"),
        ([hardlink("link", "../outside")], "Path contains '..'"),
        ([entry("null", kind=tarfile.CHRTYPE)], "its entry 'null' is refused: it is a device or a pipe"),
        ([entry("disk", kind=tarfile.BLKTYPE)], "it is a device or a pipe"),
        ([entry("pipe", kind=tarfile.FIFOTYPE)], "it is a device or a pipe"),
        # Each link is inside when it comes; with the last one, the first leads outside.
        ([symlink("l", "d/e/../../z"), folder("f"), symlink("d/e", "../f")], "its entry 'l' is refused: it is a link that leads outside"),
        ([symlink("l", "d/e/../../z"), folder("f"), symlink("d/e", "../f"), entry("l/x", b"!")], "a link in its path leads outside"),
        # A link of a link is another link, seen from elsewhere.
        ([folder("a"), symlink("a/l", "../a"), hardlink("l", "a/l")], "its entry 'l' is refused: it is a link that leads outside"),
    ],
)
def test_what_is_refused(tmp_path: Path, into: Path, entries: List[Tuple[Any, bytes]], reason: str) -> None:
    packed = pack(tmp_path / "packed", entries)
    with pytest.raises(UnpackError) as caught:
        unpack(packed, str(into))
    assert reason in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["into", "packed"]


def test_a_file_takes_the_place_of_a_link(tmp_path: Path, into: Path) -> None:
    entries = [entry("target", b"kept"), symlink("link", "target"), entry("link", b"new"), entry("target2"), hardlink("target2", "target")]
    unpack(pack(tmp_path / "packed", entries), str(into))
    assert (into / "target").read_bytes() == b"kept"
    assert (into / "link").read_bytes() == b"new"
    assert not (into / "link").is_symlink()


def test_files_belong_to_who_unpacks_them(tmp_path: Path, into: Path) -> None:
    member, content = entry("bin/su", b"#!", mode=0o4777)
    member.uid, member.gid, member.uname = 12345, 12345, "nobody"
    unpack(pack(tmp_path / "packed", [(member, content), entry("locked", mode=0), folder("d"), entry("d/f")]), str(into))
    status = (into / "bin" / "su").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.getuid(), 0o755)
    assert os.access(into / "locked", os.R_OK | os.W_OK)


def test_what_is_damaged(tmp_path: Path, into: Path) -> None:
    whole = Path(pack(tmp_path / "whole.tar.gz", [entry("large", os.urandom(200_000))], "gz")).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:-50_000])
    (tmp_path / "spoilt.tar.gz").write_bytes(whole[:100_000] + bytes(16) + whole[100_016:])
    for name in ("cut.tar.gz", "spoilt.tar.gz"):
        with pytest.raises(UnpackError, match=r"^it is damaged: "):
            unpack(str(tmp_path / name), str(into))
    for content in (b"", b"no archive at all\n" * 100):
        (tmp_path / "none").write_bytes(content)
        with pytest.raises(UnpackError, match=r"^it is no tar archive, compressed or not$"):
            unpack(str(tmp_path / "none"), str(into))


def test_as_a_program(tmp_path: Path, into: Path) -> None:
    def run(*entries: Tuple[Any, bytes]) -> Any:
        command = [sys.executable, "-I", "-S", module.__file__, pack(tmp_path / "packed", entries), str(into)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(entry("a", b"1"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (into / "a").read_bytes() == b"1"
    done = run(entry("/b"))
    assert (done.returncode, done.stderr) == (1, "its entry '/b' is refused: Path is absolute\n")
    (into / "c").mkdir()
    (into / "c" / "in the way").touch()
    done = run(entry("c"))
    assert done.returncode == 1
    assert str(into / "c") in done.stderr


names = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4).map("/".join)
entries = st.one_of(
    st.builds(folder, names),
    st.builds(symlink, names, names),
    st.builds(hardlink, names, names),
    names.map(lambda name: entry(name, b"from the archive")),
)


@pytest.mark.parametrize("filtered", [True, False])
@given(archive=st.lists(entries, max_size=8))
def test_nothing_is_written_outside(filtered: bool, archive: List[Tuple[Any, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        if not filtered:
            patch.setattr(module, "_FILTER", UNFILTERED)
        # Two levels down, with files where the names lead.
        into = Path(temporary) / "c" / "into"
        into.mkdir(parents=True)
        outside = [Path(temporary) / "a", Path(temporary) / "c" / "a", Path(temporary) / "c" / "b"]
        for path in outside:
            path.write_text("untouched")
        packed = pack(Path(temporary) / "packed", archive)
        try:
            unpack(packed, str(into))
        except (UnpackError, OSError):
            pass
        else:
            for directory, folders, files in os.walk(into):
                for name in folders + files:
                    assert os.path.realpath(os.path.join(directory, name)).startswith(str(into.resolve()))
        assert all(path.read_text() == "untouched" and path.stat().st_nlink == 1 for path in outside)
        assert sorted(os.listdir(temporary)) == ["a", "c", "packed"]
        assert sorted(os.listdir(into.parent)) == ["a", "b", "into"]
