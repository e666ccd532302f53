"""What a server was at, and how it was ended: what whoever waited is told, and that nothing remains. One server is in every state at once."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest
from http_wire import Wire, infer, request, tensor
from model_repository import obey, write_model
from server_process import ServerProcess, alive, assert_no_names_left, descendants, until

AT_ONCE = 1.0
"""Seconds within which nothing is left of a server that was killed."""

SECONDS = 3.0
"""For an orderly end."""

STARTS = f"""
import subprocess
for own in (False, True):
    subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(600)'], start_new_session=own)
subprocess.run('sleep 600 &', shell=True)
if not os.fork():
    time.sleep(600)
"""
"""A child, one with a session of its own, a grandchild that has lost its parent, and one that was forked."""

COMPLETES = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        import time
        open({begun!r}, "w").close()
        time.sleep(600)
"""


class State(NamedTuple):
    """A model that is at something. ``code`` is executed, or what a hook or a file of the model is to do; ``path`` is requested, or the
    code is sent."""

    code: str = ""
    hook: str = ""
    path: str = ""
    body: str = ""


STATES: Dict[str, State] = {
    "finishes": State("time.sleep(0.8); result = 'finished'"),
    "hangs": State("time.sleep(600)"),
    # Without the signals, which would end the sleep.
    "holds_the_lock": State("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); ctypes.PyDLL(None).sleep(600)"),
    "stopped": State("os.kill(os.getpid(), signal.SIGSTOP)"),
    "with_children": State(STARTS + "\ntime.sleep(600)"),
    "initializes": State("time.sleep(600)", "initialize", "/v2/repository/models/initializes/load"),
    "completes": State(path="/v2/repository/models/completes/load"),
    "finalizes": State("time.sleep(600)", "finalize", "/v2/repository/models/finalizes/unload"),
    "made_of_files": State(path="/v2/repository/models/made_of_files/load"),
}

Told = Tuple[int, str]
CLOSED: Told = (0, "")
ENDING = (503, "the server is ending")

OUTCOMES: Dict[str, Dict[str, Told]] = {
    "orderly": {
        "finishes": (200, ""),
        **dict.fromkeys(("hangs", "holds_the_lock", "stopped", "with_children"), (503, "")),
        **dict.fromkeys(("initializes", "completes", "finalizes", "made_of_files"), ENDING),
    },
    "at once": dict.fromkeys(STATES, CLOSED),
}


class Way(NamedTuple):
    """How a server is ended: by which signals, who gets them, with which exit status."""

    signals: Tuple[int, ...]
    status: int
    outcome: str


WAYS = {
    "SIGTERM": Way((signal.SIGTERM,), 0, "orderly"),
    "SIGINT": Way((signal.SIGINT,), 0, "orderly"),
    "SIGTERM twice": Way((signal.SIGTERM, signal.SIGTERM), 128 + signal.SIGTERM, "at once"),
    "SIGINT twice": Way((signal.SIGINT, signal.SIGINT), 128 + signal.SIGINT, "at once"),
    "SIGINT, SIGTERM": Way((signal.SIGINT, signal.SIGTERM), 128 + signal.SIGTERM, "at once"),
    "SIGKILL": Way((signal.SIGKILL,), -signal.SIGKILL, "at once"),
}


def executes(code: str, model: str) -> bytes:
    return infer(model, {"inputs": [tensor("CODE", "BYTES", [1], [code])]})


def begins(directory: Path, state: str) -> str:
    """Code that tells the test that the state is reached."""
    return f"open({str(directory / state)!r}, 'w').close()"


