"""What a configuration says of the sandbox of its instances, and the files of cgroups."""

from __future__ import annotations

import os
import pwd
import resource
from pathlib import Path
from typing import Any, Dict, List

import pytest
from stublet.parent.model_config import ConfigError, check, parse
from stublet.parent.sandbox.cgroups import CgroupError, Cgroups, Limits, own_directory
from stublet.parent.sandbox.config import NO_SANDBOX, Sandbox, parse_defaults, sandbox_of

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root can change the user")


def config(**parameters: str) -> Any:
    """A configuration with these parameters."""
    text = 'name: "m" backend: "python"'
    for key, value in parameters.items():
        text += f' parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    return parse(text, "config.pbtxt")


def read(**parameters: str) -> Sandbox:
    return sandbox_of(config(**parameters), {})


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({}, NO_SANDBOX),
        ({"rlimit_as": "2GiB"}, Sandbox({"RLIMIT_AS": 2 << 30})),
        ({"rlimit_as": "1048576", "rlimit_core": "0"}, Sandbox({"RLIMIT_AS": 1 << 20, "RLIMIT_CORE": 0})),
        ({"rlimit_nofile": "64", "rlimit_nproc": "10"}, Sandbox({"RLIMIT_NOFILE": 64, "RLIMIT_NPROC": 10})),
        ({"rlimit_cpu": "60", "rlimit_fsize": "1MiB", "rlimit_stack": "8MiB"},
         Sandbox({"RLIMIT_CPU": 60, "RLIMIT_FSIZE": 1 << 20, "RLIMIT_STACK": 8 << 20})),
        ({"no_new_privs": "yes"}, Sandbox(no_new_privs=True)),
        ({"no_new_privs": "no"}, NO_SANDBOX),
        ({"cgroup_memory_max": "512MiB", "cgroup_cpu_max": "1.5"}, Sandbox(cgroup=Limits(512 << 20, 1.5))),
    ],
)  # fmt: skip
def test_what_it_says(parameters: Dict[str, str], expected: Sandbox) -> None:
    assert read(**parameters) == expected


NUMBER, BYTES, CORES = (
    "a number",
    'a number of bytes, or one with a unit, as in "512MiB" or "2GiB"',
    'a number of cores above 0, as in "1.5"',
)
USER = "a user, or <user>:<group>, by name or number, that this system has"


@pytest.mark.parametrize(
    "key, value, wanted",
    [
        *[("rlimit_nofile", value, NUMBER) for value in ("", "-1", "ten", "1.5", "9223372036854775808", "64KiB")],
        *[("rlimit_as", value, BYTES) for value in ("", "-1", "1 GiB", "1GB", "lots")],
        *[("rlimit_cpu", value, "a number of seconds") for value in ("", "1m")],
        *[("no_new_privs", value, '"yes" or "no"') for value in ("", "true", "1")],
        *[("cgroup_cpu_max", value, CORES) for value in ("0", "-1", "max", "0.001", "5000")],
        *[("cgroup_memory_max", value, BYTES) for value in ("max", "")],
        *[
            ("run_as_user", value, USER)
            for value in ("", ":", "nobody:", ":nogroup", "no such user", "nobody:no such group", "99999999999")
        ],
    ],
)
def test_what_it_cannot_say(key: str, value: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config(**{key: value}), "m")
    assert str(caught.value) == f"parameter '{key}' of model 'm' must be {wanted}, not '{value}'"


@as_root
def test_users() -> None:
    nobody = pwd.getpwnam("nobody")
    for text in ("nobody", str(nobody.pw_uid)):
        user = read(run_as_user=text).user
        assert user is not None and (user.uid, user.gid, user.name, user.home) == (nobody.pw_uid, nobody.pw_gid, "nobody", nobody.pw_dir)
    user = read(run_as_user="nobody:0").user
    assert user is not None and (user.gid, user.groups) == (0, [0])
    assert user.variables == {"HOME": nobody.pw_dir, "USER": "nobody", "LOGNAME": "nobody"}


def test_what_only_root_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 100))
    assert read(rlimit_nofile="100").rlimits == {"RLIMIT_NOFILE": 100}
    with pytest.raises(ValueError, match=r"^parameter 'rlimit_nofile' of model 'm' cannot be 101: the server's own hard limit is 100$"):
        read(rlimit_nofile="101")
    with pytest.raises(
        ValueError, match=r"'run_as_user' of model 'm' cannot be 'nobody': only a server that runs as root can change the user$"
    ):
        read(run_as_user="nobody")


def test_defaults() -> None:
    defaults = parse_defaults(["rlimit_core=0", "rlimit_nofile=50", "rlimit_nofile=60"])
    assert sandbox_of(config(), defaults).rlimits == {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 60}
    assert sandbox_of(config(rlimit_nofile="70"), defaults).rlimits == {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 70}


@pytest.mark.parametrize(
    "setting, text",
    [
        ("rlimit_core", "'rlimit_core' is not <parameter>=<value>; the parameters are rlimit_as, "),
        ("max_age=5", "'max_age=5' is not <parameter>=<value>; the parameters are rlimit_as, "),
        ("rlimit_core=x", f"parameter 'rlimit_core' must be {BYTES}, not 'x'"),
    ],
)
def test_defaults_that_cannot_be(setting: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_defaults([setting])
    assert str(caught.value).startswith(text)


# cgroups. Where the kernel lets nobody make any, as in most containers, a plain directory has at least the same files.


def base(directory: Path, controllers: str, processes: List[int]) -> Cgroups:
    """cgroups in a directory with the files of one that has these controllers and processes."""
    (directory / "cgroup.controllers").write_text(controllers)
    (directory / "cgroup.subtree_control").write_text("memory cpu\n")
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))
    return Cgroups(str(directory))


def test_a_cgroup(tmp_path: Path) -> None:
    cgroups = base(tmp_path, "cpuset cpu io memory pids\n", [])
    path = Path(cgroups.make(Limits(512 << 20, 1.5)))
    assert path.parent == tmp_path and path.name == f"stublet-{os.getpid()}-1"
    found = {file.name: file.read_text() for file in path.iterdir()}
    assert found == {"memory.max": str(512 << 20), "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "150000 100000"}
    assert {file.name for file in Path(cgroups.make(Limits(cores=0.5))).iterdir()} == {"cpu.max"}
    assert cgroups.make(Limits()) == ""


def test_a_controller_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CgroupError) as caught:
        base(tmp_path, "cpu\n", []).make(Limits(1 << 20))
    assert str(caught.value) == f"'{tmp_path}' has no controller 'memory'; it is not delegated to the server, or not of version 2"
    assert not list(tmp_path.glob("stublet-*"))


def test_a_cgroup_with_other_processes(tmp_path: Path) -> None:
    cgroups = base(tmp_path, "memory\n", [1])
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.type").write_text("domain\n")
    with pytest.raises(CgroupError) as caught:
        cgroups.make(Limits(1 << 20))
    assert str(caught.value) == f"'{tmp_path}' has other processes than the server's, such as 1: start it in a cgroup of its own"


def test_the_kernels_own() -> None:
    """Whatever the kernel has here: an empty cgroup below this process's can be made and removed, or there is a reason."""
    try:
        path = Path(own_directory())
    except CgroupError as error:
        assert str(error) == "there are no cgroups of version 2 here"
        return
    assert (path / "cgroup.procs").exists()
    mine = path / f"stublet-test-{os.getpid()}"
    try:
        mine.mkdir()
    except OSError:
        return
    Cgroups(str(path)).remove(str(mine))
    assert not mine.exists()
