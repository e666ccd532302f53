"""The orderly end: what runs is finished, models finalize, and time-outs bound all of it."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from grpc_client import Client, failure, pb
from grpc_client import infer as grpc_infer
from http_wire import Answer, Headers, Wire, infer, request, tensor
from model_repository import obey
from server_process import ServerProcess, alive, descendants, until


def told(code: str, **headers: str) -> bytes:
    return infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]}, headers=headers)


def asked(code: str) -> Any:
    """The same over gRPC."""
    return grpc_infer("obey", {"CODE": np.array([code], object)})


def begun(directory: Path) -> str:
    """Code that tells the test that the model runs it."""
    return f"open({str(directory / 'begun')!r}, 'w').close()"


_HTTP2_BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 says first: the preface, and settings that are the usual ones (RFC 9113, 3.4)."""

FINALIZE = "pb_utils.Logger.log_info('finalized in good order')"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("way", ["direct", "asgi"])
def test_what_runs_is_finished(repository: Path, tmp_path: Path, serve: Any, signum: int, way: str) -> None:
    obey(repository, finalize=FINALIZE)
    server = serve()
    with server.wire() as wire, server.wire() as idle:
        assert idle.ask(request("GET", "/v2/health/live")).status == 200
        headers = {"accept-encoding": "identity"} if way == "asgi" else {}
        gate = tmp_path / "gate"
        wire.send(told(f"{begun(tmp_path)}\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nresult = 'finished'", **headers))
        until((tmp_path / "begun").exists)
        server.signal(signum)
        assert idle.closed()
        gate.touch()
        answer = wire.answer()
        assert answer.json()["outputs"][0]["data"] == ["finished"]
        assert answer.headers["connection"] == "close"
        assert wire.closed()
    server.stop()
    assert re.search(
        r"^I\S+ \S+ \d+ obey_0_0 model\.py:\d+\] finalized in good order$|obey_0_0 <string>:1\] finalized in good order$", server.log, re.M
    )


def test_clients_of_grpc_that_only_hold_a_connection_hold_up_nothing(repository: Path, serve: Any, grpc_core: None) -> None:
    obey(repository, finalize=FINALIZE)
    server = serve("--grpc-port", "0")
    with socket.create_connection(("127.0.0.1", server.grpc_port)), socket.create_connection(("127.0.0.1", server.grpc_port)) as polite:
        polite.sendall(_HTTP2_BEGIN)
        assert polite.recv(9)  # its settings
        began = time.monotonic()
        server.stop()
        took = time.monotonic() - began
    assert took < 10, f"the end took {took:.1f} s"  # half of --exit-timeout-secs is 15
    assert "finalized in good order" in server.log


