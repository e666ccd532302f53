"""Where instances run, and how many threads they get."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from stublet.parent import model_config
from stublet.parent.model_config import ConfigError
from stublet.parent.placement import gpus, instance_groups, placement
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


# ---- GPUs, whose list is given here ----


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_groups, "supported_gpus", lambda: (0, 2))


def placed(text: str, **environment: str) -> List[Any]:
    config = configured(text)
    model_config.check(config, "m")
    return place(config, HostPolicies([]), environment)


@pytest.mark.parametrize(
    "group, devices",
    [
        ("kind: KIND_GPU", [("m_0_0", "GPU", 0), ("m_0_1", "GPU", 2)]),
        ("", [("m_0_0", "GPU", 0), ("m_0_1", "GPU", 2)]),
        ("count: 2 kind: KIND_GPU gpus: [2]", [("m_0_0", "GPU", 2), ("m_0_1", "GPU", 2)]),
        ("count: 2 gpus: [0, 2]", [("m_0_0", "GPU", 0), ("m_0_1", "GPU", 2), ("m_0_2", "GPU", 0), ("m_0_3", "GPU", 2)]),
        ("kind: KIND_CPU", [("m_0_0", "CPU", 0)]),
        ("kind: KIND_MODEL", [("m_0_0", "MODEL", 0)]),
    ],
)
def test_a_group_has_its_count_on_each_of_its_gpus(two_gpus: None, group: str, devices: List[Any]) -> None:
    found = placed(f"instance_group {{ {group} }}")
    assert [(spec.name, spec.kind, spec.device) for spec, _ in found] == devices
    assert [placement.device for _, placement in found] == [device for *_, device in devices]
    assert all("CUDA_VISIBLE_DEVICES" not in placement.variables for _, placement in found)
    assert {spec.policy for spec, _ in found} == {f"gpu_{device}" if kind == "GPU" else kind.lower() for _, kind, device in devices}


@pytest.mark.parametrize("gpus, wrong", [("1", 1), ("0, 5", 5), ("-1", -1)])
def test_a_gpu_that_is_not_there(two_gpus: None, gpus: str, wrong: int) -> None:
    with pytest.raises(ConfigError) as raised:
        placed(f"instance_group {{ kind: KIND_GPU gpus: [{gpus}] }}")
    assert str(raised.value) == (
        f"instance group m_0 of model m specifies invalid or unsupported gpu id {wrong}. GPUs with at least the minimum required CUDA compute "
        "compatibility of 6.000000 are: 0, 2"
    )


OWN = "parameters { key: 'own_gpu_only' value { string_value: 'yes' } }"


@pytest.mark.parametrize("given, seen", [({}, ["0", "2"]), ({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b, MIG-c"}, ["GPU-a", "MIG-c"])])
def test_an_instance_that_sees_its_own_gpu_only(two_gpus: None, given: Dict[str, str], seen: List[str]) -> None:
    found = placed(f"{OWN} instance_group {{ kind: KIND_GPU }} instance_group {{ kind: KIND_CPU }}", **given)
    assert [placement.variables["CUDA_VISIBLE_DEVICES"] for _, placement in found] == [*seen, ""]
    assert [placement.device for _, placement in found] == [0, 0, 0], "the first that it sees"


def test_whether_an_instance_sees_other_gpus_is_yes_or_no() -> None:
    with pytest.raises(ConfigError, match="parameter 'own_gpu_only' of model 'm' must be \"yes\" or \"no\", not '1'"):
        placed(OWN.replace("yes", "1"))


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Tuple[int, ...]]]:
    """The GPUs that are found with that program, where there may be some."""

    def found(program: str) -> Tuple[int, ...]:
        (tmp_path / "look.py").write_text(program)
        gpus._look.cache_clear()
        return gpus.supported_gpus()

    monkeypatch.setattr(gpus, "_SIGNS", ("/dev/null",))
    monkeypatch.setattr(gpus, "_LOOK", (sys.executable, str(tmp_path / "look.py")))
    yield found
    gpus._look.cache_clear()


def test_gpus_that_are_too_old_are_not_used(look: Callable[[str], Tuple[int, ...]]) -> None:
    assert look("print('9.0\\n5.2\\n6.0')") == (0, 2)


@pytest.mark.parametrize("program", ["raise SystemExit('no driver')", "print('?')", "import os; os.abort()"])
def test_where_looking_fails_there_are_none(look: Callable[[str], Tuple[int, ...]], program: str, caplog: pytest.LogCaptureFixture) -> None:
    assert look(program) == () and "no GPU is used" in caplog.text


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_the_program_that_looks_says_why_it_finds_none(caplog: pytest.LogCaptureFixture) -> None:
    gpus._look.cache_clear()
    assert gpus._look() == () and "there is no CUDA driver" in caplog.text
    gpus._look.cache_clear()
