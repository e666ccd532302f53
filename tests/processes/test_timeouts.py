"""Stubs that take too long, hang, or are stopped: they are ended, their stacks are in the log, and others take their place."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_client import Client, failure, typed
from http_wire import Answer, infer, request, tensor
from model_repository import ECHO_CONFIG, copy_model, python, write_model
from server_process import ServerProcess, alive, descendants, until
from shared_memory import client_file
from stublet.parent import Server, ServerOptions

HOLD = "ctypes.PyDLL(None).sleep(600)"
"""With the interpreter's lock held, so that nothing else in the process runs."""


SLEEPY = """
import asyncio
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    async def execute(self, requests):
        seconds = requests[0].inputs()[0].as_numpy()
        await asyncio.sleep(float(seconds[0]))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", seconds)])]
"""


def limited(root: Path, name: str = "obey", **parameters: str) -> None:
    """The model ``obey`` with parameters."""
    extra = "".join(f'parameters {{ key: "{key}" value {{ string_value: {python(value)} }} }}\n' for key, value in parameters.items())
    copy_model(root, "obey", name, extra)


def told(code: str, model: str = "obey") -> bytes:
    return infer(model, {"inputs": [tensor("CODE", "BYTES", [1], [code])]})


def ask(server: ServerProcess, code: str) -> Answer:
    with server.wire() as wire:
        return wire.ask(told(code))


def result(server: ServerProcess, code: str) -> str:
    answer = ask(server, f"result = str({code})")
    assert answer.status == 200, answer
    return answer.json()["outputs"][0]["data"][0]  # type: ignore[no-any-return]


def pid_of(server: ServerProcess) -> int:
    return int(result(server, "os.getpid()"))


def assert_replaced(server: ServerProcess, pid: int) -> None:
    until(lambda: not alive(pid), 5, "the end of the stub")
    assert pid_of(server) != pid


@pytest.mark.parametrize(
    "hang", ["time.sleep(600)", HOLD, "while True: pass", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(600)"]
)
def test_an_execute_that_takes_too_long(repository: Path, serve: Any, hang: str) -> None:
    limited(repository, execute_timeout="0.5")
    server = serve()
    pid = pid_of(server)
    started = time.monotonic()
    answer = ask(server, hang)
    assert 0.5 <= time.monotonic() - started < 2
    why = "Stub process 'obey_0_0' is not healthy: execute took longer than its 'execute_timeout' of 0.5 s"
    assert (answer.status, answer.error) == (504, f"{why} (pid {pid}, model 'obey')")
    assert_replaced(server, pid)
    log = server.log
    assert f"{why} (pid {pid}, model 'obey'); it is ended, and these are its stacks:" in log
    assert '/1/model.py", line' in log and " in execute\n" in log
    assert f"{why} while serving (pid {pid}, model 'obey')" in log
    server.stop()


def test_one_that_is_done_in_time_is_left_alone(repository: Path, serve: Any) -> None:
    limited(repository, execute_timeout="0.4")
    server = serve()
    pid = pid_of(server)
    started = time.monotonic()
    while time.monotonic() - started < 1:
        assert ask(server, "time.sleep(0.15)").status == 200
    assert pid_of(server) == pid
    server.stop()


def test_a_stop_of_the_server_is_not_the_models_fault(repository: Path) -> None:
    """What the stub did meanwhile counts, before what the clock says."""
    limited(repository, execute_timeout="1", hang_timeout="1")
    with Server(repository, options=ServerOptions(allow_metrics=False)) as server:
        assert server.loop is not None
        for _ in range(2):
            server.loop.call_soon_threadsafe(server.loop.call_later, 0.2, time.sleep, 1.5)
            server.infer("obey", {"CODE": np.array(["time.sleep(0.5)"], object)})


def test_the_time_of_a_suspended_machine_does_not_count(repository: Path, serve: Any, tmp_path: Path) -> None:
    limited(repository, execute_timeout="1", hang_timeout="1")
    server = serve()
    begun, wire = tmp_path / "begun", server.wire()
    with wire:
        wire.send(told(f"time.sleep(0.3)\nopen({str(begun)!r}, 'w').close()\nfor _ in range(40): time.sleep(0.01)"))
        until(begun.exists)
        family = [server.pid, *descendants(server.pid)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        resumed = time.monotonic() + 4
        until(lambda: time.monotonic() > resumed)
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        assert wire.answer().status == 200
    server.stop()


def test_what_waits_behind_it_is_executed_by_the_next(repository: Path, serve: Any) -> None:
    limited(repository, execute_timeout="0.5")
    server = serve()
    pid = pid_of(server)
    with server.wire() as late, server.wire() as behind:
        late.send(told("time.sleep(600)"))
        until(lambda: '"executing":1' in _instances(server))
        behind.send(told("result = str(os.getpid())"))
        assert late.answer().status == 504
        answer = behind.answer()
    assert answer.status == 200
    assert answer.json()["outputs"][0]["data"] != [str(pid)]
    server.stop()


def _instances(server: ServerProcess) -> str:
    with server.wire() as wire:
        return wire.ask(request("GET", "/v2/stublet/instances")).body.decode().replace(" ", "")


def test_over_grpc_the_deadline_is_exceeded(repository: Path, serve: Any, grpc_core: None) -> None:
    limited(repository, execute_timeout="0.5")
    server = serve("--grpc-port", "0")
    with Client(server.grpc_address) as client:
        text = failure(client.infer, typed("obey", "CODE", "BYTES", "bytes_contents", [b"time.sleep(600)"]))
    assert text.startswith(
        "DEADLINE_EXCEEDED: Stub process 'obey_0_0' is not healthy: execute took longer than its 'execute_timeout' of 0.5 s"
    )
    server.stop()


def test_who_lent_memory_is_told_when_nobody_uses_it_any_more(repository: Path, serve: Any) -> None:
    limited(repository, execute_timeout="0.5")
    server = serve("--allow-client-shm", "true")
    pid = pid_of(server)
    code = b"time.sleep(600)"
    with client_file(4096) as file, server.wire() as wire:
        file.put(struct.pack("<I", len(code)) + code)
        document = json.dumps({"key": file.key, "offset": 0, "byte_size": 4096}).encode()
        assert wire.ask(request("POST", "/v2/systemsharedmemory/region/r/register", document)).status == 200
        place = {"shared_memory_region": "r", "shared_memory_byte_size": 4 + len(code)}
        answer = wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], **place)]}))
        assert not alive(pid)
        assert answer.status == 504
        assert "execute took longer than its 'execute_timeout' of 0.5 s while serving" in answer.error
        assert wire.ask(request("POST", "/v2/systemsharedmemory/region/r/unregister")).status == 200
    server.stop()


