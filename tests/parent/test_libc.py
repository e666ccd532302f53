"""How the C library is to copy large blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest
from stublet.parent import libc

THRESHOLD = "glibc.cpu.x86_non_temporal_threshold"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    size = tmp_path / "size"
    size.write_text("32768K\n")
    monkeypatch.setattr(libc, "_CACHE_SIZE", str(size))
    monkeypatch.setattr(libc.os, "confstr", lambda _: "glibc 2.36")  # type: ignore[attr-defined]
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return size


def test_large_copies_go_past_the_cache(cache: Path) -> None:
    assert libc.copy_tuning() == {"GLIBC_TUNABLES": f"{THRESHOLD}={8 << 20}"}


def test_what_the_user_chose_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert libc.copy_tuning() == {"GLIBC_TUNABLES": f"glibc.malloc.check=1:{THRESHOLD}={8 << 20}"}
    monkeypatch.setenv("GLIBC_TUNABLES", f"{THRESHOLD}=4096")
    assert libc.copy_tuning() == {}


@pytest.mark.parametrize("size", [None, "", "2M", "unknown"])
def test_a_cache_of_unknown_size_changes_nothing(cache: Path, size: Optional[str]) -> None:
    if size is None:
        cache.unlink()
    else:
        cache.write_text(size)
    assert libc.copy_tuning() == {}


@pytest.mark.parametrize("version", [None, "", "glibc", "musl 1.2", "glibc 2.38", "glibc 2.41", "glibc 3"])
def test_a_library_that_needs_none_or_does_not_know_it(cache: Path, monkeypatch: pytest.MonkeyPatch, version: Optional[str]) -> None:
    monkeypatch.setattr(libc.os, "confstr", lambda _: version)  # type: ignore[attr-defined]
    assert libc.copy_tuning() == {}
