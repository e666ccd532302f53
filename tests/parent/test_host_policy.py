"""On which cores instances run, as the command line says it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import FrozenSet

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.placement.host_policy import HostPolicies, parse_cores, spelled

ALLOWED = sorted(os.sched_getaffinity(0))
ONE = ALLOWED[-1]
MISSING = max(ALLOWED) + 1


def test_without_policies_every_core_is_allowed() -> None:
    policies = HostPolicies()
    assert policies.cores("cpu") == set(ALLOWED) and not policies.pinned("cpu")


def test_the_cores_of_a_policy() -> None:
    policies = HostPolicies([f"mine,cpu-cores={ONE}-{ONE}", f"all,cpu-cores={spelled(frozenset(ALLOWED))}"])
    assert policies.cores("mine") == {ONE} and policies.pinned("mine")
    assert policies.cores("all") == set(ALLOWED) and policies.pinned("all")
    assert policies.cores("cpu") == set(ALLOWED) and not policies.pinned("cpu")


def test_the_cores_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "node3").mkdir()
    (tmp_path / "node3" / "cpulist").write_text(f"{ONE},{MISSING}\n")
    policies = HostPolicies(["cpu,numa-node=3"], str(tmp_path))
    assert policies.cores("cpu") == {ONE}, "those of the node that this process may use"


def test_cores_go_before_the_node(tmp_path: Path) -> None:
    (tmp_path / "node0").mkdir()
    (tmp_path / "node0" / "cpulist").write_text(f"0-{MISSING}\n")
    policies = HostPolicies(["cpu,numa-node=0", f"cpu,cpu-cores={ONE}"], str(tmp_path))
    assert policies.cores("cpu") == {ONE}


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("cpu", "'cpu' is not of the form <policy>,<setting>=<value>"),
        ("cpu,cpu-cores", "is not of the form"),
        (",cpu-cores=0", "is not of the form"),
        ("cpu,cpu-cores=", "is not of the form"),
        ("cpu,foo=1", "Unsupported host policy setting 'foo' is specified, supported settings are 'numa-node', 'cpu-cores'"),
        ("cpu,cpu-cores=a-b", "cores are given as in 0-3,8, the lower of a range first, not as 'a-b'"),
        ("cpu,cpu-cores=1-0", "not as '1-0'"),
        ("cpu,cpu-cores=0,", "not as '0,'"),
        ("cpu,cpu-cores=-1", "not as '-1'"),
        (f"cpu,cpu-cores={ONE},{MISSING}", f"policy 'cpu': there are no cores {MISSING} that this process may use, only"),
        ("cpu,numa-node=x", "'numa-node' is the number of a node, not 'x'"),
        ("cpu,numa-node=7", "there is no NUMA node 7; there are: 2, 10"),
        ("cpu,numa-node=10", "policy 'cpu': this process may use no core of NUMA node 10, only"),
    ],
)
def test_what_cannot_be(text: str, complaint: str, tmp_path: Path) -> None:
    for number in (2, 10):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(f"{MISSING}\n")
    with pytest.raises(ValueError, match=re.escape(complaint)):
        HostPolicies([text], str(tmp_path))


def test_a_machine_without_nodes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no NUMA node 0; there are: none"):
        HostPolicies(["cpu,numa-node=0"], str(tmp_path / "none"))


@given(st.frozensets(st.integers(0, 300), min_size=1))
def test_cores_read_as_they_are_spelled(cores: FrozenSet[int]) -> None:
    assert parse_cores(spelled(cores)) == cores
