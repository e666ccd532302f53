"""The environment that every stub starts in."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest
from stublet.parent import fork_server

THRESHOLD = "glibc.cpu.x86_non_temporal_threshold"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    size = tmp_path / "size"
    size.write_text("32768K\n")
    monkeypatch.setattr(fork_server, "_CACHE_SIZE", str(size))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return size


def test_large_copies_go_past_the_cache(cache: Path) -> None:
    assert fork_server._tuning() == {"GLIBC_TUNABLES": f"{THRESHOLD}={8 << 20}"}


def test_what_the_user_chose_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert fork_server._tuning() == {"GLIBC_TUNABLES": f"glibc.malloc.check=1:{THRESHOLD}={8 << 20}"}
    monkeypatch.setenv("GLIBC_TUNABLES", f"{THRESHOLD}=4096")
    assert fork_server._tuning() == {}


@pytest.mark.parametrize("size", [None, "", "2M", "unknown"])
def test_a_cache_of_unknown_size_changes_nothing(cache: Path, size: Optional[str]) -> None:
    if size is None:
        cache.unlink()
    else:
        cache.write_text(size)
    assert fork_server._tuning() == {}
