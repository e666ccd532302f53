"""The server's temporary directory: whose it is, and when it goes."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Iterator, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.shutdown import ModelBudget, clients_seconds
from stublet.parent.workspace import Workspace


@pytest.fixture
def told() -> List[str]:
    return []


@pytest.fixture
def workspace(temporary: Path, told: List[str]) -> Iterator[Workspace]:
    workspace = Workspace(told.append)
    yield workspace
    workspace.close()


def test_it_is_made_when_it_is_wanted(workspace: Workspace, temporary: Path, told: List[str]) -> None:
    assert os.listdir(temporary) == []
    path = Path(workspace.path())
    assert list(temporary.iterdir()) == [path]
    assert workspace.path() == str(path)
    assert told == [str(path)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_it_goes_with_all_that_is_in_it(workspace: Workspace, temporary: Path) -> None:
    (Path(workspace.path()) / "model").mkdir()
    workspace.close()
    workspace.close()
    assert os.listdir(temporary) == []


def abandoned(temporary: Path, name: str = "stublet-server-left") -> Path:
    """What a server left that was killed some time ago."""
    directory = temporary / name
    (directory / "model").mkdir(parents=True)
    os.utime(directory, (0, 0))
    return directory


def test_what_others_left_goes(workspace: Workspace, temporary: Path) -> None:
    left = abandoned(temporary)
    workspace.path()
    assert not left.exists()


def test_what_others_use_stays(workspace: Workspace, temporary: Path) -> None:
    used, new, other = abandoned(temporary), temporary / "stublet-server-new", abandoned(temporary, "another-server")
    new.mkdir()
    link = temporary / "stublet-server-link"
    link.symlink_to(other)
    os.utime(link, (0, 0), follow_symlinks=False)
    lock = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workspace.path()
        assert used.exists() and new.exists() and other.exists() and link.is_symlink()
    finally:
        os.close(lock)


def test_two_servers(temporary: Path, workspace: Workspace, told: List[str]) -> None:
    other = Workspace(told.append)
    assert workspace.path() != other.path()
    other.close()
    assert Path(workspace.path()).exists()


def test_what_is_handed_over(workspace: Workspace, temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    workspace.hand_over(str(elsewhere), os.getuid(), os.getgid())
    root = Path(workspace.path())
    model, other = root / "model-1" / "m" / "1", root / "model-2"
    model.mkdir(parents=True)
    other.mkdir(mode=0o700)
    (model / "model.py").touch()
    user, group = (65534, 65534) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    workspace.hand_over(str(model.parent), user, group)
    handed = [root / "model-1", model.parent, model, model / "model.py"]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in handed} == {(user, group)}
    assert (other.stat().st_uid, root.stat().st_uid, elsewhere.stat().st_uid) == (os.getuid(),) * 3
    assert stat.S_IMODE(root.stat().st_mode) == 0o711


@given(st.floats(0, 1e6))
def test_the_time_for_an_end_is_divided(seconds: float) -> None:
    budget = ModelBudget.of(seconds)
    assert 0 <= budget.requests <= budget.finalize <= budget.terminate == seconds
    assert budget.finalize >= 0.89 * seconds and budget.terminate - budget.finalize <= 2
    assert 0 <= clients_seconds(seconds) <= seconds