class Busy:
    """A server in every state, and who waits for it."""

    def __init__(self, directory: Path, repository: Path, serve: Callable[..., ServerProcess]) -> None:
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.begun = begun = directory / "begun"
        begun.mkdir()
        for name, state in STATES.items():
            if name == "completes":
                write_model(repository, name, COMPLETES.format(begun=str(begun / name)))
            elif name != "made_of_files":
                obey(repository, name, **({state.hook: f"{begins(begun, name)}; {state.code}"} if state.hook else {}))
        loaded = [f"--load-model={name}" for name in STATES if name not in ("initializes", "completes", "made_of_files")]
        explicit = ("--model-control-mode", "explicit", *loaded)
        self.server = serve(*explicit, "--exit-timeout-secs", str(SECONDS), TMPDIR=str(self.temporary))
        self.waiting: Dict[str, Wire] = {name: self.server.wire() for name in STATES}

    def reach(self) -> None:
        """Brings the server into every state."""
        for name, state in STATES.items():
            if name == "made_of_files":
                self.waiting[name].send(request("POST", state.path, _files(begins(self.begun, name))))
            elif state.path:
                self.waiting[name].send(request("POST", state.path, b"{}"))
            else:
                # On a line of its own: it may be stopped before it could say so.
                self.waiting[name].send(executes(f"{begins(self.begun, name)}\n{state.code}", name))
        until(lambda: not set(STATES).difference(os.listdir(self.begun)), what="every state")
        until(self._has_children, what="the processes that the model starts")
        self.family = descendants(self.server.pid)

    def close(self) -> None:
        for wire in self.waiting.values():
            wire.close()

    def _has_children(self) -> bool:
        """Whether the processes that a model starts are there: three of the stub's, and the one that the fork server has taken."""
        orphans = [pid for pid in _children(self.server.fork_server()) if _command(pid).startswith(b"sleep\0")]
        return len(_children(self.server.stubs()["with_children_0_0"])) == 3 and len(orphans) == 1

    def signal(self, *signums: int) -> None:
        for number, signum in enumerate(signums):
            self.server.signal(signum)
            if number < len(signums) - 1:
                until(lambda: "finishing what runs" in self.server.log)

    def assert_told(self, outcome: Dict[str, Told]) -> None:
        """Asserts that each who waited got the answer of the table."""
        for name, wire in self.waiting.items():
            status, text = outcome[name]
            if not status:
                assert wire.closed(), name
                continue
            answer = wire.answer()
            assert answer.status == status and (status == 200 or (answer.error and text in answer.error)), (name, answer)

    def assert_nothing_left(self) -> None:
        until(lambda: not any(map(alive, self.family)), AT_ONCE, "the end of every process")
        until(lambda: not os.listdir(self.temporary), AT_ONCE, "the end of the temporary directory")
        assert_no_names_left()


def _files(begun: str) -> bytes:
    code = f"{begun}\nimport time\ntime.sleep(600)\n"
    parameters = {"config": '{"backend": "python"}', "file:1/model.py": base64.b64encode(code.encode()).decode()}
    return json.dumps({"parameters": parameters}).encode()


def _children(pid: int) -> List[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture
def busy(tmp_path: Path, repository: Path, serve: Any) -> Iterator[Busy]:
    busy = Busy(tmp_path, repository, serve)
    try:
        busy.reach()
        yield busy
    finally:
        busy.close()


@pytest.mark.parametrize("name", WAYS)
def test_every_state(busy: Busy, name: str) -> None:
    way = WAYS[name]
    assert os.listdir(busy.temporary)
    started = time.monotonic()
    busy.signal(*way.signals)
    assert busy.server.wait() == way.status
    assert time.monotonic() - started < SECONDS + 2
    busy.assert_nothing_left()
    busy.assert_told(OUTCOMES[way.outcome])
    if way.outcome == "orderly":
        assert "Traceback" not in busy.server.log


def test_the_fork_server_is_stopped_when_the_server_is_killed(busy: Busy) -> None:
    os.kill(busy.server.fork_server(), signal.SIGSTOP)
    busy.signal(signal.SIGKILL)
    assert busy.server.wait() == -signal.SIGKILL
    busy.assert_nothing_left()
    busy.assert_told(OUTCOMES["at once"])


def test_server_and_fork_server_are_killed(tmp_path: Path, repository: Path, serve: Any) -> None:
    """Stubs die with the fork server; the temporary directory goes with the next server that makes one."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    obey(repository)
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    server = serve(*explicit, TMPDIR=str(temporary))
    assert _load_files(server) == 200
    family = descendants(server.pid)
    (left,) = temporary.iterdir()
    fork_server = server.fork_server()
    server.signal(signal.SIGSTOP)
    os.kill(fork_server, signal.SIGKILL)
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    until(lambda: not any(map(alive, family)), AT_ONCE)
    assert_no_names_left()
    os.utime(left, (0, 0))
    following = serve(*explicit, TMPDIR=str(temporary))
    assert _load_files(following) == 200
    assert not left.exists()
    following.stop()
    assert not os.listdir(temporary)


def _load_files(server: ServerProcess) -> int:
    code = "class TritonPythonModel:\n    def execute(self, requests): pass\n"
    parameters = {"config": '{"backend": "python"}', "file:1/model.py": base64.b64encode(code.encode()).decode()}
    with server.wire() as wire:
        body = json.dumps({"parameters": parameters}).encode()
        return wire.ask(request("POST", "/v2/repository/models/made_of_files/load", body)).status