def test_a_coroutine_that_takes_too_long_does_not_take_others_along(repository: Path, serve: Any) -> None:
    """They are interrupted, and so told that they may come again."""
    config = ECHO_CONFIG + "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in (("max_concurrent", "2"), ("execute_timeout", "1"))
    )
    write_model(repository, "sleepy", SLEEPY, config)
    server = serve()

    def sleep(seconds: float) -> bytes:
        return infer("sleepy", {"inputs": [tensor("INPUT0", "FP32", [1], [seconds])]})

    with server.wire() as late, server.wire() as other:
        late.send(sleep(600))
        time_left = time.monotonic() + 0.5
        until(lambda: time.monotonic() > time_left and '"executing":1' in _instances(server))
        other.send(sleep(600))
        answer = late.answer()
        assert (answer.status, "'execute_timeout' of 1 s" in answer.error) == (504, True)
        answer = other.answer()
        assert (answer.status, "'execute_timeout' of 1 s" in answer.error) == (503, True)
    server.stop()


def test_an_initialize_that_takes_too_long(repository: Path, serve: Any) -> None:
    limited(repository, initialize_timeout="1", initialize="time.sleep(600)")
    server = serve("--exit-on-error=false")
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2/models/obey/ready")).status == 400
    assert "initialize took longer than its 'initialize_timeout' of 1 s while loading the model" in server.log
    assert " in initialize\n" in server.log
    server.stop()


@pytest.mark.parametrize("busy", [False, True])
def test_a_stub_that_is_stopped(repository: Path, serve: Any, tmp_path: Path, busy: bool) -> None:
    limited(repository, hang_timeout="3")
    server = serve()
    pid = pid_of(server)
    with server.wire() as wire:
        if busy:
            begun = tmp_path / "begun"
            wire.send(told(f"open({str(begun)!r}, 'w').close(); time.sleep(600)"))
            until(begun.exists)
        os.kill(pid, signal.SIGSTOP)
        if busy:
            answer = wire.answer()
            assert answer.status == 503
            assert answer.error.startswith(
                "Stub process 'obey_0_0' is not healthy: it was hung: it was stopped (SIGSTOP) for 3 s while serving"
            )
    until(lambda: not alive(pid), 10)
    assert f"stub 'obey_0_0' (pid {pid}): it is stopped (SIGSTOP); it is ended if that lasts 3 s" in server.log
    assert "(no stacks: the process is stopped (SIGSTOP))" in server.log
    assert_replaced(server, pid)
    server.stop()


def test_one_that_goes_on_in_time_is_left_alone(repository: Path, serve: Any) -> None:
    limited(repository)
    server = serve()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "it is stopped (SIGSTOP); it is ended if that lasts 30 s" in server.log)
    os.kill(pid, signal.SIGCONT)
    until(lambda: "it goes on" in server.log)
    assert pid_of(server) == pid
    server.stop()


def test_an_idle_stub_whose_interpreter_is_held(repository: Path, serve: Any) -> None:
    limited(repository, hang_timeout="1")
    server = serve()
    pid = pid_of(server)
    assert ask(server, f"import threading; threading.Timer(0.2, lambda: {HOLD}).start()").status == 200
    until(lambda: not alive(pid), 15, "the end of the stub")
    assert "it was hung: it executed nothing and did not answer for 1 s; something in it holds the interpreter" in server.log
    assert_replaced(server, pid)
    server.stop()


def test_a_busy_stub_whose_interpreter_is_held_is_left_alone(repository: Path, serve: Any) -> None:
    limited(repository, hang_timeout="0.5")
    server = serve()
    pid = pid_of(server)
    assert ask(server, "ctypes.PyDLL(None).sleep(3)").status == 200
    assert pid_of(server) == pid
    server.stop()


@pytest.mark.parametrize(
    "parameter, value, wanted",
    [
        ("execute_timeout", "0", "a number of seconds above 0"),
        ("execute_timeout", "soon", "a number of seconds above 0"),
        ("initialize_timeout", "-1", "a number of seconds above 0"),
        ("hang_timeout", "1e3", "a number of seconds, or 0 for none"),
    ],
)
def test_limits_that_cannot_be(repository: Path, serve: Any, parameter: str, value: str, wanted: str) -> None:
    limited(repository, **{parameter: value})
    server = serve("--exit-on-error=false")
    assert f"parameter '{parameter}' of model 'obey' must be {wanted}, not '{value}'" in server.log
    server.stop()
