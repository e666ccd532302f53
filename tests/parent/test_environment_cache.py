"""Environments are made once, whoever asks, and nothing half-made is kept."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, List, Optional

import pytest
from leaks import eventually
from stublet.parent.environments import cache as cache_module
from stublet.parent.environments.cache import Ended, EnvironmentCache, cache_root, content_hash, key_of

NEVER = threading.Event()


def ended() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


class Made:
    """Makes environments of one file each, and counts them."""

    def __init__(self, root: Path) -> None:
        self.cache = EnvironmentCache(str(root))
        self.times = 0

    def get(self, key: str = "key", make: Optional[Callable[[], None]] = None, ending: threading.Event = NEVER) -> Path:
        def make_it(directory: str, lock: int) -> None:
            self.times += 1
            os.mkdir(directory)
            if make is not None:
                make()
            (Path(directory) / "made").touch()

        return Path(self.cache.get(key, "/its/origin", lambda directory: (Path(directory) / "made").exists(), make_it, ending))

    @property
    def names(self) -> List[str]:
        return sorted(os.listdir(self.cache.directory))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "cache")


def test_made_once(made: Made) -> None:
    environment = made.get()
    assert (environment / "made").exists()
    assert made.get() == environment
    assert made.times == 1
    assert made.names == ["key"]
    assert (environment.parent / "complete").read_text() == "/its/origin\n"
    assert os.stat(made.cache.directory).st_mode & 0o022 == 0


def test_made_once_by_many_threads(made: Made) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: made.get(make=lambda: time.sleep(0.05)), range(8)))
    assert len(found) == made.times == 1
    assert made.names == ["key"]


def test_made_again_when_no_longer_usable(made: Made) -> None:
    environment = made.get()
    (environment / "made").unlink()
    (environment / "other").touch()
    assert made.get() == environment
    assert made.times == 2
    assert os.listdir(environment) == ["made"]


def test_nothing_of_a_failure_is_kept(made: Made) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        made.get(make=fail)
    assert made.names == []
    assert made.get().exists()


def test_what_a_killed_server_left_goes(made: Made) -> None:
    killed = """
import os, signal, sys, threading
from stublet.parent.environments.cache import EnvironmentCache
def make(directory, lock):
    os.makedirs(directory + "/half")
    os.kill(os.getpid(), signal.SIGKILL)
EnvironmentCache(sys.argv[1]).get(sys.argv[2], "", os.path.exists, make, threading.Event())
"""
    # By whoever makes the same, and by whoever makes another.
    for left, key in (("first", "first"), ("second", "another")):
        subprocess.run([sys.executable, "-c", killed, os.path.dirname(made.cache.directory), left], check=False)
        assert {left, f"{left}.lock"} <= set(made.names)
        assert os.listdir(made.get(key)) == ["made"]
    assert made.names == ["another", "first"]


def test_what_another_server_makes_is_waited_for(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    os.makedirs(os.path.join(made.cache.directory, "key", "env"))
    path = os.path.join(made.cache.directory, "key.lock")
    other = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(Ended):
        made.get(ending=ended())
    # An environment of another key does not wait, and does not take what is being made for left over.
    assert made.get("second").exists()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(made.get)
        eventually(lambda: "Waiting for another model or server that prepares Python execution env /its/origin" in caplog.text)
        for name in ("env/made", "complete"):
            Path(made.cache.directory, "key", name).touch()
        os.unlink(path)
        os.close(other)
        assert (waiting.result(10) / "made").exists()
    assert made.times == 1
    assert made.names == ["key", "second"]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("STUBLET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_root() == "/home/me/.cache/stublet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    assert cache_root() == "/home/me/.cache/stublet"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_root() == "/var/cache/stublet"
    monkeypatch.setenv("STUBLET_CACHE", "here")
    assert cache_root() == os.path.abspath("here")


def test_keys_tell_their_parts_apart() -> None:
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of("abc"), key_of("a\udcff")}) == 4


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "archive"
    file.write_bytes(b"x" * 3_000_000)
    first = content_hash(str(file), NEVER)
    (tmp_path / "link").symlink_to(file)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.hashlib, "sha256", None)  # type: ignore[attr-defined]
        assert content_hash(str(file), NEVER) == content_hash(str(tmp_path / "link"), NEVER) == first
    os.utime(file, ns=(1, 1))
    assert content_hash(str(file), NEVER) == first
    file.write_bytes(b"y" * 3_000_000)
    assert content_hash(str(file), NEVER) != first
    os.utime(file, ns=(2, 2))
    with pytest.raises(Ended):
        content_hash(str(file), ended())
