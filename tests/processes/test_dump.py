"""``stublet dump`` and SIGUSR1: the stacks of a server and all its stubs, whatever those are at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from http_wire import infer, tensor
from model_repository import obey
from server_process import ServerProcess, until
from stublet.parent.supervision.dump import address_of

SECONDS = 8.0
"""A stub may take 3; starting the command takes one."""


def dump(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stublet.parent", "dump", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == status, done
    return done


def told(model: str, code: str) -> bytes:
    return infer(model, {"inputs": [tensor("CODE", "BYTES", [1], [code])]})


def busy(server: ServerProcess, directory: Path, model: str, code: str) -> Any:
    """A connection over which the model is asked to run that, and is at it."""
    wire = server.wire()
    begun = directory / f"begun-{model}"
    wire.send(told(model, f"open({str(begun)!r}, 'w').close(); {code}"))
    until(begun.exists)
    return wire


def sections(text: str) -> Any:
    """By the name of the instance, or "server"."""
    parts = text.strip().split("\n\n\n")
    assert parts[0].startswith("server (pid ")
    found = {"server": parts[0]}
    for part in parts[1:]:
        found[part.split("instance '")[1].split("'")[0]] = part
    return found


def test_all_stacks(repository: Path, serve: Any, tmp_path: Path) -> None:
    for name in ("idle", "held", "stopped", "own"):
        obey(repository, name)
    server = serve()
    pids = server.stubs()
    with busy(server, tmp_path, "held", "ctypes.PyDLL(None).sleep(600)"):
        with server.wire() as wire:
            assert wire.ask(told("own", "signal.signal(signal.SIGUSR1, signal.SIG_DFL)")).status == 200
        os.kill(pids["stopped_0_0"], signal.SIGSTOP)
        started = time.monotonic()
        found = sections(dump(server.address).stdout)
        assert time.monotonic() - started < SECONDS
        assert list(found) == ["server", "held_0_0", "idle_0_0", "own_0_0", "stopped_0_0"]
        assert found["server"].startswith(f"server (pid {server.pid})\n\nThread '")
        assert "Thread 'MainThread' (most recent call last):\n" in found["server"]
        assert "\n\nTask '" in found["server"]
        held = found["held_0_0"]
        assert held.startswith(f"model 'held', version 1, instance 'held_0_0' (pid {pids['held_0_0']}), READY, executing 1\n\n")
        assert "in execute\n" in held and "Current thread" in held
        assert "in wait\n" in found["idle_0_0"] and "executing 0" in found["idle_0_0"]
        assert found["stopped_0_0"].endswith("(no stacks: the process is stopped (SIGSTOP))")
        assert found["own_0_0"].endswith("(no stacks: it is just starting, or the model has taken SIGUSR1 for itself)")
        os.kill(pids["stopped_0_0"], signal.SIGCONT)
        for pid in pids.values():
            os.kill(pid, 0)
        again = sections(dump("--pid", str(server.pid)).stdout)
        assert "in wait\n" in again["stopped_0_0"]
        os.kill(pids["held_0_0"], signal.SIGKILL)
    server.stop()


def test_sigusr1_puts_them_into_the_log(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    os.kill(server.pid, signal.SIGUSR1)
    log = until(lambda: "model 'obey', version 1, instance 'obey_0_0'" in server.log and "in wait\n" in server.log and server.log)
    assert "stacks, as SIGUSR1 asks for:" in log
    assert "Thread 'MainThread'" in log
    # What comes before all else needs no loop.
    assert log.index("Current thread 0x") < log.index("stacks, as SIGUSR1 asks for:")
    server.stop()


def test_the_signal_harms_nobody(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    for pid in (server.fork_server(), *server.stubs().values()):
        os.kill(pid, signal.SIGUSR1)
    with server.wire() as wire:
        assert wire.ask(told("obey", "pass")).status == 200
    server.stop()


def test_there_is_no_server() -> None:
    assert "no server answers at http://127.0.0.1:9" in dump("127.0.0.1:9", status=1).stderr
    assert f"no stublet server with pid {os.getpid()} on this machine" in dump("--pid", str(os.getpid()), status=1).stderr


STUCK = """
import faulthandler, signal, socket, sys, time
from stublet.parent.supervision.dump import address_of
import os
faulthandler.register(signal.SIGUSR1)
listening = socket.socket(socket.AF_UNIX)
listening.bind(address_of(os.getpid()))
listening.listen()
print("listens", flush=True)
time.sleep(600)
"""


def test_a_server_that_is_stuck_is_sent_the_signal(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as err:
        stuck = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=err, text=True)
    with stuck:
        try:
            assert stuck.stdout is not None and stuck.stdout.readline() == "listens\n"
            told = dump("--pid", str(stuck.pid), "--timeout", "0.5", status=1).stderr
            assert told == (
                f"error: the server (pid {stuck.pid}) did not answer within 0.5 s; it was sent SIGUSR1, and writes the stacks of its threads "
                "to its standard error\n"
            )
            until(lambda: "Current thread" in (tmp_path / "stderr").read_text())
        finally:
            stuck.kill()


def test_another_user_gets_nothing(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    if os.geteuid():
        server.stop()
        return
    code = f"""
import os, socket
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
connection.connect({address_of(server.pid)!r})
print(connection.recv(100))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "b''\n", done
    server.stop()
