"""Ways for a process to die, as rows: who is told what, and what goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, List

import pytest
from http_wire import Answer, infer, request, tensor
from model_repository import copy_model, obey
from server_process import ServerProcess, alive, assert_no_names_left, descendants, memory_bytes, until

AT_ONCE = 2.0
"""Seconds. What is detected takes milliseconds; what is waited for takes the client's time-out."""

VECTOR = {"inputs": [tensor("INPUT0", "FP32", [2], [1.0, 2.0])]}


def told(code: str) -> bytes:
    """A request to the model ``obey``."""
    return infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]})


def ask(server: ServerProcess, code: str) -> Answer:
    with server.wire() as wire:
        return wire.ask(told(code))


def asked_meanwhile(server: ServerProcess, codes: List[str]) -> Any:
    """Asks in threads; ``join`` of what is returned gives the answers, in that order."""
    answers: List[Any] = [None] * len(codes)

    def run(index: int) -> None:
        answers[index] = ask(server, codes[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(codes))]
    for thread in threads:
        thread.start()

    def join() -> List[Answer]:
        for thread in threads:
            thread.join()
        return answers

    return join


def model_ready(server: ServerProcess, model: str = "obey") -> bool:
    with server.wire() as wire:
        return wire.ask(request("GET", f"/v2/models/{model}/ready")).status == 200


def assert_replaced(server: ServerProcess, pid: int, reason: str) -> None:
    """Another instance answers in the place of the dead one; the server ends in good order."""
    answer = ask(server, "result = str(os.getpid())")
    assert answer.status == 200 and answer.json()["outputs"][0]["data"] != [str(pid)]
    until(lambda: model_ready(server), AT_ONCE, "the model's readiness")
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2/health/live")).status == 200
        assert wire.ask(request("GET", "/v2/health/ready")).status == 200
        assert wire.ask(infer("vector", VECTOR)).status == 200
    assert reason in server.log
    server.stop()


@pytest.fixture
def server(repository: Path, serve: Any) -> ServerProcess:
    obey(repository)
    copy_model(repository, "vector")
    return serve()  # type: ignore[no-any-return]


DEATHS = [
    ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ("ctypes.string_at(0)", "SIGSEGV"),
    ("os.abort()", "SIGABRT"),
    ("os._exit(3)", "exit code 3"),
    ("os._exit(0)", "exit code 0"),
]


@pytest.mark.parametrize("code, how", DEATHS)
def test_death_in_execute(server: ServerProcess, code: str, how: str) -> None:
    pid = server.stubs()["obey_0_0"]
    started = time.monotonic()
    answer = ask(server, code)
    assert time.monotonic() - started < AT_ONCE
    reason = f"Stub process 'obey_0_0' is not healthy: it ended with {how} while serving (pid {pid}, model 'obey')"
    assert (answer.status, answer.error) == (503, reason)
    assert_replaced(server, pid, reason)


@pytest.mark.parametrize("code, how", DEATHS)
def test_death_while_idle(server: ServerProcess, code: str, how: str) -> None:
    pid = server.stubs()["obey_0_0"]
    later = f"import threading; threading.Timer(0.1, lambda: exec({code!r}, globals())).start()"
    assert ask(server, later).status == 200
    until(lambda: not alive(pid))
    assert_replaced(server, pid, f"Stub process 'obey_0_0' is not healthy: it ended with {how} while serving (pid {pid}, model 'obey')")


def test_what_waits_behind_a_death_is_served_by_the_next(server: ServerProcess) -> None:
    pid = server.stubs()["obey_0_0"]
    blocked = asked_meanwhile(server, ["time.sleep(0.3); os._exit(3)"])
    waiting = asked_meanwhile(server, ["pass"] * 40)
    reason = f"Stub process 'obey_0_0' is not healthy: it ended with exit code 3 while serving (pid {pid}, model 'obey')"
    assert [(answer.status, answer.error) for answer in blocked()] == [(503, reason)]
    assert [answer.status for answer in waiting()] == [200] * 40
    assert_replaced(server, pid, reason)


