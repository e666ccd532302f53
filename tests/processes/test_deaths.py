"""Ways for a process to die, as rows: who is told what, and what goes on."""

from __future__ import annotations

import os
import signal
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


def assert_gone(server: ServerProcess, reason: str) -> None:
    """The model of the dead instance says no, at once and with the reason; another serves; the server ends in good order."""
    until(lambda: not model_ready(server), AT_ONCE, "the model's readiness to become false")
    started = time.monotonic()
    for _ in range(3):
        answer = ask(server, "pass")
        assert answer.status == 503
        assert answer.error == reason
    assert time.monotonic() - started < AT_ONCE
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2/health/live")).status == 200
        assert wire.ask(request("GET", "/v2/health/ready")).status == 400
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
    reason = f"Stub process 'obey_0_0' is not healthy: it ended with {how} while serving (pid {pid})"
    assert (answer.status, answer.error) == (503, reason)
    assert_gone(server, reason)


@pytest.mark.parametrize("code, how", DEATHS)
def test_death_while_idle(server: ServerProcess, code: str, how: str) -> None:
    pid = server.stubs()["obey_0_0"]
    later = f"import threading; threading.Timer(0.1, lambda: exec({code!r}, globals())).start()"
    assert ask(server, later).status == 200
    until(lambda: not alive(pid))
    assert_gone(server, f"Stub process 'obey_0_0' is not healthy: it ended with {how} while serving (pid {pid})")


def test_what_waits_behind_a_death_is_told_too(server: ServerProcess) -> None:
    pid = server.stubs()["obey_0_0"]
    blocked = asked_meanwhile(server, ["time.sleep(0.3); os._exit(3)"])
    waiting = asked_meanwhile(server, ["pass"] * 40)
    reason = f"Stub process 'obey_0_0' is not healthy: it ended with exit code 3 while serving (pid {pid})"
    answers = [*blocked(), *waiting()]
    # Some may have been served before the fatal one came.
    assert {(a.status, a.error) for a in answers if a.status != 200} == {(503, reason)}
    assert_gone(server, reason)


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
    until(lambda: not model_ready(server), AT_ONCE)
    assert ask(server, "pass").status == 503
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
    stubs = list(server.stubs().values())
    running_one = asked_meanwhile(server, [f"{begin(tmp_path)}; time.sleep(600)"])
    until((tmp_path / "begun").exists)
    os.kill(server.fork_server(), signal.SIGKILL)
    (answer,) = running_one()
    assert answer.status == 503
    assert "Stub process 'obey_0_0' is not healthy" in answer.error
    assert_nothing_left(stubs)
    until(lambda: not model_ready(server) and not model_ready(server, "vector"), AT_ONCE)
    assert ask(server, "pass").status == 503
    assert "the fork server ended unexpectedly; every model instance ended with it" in server.log
    server.stop()
