"""Where instances run, and how many threads they get."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from stublet.parent import model_config
from stublet.parent.model_config import ConfigError
from stublet.parent.placement import placement
from stublet.parent.placement.host_policy import HostPolicies, parse_cores
from stublet.parent.placement.instance_groups import instance_specs
from stublet.parent.placement.placement import place

NO_GPU = not list(Path("/dev").glob("nvidia[0-9]*"))


def configured(text: str) -> Any:
    config = model_config.parse(text, "config.pbtxt")
    model_config.complete(config, "m")
    return config


class Machine(HostPolicies):
    """Of eight cores, and policies for some of them."""

    def __init__(self, **policies: str) -> None:
        self._cores = {"everything": frozenset(range(8)), **{name: parse_cores(text) for name, text in policies.items()}}

    def cores(self, policy: str) -> Any:
        return self._cores.get(policy, self._cores["everything"])


def threads(
    text: str, policies: HostPolicies, environment: Optional[Dict[str, str]] = None, quota: str = "/nowhere"
) -> List[Optional[int]]:
    return [placed.threads for _, placed in place(configured(text), policies, environment or {}, quota)]


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("", [8]),
        ("instance_group { count: 2 }", [4, 4]),
        ("instance_group { count: 3 }", [2, 2, 2]),
        ("instance_group { count: 9 }", [1] * 9),
        ("instance_group { count: 1 } instance_group { count: 1 passive: true }", [8, 8]),
        ("instance_group { count: 2 host_policy: 'low' } instance_group { count: 1 host_policy: 'high' }", [2, 2, 4]),
        ("instance_group { count: 2 host_policy: 'low' } instance_group { count: 2 }", [1, 1, 2, 2]),
        ("instance_group { kind: KIND_MODEL count: 2 }", [4, 4]),
    ],
)
def test_the_cores_are_divided_among_those_who_share_them(groups: str, expected: List[int]) -> None:
    assert threads(groups, Machine(low="0-3", high="4-7")) == expected


@pytest.mark.parametrize("quota, expected", [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("rubbish", 8)])
def test_a_container_may_have_less_time_than_cores(quota: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert threads("", Machine(), quota=str(tmp_path / "cpu.max")) == [expected]


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_environment_knows_better(variable: str) -> None:
    ((_, placed),) = place(configured(""), Machine(), {variable: "3"})
    assert placed.threads is None and placed.variables == {}


def test_the_model_knows_best() -> None:
    config = configured("instance_group { count: 2 } parameters { key: 'library_threads' value { string_value: '5' } }")
    for _, placed in place(config, Machine(), {"OPENBLAS_NUM_THREADS": "3"}):
        assert placed.threads == 5
        assert placed.variables["OMP_NUM_THREADS"] == "5" and placed.variables["OPENBLAS_NUM_THREADS"] is None


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "4097", ""])
def test_a_number_of_threads_that_cannot_be(text: str) -> None:
    config = configured(f"parameters {{ key: 'library_threads' value {{ string_value: '{text}' }} }}")
    with pytest.raises(ConfigError, match=rf"parameter 'library_threads' of model 'm' must be a number from 1 to 4096, not '{text}'"):
        model_config.check(config, "m")


def test_only_those_with_a_policy_are_pinned() -> None:
    core = max(os.sched_getaffinity(0))
    policies = HostPolicies([f"mine,cpu-cores={core}", f"model,cpu-cores={core}"])
    groups = "instance_group { host_policy: 'mine' } instance_group { } instance_group { kind: KIND_MODEL }"
    cores = [placed.cores for _, placed in place(configured(groups), policies)]
    assert cores == [{core}, None, {core}]
    assert not placement.Placement(cores[0]).has_cores and placement.ANYWHERE.has_cores


@pytest.mark.skipif(not NO_GPU, reason="the texts are those of a machine without a GPU")
@pytest.mark.parametrize(
    "group, complaint",
    [
        ("kind: KIND_GPU", "has kind KIND_GPU but no GPUs are available"),
        (
            "kind: KIND_GPU gpus: [42]",
            "specifies invalid or unsupported gpu id 42. GPUs with at least the minimum required CUDA compute compatibility of 6.000000 are: ",
        ),
        ("kind: KIND_GPU gpus: [-1]", "specifies invalid or unsupported gpu id -1. GPUs with at least the minimum"),
        ("kind: KIND_CPU gpus: [0]", "has kind KIND_CPU but specifies one or more GPUs"),
        ("gpus: [0]", "has kind KIND_CPU but specifies one or more GPUs"),
        ("kind: KIND_MODEL gpus: [0]", "has kind KIND_MODEL but specifies one or more GPUs"),
    ],
)
def test_groups_that_cannot_be(group: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        model_config.check(configured(f"instance_group {{ {group} }}"), "m")
    assert str(raised.value).startswith(f"instance group m_0 of model m {complaint}")


def test_everything_that_a_group_may_say() -> None:
    config = configured(
        """
        instance_group { name: "g" kind: KIND_MODEL count: 2 passive: true host_policy: "mine" profile: ["0"]
          secondary_devices { kind: KIND_NVDLA device_id: 1 }
          rate_limiter { resources [ { name: "R" count: 2 }, { name: "Q" global: true count: 1 } ] priority: 3 } }
        instance_group { count: -1 }
        """
    )
    model_config.check(config, "m")
    first, second, third = instance_specs(config)
    assert first == ("g_0", "MODEL", 0, True, "mine", (("R", False, 2), ("Q", True, 1)), 3)
    assert second == first._replace(name="g_1")
    assert third == ("m_1_0", "CPU", 0, False, "cpu", (), 0)
