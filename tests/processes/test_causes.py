"""What interrupted requests and the log say of the end of a stub."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Iterator

import pytest
from http_wire import Answer, infer, request, tensor
from model_repository import obey
from server_process import ServerProcess, serving, until

SEGFAULT = "import ctypes; ctypes.string_at(0)"

DEATHS = [
    (SEGFAULT, "SIGSEGV", "Fatal Python error: Segmentation fault"),
    ("os.abort()", "SIGABRT", "Fatal Python error: Aborted"),
    ("os.kill(os.getpid(), signal.SIGFPE)", "SIGFPE", "Fatal Python error: Floating"),
    ("os.kill(os.getpid(), signal.SIGILL)", "SIGILL", "Fatal Python error: Illegal instruction"),
    ("os.kill(os.getpid(), signal.SIGBUS)", "SIGBUS", "Fatal Python error: Bus error"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", ""),
    ("os._exit(3)", "exit code 3", ""),
    ("os.kill(os.getpid(), signal.SIGRTMAX)", f"signal {signal.SIGRTMAX}|SIGRTMAX", ""),
]

_OTHERS = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Every test has a model of its own to kill."""
    root = tmp_path_factory.mktemp("causes")
    for index in range(len(DEATHS) + _OTHERS):
        obey(root / "models", f"m{index}")
    with serving(root, root / "models", "--model-control-mode", "explicit", tracebacks=True) as server:
        yield server


_models = iter(range(1000))


def load(server: ServerProcess) -> str:
    """A model that no other test has."""
    name = f"m{next(_models)}"
    with server.wire() as wire:
        assert wire.ask(request("POST", f"/v2/repository/models/{name}/load")).status == 200
    return name


def ask(server: ServerProcess, model: str, code: str) -> Answer:
    with server.wire() as wire:
        return wire.ask(infer(model, {"inputs": [tensor("CODE", "BYTES", [1], [code])]}))


def pid_of(server: ServerProcess, model: str) -> int:
    with server.wire() as wire:
        answer = wire.ask(infer(model, {"inputs": [tensor("CODE", "BYTES", [1], ["result = str(os.getpid())"])]}))
    return int(answer.json()["outputs"][0]["data"][0])


def unhealthy(model: str, pid: int, how: str) -> str:
    return f"Stub process '{model}_0_0' is not healthy: {how} while serving (pid {pid}, model '{model}')"


@pytest.mark.parametrize("code, how, stack", DEATHS)
def test_a_death_is_named(server: ServerProcess, code: str, how: str, stack: str) -> None:
    model = load(server)
    pid = pid_of(server, model)
    before = len(server.log)
    answer = ask(server, model, code)
    assert answer.status == 503
    assert answer.error in [unhealthy(model, pid, f"it ended with {one}") for one in how.split("|")]
    told = until(lambda: (log := server.log[before:]) and answer.error in log and log)
    assert (stack or "Fatal Python error") in told if stack else "Fatal Python error" not in told
    if stack:
        lines = told[told.index(stack) :].splitlines()
        assert any(line.startswith("    File ") and line.endswith(" in execute") for line in lines), told


def test_the_last_lines_of_stderr_are_told_without_what_is_nobodys_business(server: ServerProcess) -> None:
    model = load(server)
    pid = pid_of(server, model)
    code = """
import traceback
try:
    open('/srv/secret/weights.bin')
except OSError:
    traceback.print_exc()
for number in range(20): print('line', number, file=sys.stderr)
print('x' * 5000, file=sys.stderr)
print('could not read /srv/secret/weights.bin', file=sys.stderr)
os._exit(3)
"""
    summary = unhealthy(model, pid, "it ended with exit code 3")
    assert ask(server, model, code).error == f"{summary}; last lines of its stderr:\ncould not read weights.bin"
    told = server.log[server.log.index(summary) :]
    assert "\n  FileNotFoundError: [Errno 2] No such file or directory: '/srv/secret/weights.bin'\n  line 0\n" in told
    assert "\n  could not read /srv/secret/weights.bin\n" in told