def test_a_survivor_takes_what_had_not_started(repository: Path, serve: Any) -> None:
    obey(repository, instances=2)
    server = serve()
    fatal = asked_meanwhile(server, ["time.sleep(0.3); os._exit(3)"])
    others = asked_meanwhile(server, ["time.sleep(0.01); result = 'served'"] * 40)
    assert [answer.status for answer in others()] == [200] * 40
    (answer,) = fatal()
    assert answer.status == 503
    assert "it ended with exit code 3 while serving" in answer.error
    assert model_ready(server)
    assert [ask(server, "pass").status for _ in range(5)] == [200] * 5
    server.stop()


def test_both_instances_die(repository: Path, serve: Any) -> None:
    obey(repository, instances=2)
    copy_model(repository, "vector")
    server = serve()
    for pid in server.stubs().values():
        os.kill(pid, signal.SIGKILL) if pid != server.stubs()["vector_0_0"] else None
    assert [ask(server, "pass").status for _ in range(5)] == [200] * 5
    with server.wire() as wire:
        assert wire.ask(infer("vector", VECTOR)).status == 200
    server.stop()


def test_the_memory_lent_to_the_dead_serves_others(repository: Path, serve: Any) -> None:
    obey(repository, instances=3)
    server = serve()
    large = "#" * (8 << 20)
    assert ask(server, f"os._exit(3){large}").status == 503
    before = memory_bytes(server.pid)
    for _ in range(5):
        assert ask(server, f"result = 'y'{large}").status == 200
    assert memory_bytes(server.pid) < before + (20 << 20)
    server.stop()


def assert_nothing_left(pids: List[int]) -> None:
    until(lambda: not any(map(alive, pids)), AT_ONCE, "the end of every process")
    assert_no_names_left()


def test_kill_of_the_server_takes_everything_along(server: ServerProcess) -> None:
    family = descendants(server.pid)
    assert len(family) == 3
    with server.wire() as wire:
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert wire.closed()
    assert_nothing_left(family)


def test_kill_of_the_server_takes_a_busy_stub_along(server: ServerProcess, tmp_path: Path) -> None:
    """The stub's model sleeps with the interpreter's lock held, so nothing in that process can do anything."""
    family = descendants(server.pid)
    with server.wire() as wire:
        wire.send(told(f"{begin(tmp_path)}; ctypes.PyDLL(None).sleep(600)"))
        until((tmp_path / "begun").exists)
        server.signal(signal.SIGKILL)
        server.wait()
    assert_nothing_left(family)


def begin(directory: Path) -> str:
    """Code that tells the test that the model runs it."""
    return f"open({str(directory / 'begun')!r}, 'w').close()"


def test_kill_of_server_and_stub(server: ServerProcess) -> None:
    family = descendants(server.pid)
    os.kill(server.stubs()["obey_0_0"], signal.SIGKILL)
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    assert_nothing_left(family)


def test_kill_of_the_server_while_it_loads(repository: Path, serve: Any) -> None:
    obey(repository, initialize="time.sleep(600)")
    server = serve(wait=False)
    family = until(lambda: len(found := descendants(server.pid)) >= 2 and found)
    server.signal(signal.SIGKILL)
    server.wait()
    assert_nothing_left(family)


def test_kill_of_the_fork_server_ends_every_instance(server: ServerProcess, tmp_path: Path) -> None:
    """And what they started. Another fork server starts others."""
    stubs = server.stubs()
    starts = "import subprocess; subprocess.Popen(['sleep', '600']); subprocess.run('sleep 600 &', shell=True)"
    assert ask(server, starts).status == 200
    first = server.fork_server()
    running_one = asked_meanwhile(server, [f"{begin(tmp_path)}; time.sleep(600)"])
    until((tmp_path / "begun").exists)
    family = until(lambda: len(found := descendants(first)) == 4 and found)
    os.kill(first, signal.SIGKILL)
    (answer,) = running_one()
    assert answer.status == 503
    assert "Stub process 'obey_0_0' is not healthy" in answer.error
    assert_nothing_left(family)
    assert "the fork server ended unexpectedly; every model instance ended with it" in server.log
    until(lambda: model_ready(server) and model_ready(server, "vector"), 10, "the restart of both")
    assert int(ask(server, "result = str(os.getpid())").json()["outputs"][0]["data"][0]) not in stubs.values()
    assert server.fork_server() != first
    server.stop()


