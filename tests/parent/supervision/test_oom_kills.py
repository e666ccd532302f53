"""Which death is explained by the kernel's count of what it ended for want of memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stublet.parent.supervision import oom_kills
from stublet.parent.supervision.oom_kills import LATE, Group, OomKills, OomKillsOf, group_of


def test_each_kill_explains_one_death() -> None:
    kills = OomKills()
    kills.look(0, 5)
    assert not kills.claim(1, 5)
    assert kills.claim(2, 6)
    assert not kills.claim(3, 6)


def test_two_at_once_explain_two() -> None:
    kills = OomKills()
    kills.look(0, 0)
    assert [kills.claim(1, 2) for _ in range(3)] == [True, True, False]


def test_a_kill_that_was_noticed_before_the_death_explains_it() -> None:
    kills = OomKills()
    kills.look(0, 0)
    kills.look(10, 1)
    assert kills.claim(11, 1)


def test_a_kill_of_long_ago_explains_nothing() -> None:
    """It was another process of the same cgroup."""
    kills = OomKills()
    kills.look(0, 0)
    kills.look(10, 1)
    kills.look(10 + LATE + 1, 1)
    assert not kills.claim(10 + LATE + 2, 1)
    assert kills.claim(10 + LATE + 3, 2)


def test_kills_of_long_ago_are_forgotten_one_by_one() -> None:
    kills = OomKills()
    for second in range(1000):
        kills.look(second, second // 10)
    assert len(kills._seen) < LATE
    assert kills.claim(1000, 100)


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(oom_kills, "_CGROUPS", str(tmp_path))
    return tmp_path


def test_there_is_a_counter_for_this_process() -> None:
    """On any kernel since 4.13: that of its cgroup, or of the system."""
    group = group_of(os.getpid())
    assert group is not None and group.killed() is not None


def test_without_a_cgroup_the_system_counts(cgroups: Path) -> None:
    assert group_of(os.getpid()) == Group("/proc/vmstat", "")
    assert group_of(2**30) == Group("/proc/vmstat", "")


def test_what_a_container_sees_begins_at_its_own_group(cgroups: Path) -> None:
    for directory, counter, limit in (
        (cgroups, "memory.events", "memory.max"),
        (cgroups / "memory", "memory.oom_control", "memory.limit_in_bytes"),
    ):
        directory.mkdir(exist_ok=True)
        (directory / counter).write_text("low 0\noom 4\noom_kill 3\n")
        (directory / limit).write_text(f"{256 << 20}\n")
    group = group_of(os.getpid())
    assert group is not None and group.counter.startswith(str(cgroups))
    assert (group.killed(), group.limit_text()) == (3, "the limit of its cgroup is 256 MiB")


def test_processes_of_a_cgroup_share_their_kills(cgroups: Path) -> None:
    for directory, counter in ((cgroups, "memory.events"), (cgroups / "memory", "memory.oom_control")):
        directory.mkdir(exist_ok=True)
        (directory / counter).write_text("oom_kill 3\n")
    one, other = OomKillsOf.of(os.getpid(), 0), OomKillsOf.of(os.getppid(), 0)
    assert one is other is not None
    for file in (cgroups / "memory.events", cgroups / "memory" / "memory.oom_control"):
        file.write_text("oom_kill 4\n")
    assert one.claim(1) == ""
    assert one.claim(1) is None