def test_a_crash_of_a_process_that_the_model_forked_is_not_the_stubs(server: ServerProcess) -> None:
    model = load(server)
    pid = pid_of(server, model)
    code = f"""
child = os.fork()
if not child:
    {SEGFAULT}
result = str(os.waitpid(child, 0)[1] & 127)
"""
    answer = ask(server, model, code)
    assert answer.json()["outputs"][0]["data"] == [str(int(signal.SIGSEGV))]
    assert "stderr] Fatal Python error: Segmentation fault" in until(lambda: "Segmentation fault" in server.log and server.log)
    error = ask(server, model, "os._exit(3)").error
    assert error.startswith(unhealthy(model, pid, "it ended with exit code 3"))
    told = server.log[server.log.index(unhealthy(model, pid, "it ended with exit code 3")) :]
    assert "last lines of its stderr" in told


def test_memory_that_the_model_cannot_have_is_an_error_of_the_request(server: ServerProcess) -> None:
    model = load(server)
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY)); np.ones(8 << 30, np.uint8)"
    answer = ask(server, model, code)
    assert answer.status == 500 and "Unable to allocate" in answer.error
    assert ask(server, model, "pass").status == 200


def memory_cgroup() -> Path:
    """A new one of 256 MiB, of version 1 or 2."""
    for parent, limit in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = parent / f"stublet-test-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(256 << 20))
                return group
            except OSError:
                group.rmdir()
    pytest.skip("no memory cgroup can be made here")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    group = memory_cgroup()
    yield group
    until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_the_kernels_end_for_want_of_memory_is_told_from_any_other(repository: Path, serve: Any, cgroup: Path) -> None:
    obey(repository)
    server = serve("--model-control-mode", "explicit")
    # Stubs are born in the cgroup of the process that starts them.
    (cgroup / "cgroup.procs").write_text(str(server.fork_server()))
    with server.wire() as wire:
        assert wire.ask(request("POST", "/v2/repository/models/obey/load")).status == 200
    pid = pid_of(server, "obey")
    error = ask(server, "obey", "np.ones(1 << 30, np.uint8)").error
    how = "it ran out of memory: the kernel ended it (SIGKILL; the limit of its cgroup is 256 MiB)"
    assert error.startswith(unhealthy("obey", pid, how))
    with server.wire() as wire:
        assert wire.ask(request("POST", "/v2/repository/models/obey/load")).status == 200
    pid = until(lambda: ask(server, "obey", "pass").status == 200 and pid_of(server, "obey"))
    assert ask(server, "obey", "os.kill(os.getpid(), signal.SIGKILL)").error == unhealthy("obey", pid, "it ended with SIGKILL")
    server.stop()


def test_a_death_is_noticed_without_the_fork_server(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    fork_server = server.fork_server()
    os.kill(fork_server, signal.SIGSTOP)
    pid = server.stubs()["obey_0_0"]
    error = ask(server, "obey", "os._exit(3)").error
    assert error == unhealthy("obey", pid, "it ended with an unknown status")
    os.kill(fork_server, signal.SIGCONT)
    until(lambda: ask(server, "obey", "pass").status == 200)
    server.stop()


def test_a_stub_that_closes_its_descriptors_is_ended(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    pid = server.stubs()["obey_0_0"]
    error = ask(server, "obey", "os.closerange(0, 1000); time.sleep(600)").error
    assert error == unhealthy("obey", pid, "it was ended for a protocol error: it closed its control socket")
    until(lambda: ask(server, "obey", "pass").status == 200)
    server.stop()


def test_with_tracebacks_exposed_clients_get_everything(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve("--expose-tracebacks")
    pid = server.stubs()["obey_0_0"]
    error = ask(server, "obey", f"print('in /srv/secret', file=sys.stderr); {SEGFAULT}").error
    summary = unhealthy("obey", pid, "it ended with SIGSEGV")
    assert error.startswith(f"{summary}; last lines of its stderr:\nin /srv/secret\nFatal Python error: Segmentation fault\n\n")
    assert " in execute\n" in error
    server.stop()