FORKS = """
import os, sys, time

from stublet.parent import Server

with Server(sys.argv[1]) as server:
    (row,) = server.status()
    child = os.fork()
    if not child:
        time.sleep(600)
    print(row.pid, child, flush=True)
    time.sleep(600)
"""


def test_kill_of_a_program_with_a_server_in_it_that_has_forked(repository: Path) -> None:
    """What it forked has copies of the server's sockets, so that nobody sees them close."""
    obey(repository)
    with subprocess.Popen([sys.executable, "-c", FORKS, str(repository)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        stub, child = map(int, program.stdout.readline().split())
        family = [pid for pid in descendants(program.pid) if pid != child]
        assert stub in family and alive(child)
        program.kill()
        try:
            until(lambda: not any(map(alive, family)), AT_ONCE, "the end of the fork server and its stub")
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


NO_FORK = """
import os

fork = os.fork


def fork_or_not():
    if os.path.exists({path!r}):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()


os.fork = fork_or_not
"""


def test_a_fork_that_fails_is_the_death_of_one_instance(repository: Path, tmp_path: Path, serve: Any) -> None:
    """The limit of processes is reached: what runs goes on, and the instance is started again when there is room."""
    no_room = tmp_path / "no_room"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_FORK.format(path=str(no_room)))
    obey(repository)
    copy_model(repository, "vector")
    server = serve(PYTHONPATH=str(tmp_path / "site"))
    other, first = server.stubs()["vector_0_0"], server.fork_server()
    no_room.touch()
    os.kill(server.stubs()["obey_0_0"], signal.SIGKILL)
    until(lambda: "cannot be started: Resource temporarily unavailable" in server.log, what="a fork that fails")
    assert alive(other) and model_ready(server, "vector") and server.fork_server() == first
    no_room.unlink()
    until(lambda: model_ready(server), what="the restart")
    assert alive(other) and server.fork_server() == first
    server.stop()


@pytest.mark.parametrize("who", ["stub", "server"])
def test_shared_memory_of_the_models_own_is_removed(server: ServerProcess, who: str) -> None:
    """A process that multiprocessing starts does it, and has the time for it."""
    code = (
        "from multiprocessing.shared_memory import SharedMemory; model.own = SharedMemory(create=True, size=100); result = model.own.name"
    )
    name = Path("/dev/shm", ask(server, code).json()["outputs"][0]["data"][0])
    assert name.exists()
    os.kill(server.stubs()["obey_0_0"] if who == "stub" else server.pid, signal.SIGKILL)
    until(lambda: not name.exists(), AT_ONCE)
    if who == "stub":
        server.stop()


def test_what_heeds_no_sigterm_ends_with_it_too(server: ServerProcess) -> None:
    ignores = "import subprocess; subprocess.Popen(['sh', '-c', 'trap \"\" TERM; echo; sleep 600; sleep 600'], stdout=subprocess.PIPE).stdout.readline()"
    assert ask(server, ignores).status == 200
    pid = server.stubs()["obey_0_0"]
    family = until(lambda: len(found := descendants(pid)) == 2 and found)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, family)), AT_ONCE)
    server.stop()


def test_what_an_instance_started_ends_with_it(server: ServerProcess) -> None:
    """Whoever forked it, and whether it has lost its parent before."""
    pid = server.stubs()["obey_0_0"]
    starts = "import subprocess; subprocess.Popen(['sleep', '600']); subprocess.run('sleep 600 & sleep 600 &', shell=True)"
    assert ask(server, f"{starts}\nif not os.fork():\n    time.sleep(600)").status == 200
    family = until(lambda: len(found := descendants(server.fork_server())) == 6 and found)
    os.kill(pid, signal.SIGKILL)
    others = [other for other in family if other != server.stubs()["vector_0_0"]]
    until(lambda: not any(map(alive, others)), AT_ONCE)
    assert alive(server.stubs()["vector_0_0"])
    server.stop()
