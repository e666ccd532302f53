"""The orderly end: what runs is finished, models finalize, and time-outs bound all of it."""

from __future__ import annotations

import errno
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, List

import pytest
from http_wire import Answer, Headers, Wire, infer, request, tensor
from model_repository import obey
from server_process import ServerProcess, until


def told(code: str, **headers: str) -> bytes:
    return infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]}, headers=headers)


def begun(directory: Path) -> str:
    """Code that tells the test that the model runs it."""
    return f"open({str(directory / 'begun')!r}, 'w').close()"


FINALIZE = "pb_utils.Logger.log_info('finalized in good order')"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("way", ["direct", "asgi"])
def test_what_runs_is_finished(repository: Path, tmp_path: Path, serve: Any, signum: int, way: str) -> None:
    obey(repository, finalize=FINALIZE)
    server = serve()
    with server.wire() as wire, server.wire() as idle:
        assert idle.ask(request("GET", "/v2/health/live")).status == 200
        headers = {"accept-encoding": "identity"} if way == "asgi" else {}
        wire.send(told(f"{begun(tmp_path)}; time.sleep(0.5); result = 'finished'", **headers))
        until((tmp_path / "begun").exists)
        server.signal(signum)
        assert idle.closed()
        answer = wire.answer()
        assert answer.json()["outputs"][0]["data"] == ["finished"]
        assert answer.headers["connection"] == "close"
        assert wire.closed()
    server.stop()
    assert re.search(
        r"^I\S+ \S+ \d+ obey_0_0 model\.py:\d+\] finalized in good order$|obey_0_0 <string>:1\] finalized in good order$", server.log, re.M
    )


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


def refused(server: ServerProcess) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    "hook", ["time.sleep(600)", "ctypes.PyDLL(None).sleep(600)", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(600)"]
)
def test_a_finalize_that_hangs_is_killed_in_time(repository: Path, serve: Any, hook: str) -> None:
    obey(repository, finalize=hook)
    server = serve("--exit-timeout-secs", "1")
    pid = server.stubs()["obey_0_0"]
    started = time.monotonic()
    server.stop()
    assert 0.9 < time.monotonic() - started < 4
    assert f"instance 'obey_0_0' (pid {pid}) did not end in time and is killed" in server.log


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
        server.assert_ended(1)
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
