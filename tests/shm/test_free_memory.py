"""How much memory there still is, as machine and control groups say."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import pytest
from stublet.shm import free_memory
from stublet.shm.free_memory import Group, groups_of, shortage

MIB = 1 << 20
LIMIT, USAGE = "memory.max", "memory.current"
NO_LIMIT_V1 = 0x7FFFFFFFFFFFF000


@pytest.fixture
def meminfo(tmp_path: Path) -> str:
    """A machine with 1 GiB available."""
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  8388608 kB\nMemFree:  1 kB\nMemAvailable:  1048576 kB\n")
    return str(path)


def group(directory: Path, limit: object, usage: int, cached: int = 0) -> Group:
    directory.mkdir(parents=True)
    (directory / LIMIT).write_text(f"{limit}\n")
    (directory / USAGE).write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(f"anon 5\ninactive_file {cached // 2}\nactive_file {cached - cached // 2}\nshmem 7\n")
    return Group(str(directory / LIMIT), str(directory / USAGE), str(directory / "memory.stat"), "")


@pytest.mark.parametrize("nbytes, available", [(900 * MIB, None), (961 * MIB, 1024 * MIB)])
def test_the_machine_keeps_64_mib(meminfo: str, nbytes: int, available: Optional[int]) -> None:
    assert shortage(nbytes, [], meminfo) == (None if available is None else ("the machine", available))


@pytest.mark.parametrize(
    "limit, usage, cached, nbytes, short",
    [
        ("max", 0, 0, 100 * MIB, None),
        (NO_LIMIT_V1, 0, 0, 100 * MIB, None),
        (256 * MIB, 100 * MIB, 0, 140 * MIB, None),
        (256 * MIB, 100 * MIB, 0, 141 * MIB, 156 * MIB),
        (256 * MIB, 250 * MIB, 150 * MIB, 140 * MIB, None),
        (256 * MIB, 250 * MIB, 150 * MIB, 141 * MIB, 156 * MIB),
        (256 * MIB, 300 * MIB, 0, 1, 0),
    ],
)
def test_a_group_has_a_limit(
    tmp_path: Path, meminfo: str, limit: object, usage: int, cached: int, nbytes: int, short: Optional[int]
) -> None:
    """Pages of files are dropped when memory is wanted, so they count as free."""
    found = shortage(nbytes, [group(tmp_path / "group", limit, usage, cached)], meminfo)
    assert found == (None if short is None else (f"the container (cgroup), which may have {limit},", short))


def test_the_tightest_of_several_groups_counts(tmp_path: Path, meminfo: str) -> None:
    groups = [group(tmp_path / "inner", "max", 5), group(tmp_path / "outer", 100 * MIB, 90 * MIB)]
    found = shortage(20 * MIB, groups, meminfo)
    assert found is not None and found.available == 10 * MIB


def test_what_cannot_be_read_limits_nothing(tmp_path: Path) -> None:
    gone = Group(*[str(tmp_path / name) for name in ("limit", "usage", "stat")], "")
    assert shortage(1 << 40, [gone], str(tmp_path / "none")) is None


def places(groups: List[Group], root: Path) -> List[str]:
    return [str(Path(each.limit).relative_to(root)) for each in groups]


def test_groups_of_version_2_are_found_up_to_the_root(tmp_path: Path) -> None:
    group(tmp_path / "system.slice/a.service", 5, 1)
    (tmp_path / "system.slice" / LIMIT).write_text("max")
    groups = groups_of(str(tmp_path), "0::/system.slice/a.service\n")
    assert places(groups, tmp_path) == ["system.slice/a.service/memory.max", "system.slice/memory.max"]


def test_in_a_container_the_group_is_the_root(tmp_path: Path) -> None:
    (tmp_path / LIMIT).write_text("5")
    assert places(groups_of(str(tmp_path), "0::/\n"), tmp_path) == [LIMIT]
    assert places(groups_of(str(tmp_path), "0::/../../kubepods/pod7\n"), tmp_path)[-1] == LIMIT


def test_groups_of_version_1(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / "memory.limit_in_bytes").write_text("5")
    membership = "9:name=systemd:/x\n5:cpu,cpuacct:/y\n4:memory:/docker/0123\n0::/\n"
    (found,) = groups_of(str(tmp_path), membership)
    assert (found.limit, found.cached) == (str(memory / "memory.limit_in_bytes"), "total_")


def test_this_process_has_some_memory() -> None:
    assert shortage(1) is None and shortage(1 << 50) is not None
    assert 1 << 20 < free_memory.total_memory() < 1 << 50
