"""``stublet doctor``: each thing that keeps a server from working is found, and told with what to change."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from click.testing import CliRunner
from model_repository import ECHO, ECHO_CONFIG, write_model
from stublet.parent.cli.commands import cli
from stublet.parent.doctor import machine, software
from stublet.parent.doctor.finding import Finding, Level
from stublet.parent.doctor.ports import check_port

GIB = 1 << 30


def cgroup(directory: Path, **files: str) -> str:
    for name, content in files.items():
        (directory / name.replace("_", ".")).write_text(content)
    return str(directory)


@pytest.mark.parametrize(
    "quota, level, text",
    [("50000 100000", Level.WARNING, "0.5 at a time"), ("800000 100000", None, "8.0 at a time"), ("max 100000", None, "")],
)
def test_cores(tmp_path: Path, quota: str, level: Any, text: str) -> None:
    found = machine.check_cores(cgroup(tmp_path, cpu_max=quota))
    assert text in found.text
    few = len(os.sched_getaffinity(0)) < 2
    assert found.level is (level or (Level.WARNING if few else Level.OK))


@pytest.mark.parametrize(
    "limit, used, level, text",
    [
        (str(512 << 20), "0", Level.WARNING, "512MiB available, of 512MiB in this container"),
        (str(4 * GIB), str(3 * GIB + (512 << 20)), Level.WARNING, "512MiB available"),
        (str(4 * GIB), "0", Level.OK, "4.0GiB available, of 4.0GiB in this container, shared memory included"),
        ("max", "1", Level.OK, "8.0GiB available"),
    ],
)
def test_memory(tmp_path: Path, limit: str, used: str, level: Level, text: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    found = machine.check_memory(cgroup(tmp_path, memory_max=limit, memory_current=used), str(meminfo))
    assert (found.level, text in found.text) == (level, True), found


@pytest.mark.parametrize("most, current, level", [("100", "90", Level.WARNING), ("1000", "90", Level.OK), ("max", "90", Level.OK)])
def test_processes(tmp_path: Path, most: str, current: str, level: Level) -> None:
    assert machine.check_processes(cgroup(tmp_path, pids_max=most, pids_current=current)).level is level


def test_outside_of_containers_there_are_no_such_files(tmp_path: Path) -> None:
    assert machine.check_processes(str(tmp_path)).level is Level.OK
    assert "container" not in machine.check_memory(str(tmp_path)).text
    assert "container" not in machine.check_cores(str(tmp_path)).text


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.check_shared_memory()
    assert (found.level, "memfd_create" in found.text) == (Level.OK, True)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    found = machine.check_shared_memory()
    assert (found.level, "memfd_create is refused; /dev/shm has " in found.text) == (Level.WARNING, True)
    found = machine.check_shared_memory(str(tmp_path / "none"))
    assert (found.level, "does not exist" in found.text) == (Level.FAILURE, True)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors(few_descriptors: None) -> None:
    found = machine.check_descriptors()
    assert (found.level, found.text.split(",")[0], "ulimit -n" in found.advice) == (Level.WARNING, "256", True)


@pytest.mark.parametrize("name, level", [("pidfd_open", Level.WARNING), ("eventfd", Level.FAILURE), ("memfd_create", Level.FAILURE)])
def test_system_calls_that_are_refused(name: str, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> int:
        raise PermissionError(1, "Operation not permitted")

    assert machine.check_system_calls().level is Level.OK
    monkeypatch.setattr(os, name, refuse)
    found = machine.check_system_calls()
    assert (found.level, found.text, "seccomp" in found.advice) == (level, f"refused: {name} (Operation not permitted)", True)


def test_signals() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert machine.check_signals().level is Level.FAILURE
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert machine.check_signals().level is Level.OK


def test_packages() -> None:
    assert software.check_packages().level is Level.OK
    found = software.check_packages(["numpy", "no-such-package"])
    assert (found.level, found.text) == (Level.FAILURE, "not installed: no-such-package")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = check_port("127.0.0.1", "http", port)
        assert (found.level, "--http-port" in found.advice) == (Level.FAILURE, True)
    assert check_port("127.0.0.1", "http", port).level is Level.OK


def environment(path: str) -> str:
    return f'{ECHO_CONFIG}\nparameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{path}" }} }}\n'


def interpreter(root: Path, script: str) -> Path:
    """An environment whose interpreter is a script."""
    program = root / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return root


def by_model(repository: Path) -> Dict[str, Finding]:
    return {found.what: found for found in software.check_environments([str(repository)])}


def test_the_environments_of_models(repository: Path, tmp_path: Path) -> None:
    packed = tmp_path / "environment.tar.gz"
    packed.write_bytes(b"")
    write_model(repository, "plain")
    write_model(repository, "bad", config="input { { }")
    write_model(repository, "packed", ECHO, environment(str(packed)))
    write_model(repository, "nowhere", ECHO, environment("/no/such/environment"))
    write_model(repository, "own", ECHO, environment(str(interpreter(tmp_path / "own", f'exec {sys.executable} "$@"'))))
    write_model(repository, "old", ECHO, environment(str(interpreter(tmp_path / "old", "echo 3.6 1.16.0"))))
    write_model(repository, "bare", ECHO, environment(str(interpreter(tmp_path / "bare", "echo no numpy >&2; exit 1"))))
    found = by_model(repository)
    levels = {what: finding.level for what, finding in found.items()}
    assert levels == {
        "models": Level.OK,
        "model bad": Level.FAILURE,
        "model packed": Level.OK,
        "model nowhere": Level.FAILURE,
        "model own": Level.OK,
        "model old": Level.FAILURE,
        "model bare": Level.FAILURE,
    }
    assert found["models"].text.startswith("1 ")
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}, numpy" in found["model own"].text
    assert found["model bare"].text.endswith(": no numpy")
    assert "config.pbtxt:2:9" in found["model bad"].text


def doctor(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["doctor", *arguments])


def free_ports() -> List[str]:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        socket.create_server(("127.0.0.1", 0)) as three,
    ):
        ports = [server.getsockname()[1] for server in (one, two, three)]
    return [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports)]


def test_the_command(repository: Path) -> None:
    write_model(repository, "plain")
    ports = free_ports()
    done = doctor(str(repository), *ports)
    assert (done.exit_code, "FAILURE" in done.output) == (0, False), done.output
    assert any(line.split()[:2] == ["ok", "models"] for line in done.output.splitlines())
    write_model(repository, "bad", config="input { { }")
    done = doctor(str(repository), *ports)
    assert (done.exit_code, "FAILURE  model bad" in done.output) == (1, True)
    document = json.loads(doctor(str(repository), "--json", *ports).output)
    assert {entry["level"] for entry in document} >= {"ok", "failure"}
    assert {"what", "text", "advice", "level"} == set(document[0])


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    done = doctor(str(tmp_path / "none"), *free_ports())
    assert (done.exit_code, "FAILURE" in done.output) == (1, True)