def test_what_waits_is_finished_too(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    answers: List[Answer] = []

    def ask(wire: Wire) -> None:
        answers.append(wire.ask(told("time.sleep(0.05); result = 'finished'")))

    wires = [server.wire() for _ in range(20)]
    threads = [threading.Thread(target=ask, args=(wire,)) for wire in wires]
    for thread in threads:
        thread.start()
    until(lambda: answers)
    server.signal(signal.SIGTERM)
    for thread, wire in zip(threads, wires):
        thread.join()
        wire.close()
    assert [answer.status for answer in answers] == [200] * 20
    server.stop()


def test_new_connections_are_refused_while_it_ends(repository: Path, tmp_path: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    with server.wire() as wire:
        wire.send(told(f"{begun(tmp_path)}; time.sleep(0.6)"))
        until((tmp_path / "begun").exists)
        server.signal(signal.SIGTERM)
        until(lambda: refused(server))
        assert wire.answer().status == 200
    server.stop()


def test_it_is_not_ready_from_the_first_moment_on(repository: Path, tmp_path: Path, serve: Any, grpc_core: None) -> None:
    obey(repository)
    server = serve("--grpc-port", "0")
    with Client(server.grpc_address) as client, Client(server.grpc_address) as probe:
        running = client.stub.ModelInfer.future(asked(f"{begun(tmp_path)}; time.sleep(1)"), timeout=30)
        until((tmp_path / "begun").exists)
        assert probe.stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
        server.signal(signal.SIGTERM)
        until(lambda: "SIGTERM: finishing what runs" in server.log)
        assert not probe.stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
        assert failure(probe.infer, asked("pass")).startswith("UNAVAILABLE: ")
        assert running.result().model_name == "obey"
    server.stop()


def refused(server: ServerProcess) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == errno.ECONNREFUSED


BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"


@pytest.mark.parametrize("hook", ["time.sleep(600)", "ctypes.PyDLL(None).sleep(600)"])
def test_a_finalize_that_hangs_is_interrupted_in_time(repository: Path, serve: Any, hook: str) -> None:
    """Its traceback says where; what is registered with atexit is still done."""
    obey(repository, finalize=f"import atexit; atexit.register(print, 'left in good order'); {hook}")
    server = serve("--exit-timeout-secs", "3")
    pid = server.stubs()["obey_0_0"]
    started = time.monotonic()
    server.stop(tracebacks=True)
    assert 2.5 < time.monotonic() - started < 5
    assert f"instance 'obey_0_0' (pid {pid}) did not end in time\n" in server.log
    assert "TimeoutError: finalize did not return in time" in server.log
    assert "left in good order" in server.log
    assert "is killed" not in server.log


@pytest.mark.parametrize(
    "hook", [f"{BLOCKED}; time.sleep(600)", f"{BLOCKED}; ctypes.PyDLL(None).sleep(600)", "os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_a_finalize_that_cannot_be_interrupted_is_killed_in_time(repository: Path, serve: Any, hook: str) -> None:
    obey(repository, finalize=hook)
    server = serve("--exit-timeout-secs", "1")
    pid = server.stubs()["obey_0_0"]
    started = time.monotonic()
    server.stop()
    assert 0.9 < time.monotonic() - started < 4
    assert f"instance 'obey_0_0' (pid {pid}) did not end in time and is killed" in server.log


def test_what_is_asked_may_not_take_the_time_of_finalize(repository: Path, tmp_path: Path, serve: Any) -> None:
    obey(repository, finalize=FINALIZE)
    server = serve("--exit-timeout-secs", "4")
    with server.wire() as wire:
        wire.send(told(f"{begun(tmp_path)}; time.sleep(3.2)"))
        until((tmp_path / "begun").exists)
        server.stop()
        assert wire.answer().status == 200
    assert "finalized in good order" in server.log


@pytest.mark.parametrize("way", [{}, {"accept-encoding": "identity"}], ids=["direct", "asgi"])
def test_an_execute_that_hangs_is_killed_in_time(repository: Path, tmp_path: Path, serve: Any, way: Headers) -> None:
    obey(repository)
    server = serve("--exit-timeout-secs", "2")
    with server.wire() as wire:
        wire.send(told(f"{begun(tmp_path)}; time.sleep(600)", **way))
        until((tmp_path / "begun").exists)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5
        answer = wire.answer()
        assert answer.status == 503
        assert answer.error
        assert wire.closed()


@pytest.mark.parametrize("hook", ["raise ValueError('too late')", "sys.exit(3)", "1 / 0"])
def test_a_finalize_that_fails_is_only_logged(repository: Path, serve: Any, hook: str) -> None:
    obey(repository, finalize=hook)
    server = serve()
    server.stop(tracebacks=True)
    assert "finalize of 'obey_0_0' failed" in server.log


@pytest.mark.parametrize("hook", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_death_in_finalize_is_no_trouble(repository: Path, serve: Any, hook: str) -> None:
    obey(repository, finalize=hook)
    serve().stop()


def test_a_second_signal_ends_it_at_once(repository: Path, tmp_path: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    with server.wire() as wire:
        wire.send(told(f"{begun(tmp_path)}; time.sleep(600)"))
        until((tmp_path / "begun").exists)
        server.signal(signal.SIGTERM)
        until(lambda: "SIGTERM: finishing what runs" in server.log)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        server.assert_ended(128 + signal.SIGTERM)
        assert time.monotonic() - started < 2
        assert wire.closed()


def test_a_signal_while_models_load(repository: Path, tmp_path: Path, serve: Any) -> None:
    """A model that has not served has nothing to finish."""
    obey(repository, initialize=f"{begun(tmp_path)}; time.sleep(600)")
    server = serve("--exit-timeout-secs", "20", wait=False)
    until((tmp_path / "begun").exists)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 5


def test_a_signal_just_before_the_models_are_loaded(repository: Path, tmp_path: Path, serve: Any) -> None:
    obey(repository, initialize=f"{begun(tmp_path)}; time.sleep(0.5)", finalize=FINALIZE)
    server = serve("--exit-timeout-secs", "20", wait=False)
    until((tmp_path / "begun").exists)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("when", [0.0, 0.02, 0.05, 0.1, 0.2, 0.3])
def test_a_signal_at_any_moment_of_the_start(repository: Path, serve: Any, when: float) -> None:
    obey(repository)
    server = serve("--exit-timeout-secs", "20", wait=False)
    started = time.monotonic()
    until(lambda: time.monotonic() > started + when)
    server.signal(signal.SIGTERM)
    # Before the handlers are there, a signal does what it always does.
    server.assert_ended(0, -signal.SIGTERM)
    assert time.monotonic() - started < 5
    assert "Traceback" not in server.log


def test_a_client_that_never_reads_does_not_hold_it_up(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve("--exit-timeout-secs", "2")
    with Wire(server.port, receive_buffer=4096) as wire:
        wire.send(told("result = 'x' * (64 << 20)"))
        until(lambda: wire.socket.recv(1))
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5


OVERDUE = "from stublet.parent import run; run.OVERDUE_SECONDS = 1.0; from stublet.parent.cli import main; main()"


def test_an_end_that_hangs_is_given_up(repository: Path, tmp_path: Path) -> None:
    """A thread of the server waits for a pipe that nobody writes to. The stacks say where."""
    directory = obey(repository)
    (directory / "warmup").mkdir()
    pipe = directory / "warmup" / "data"
    os.mkfifo(pipe)
    with (directory / "config.pbtxt").open("a") as config:
        value = 'data_type: TYPE_STRING dims: 1 input_data_file: "data"'
        config.write(f'model_warmup {{ name: "sample" batch_size: 1 inputs {{ key: "CODE" value {{ {value} }} }} }}')
    options = ["--http-port", "0", "--metrics-port", "0", "--allow-grpc=false", "--exit-timeout-secs", "0"]
    command = [sys.executable, "-c", OVERDUE, "serve", str(repository), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        writer = until(lambda: opened(pipe))
        try:
            family = descendants(server.pid)
            server.send_signal(signal.SIGTERM)
            _, log = server.communicate(timeout=20)
        finally:
            os.close(writer)
            server.kill()
    assert server.returncode == 1
    assert "Timeout" in log and "read_samples" in log
    until(lambda: not any(map(alive, family)), 2)


def opened(pipe: Path) -> int:
    """The end of a pipe to write to, once somebody reads; 0 before."""
    with suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    return 0
