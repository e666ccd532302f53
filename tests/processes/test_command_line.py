"""``stublet serve``: wrong arguments, ports that are taken, and what it prints."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, List

import pytest
from http_wire import request
from model_repository import copy_model, write_model
from server_process import ServerProcess, run_serve, until
from stublet.parent.libc import copy_tuning


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["x", "--repository-poll-secs=0"], "0.0 is not in the range x>0"),
        (["x", "--model-config-name=a/b"], "--model-config-name: 'a/b' must be the name of a file in configs/, without .pbtxt"),
        (["x", "--http-thread-cuont", "8"], "--http-thread-count"),
        (["x", "--model-control-mode=some"], "'some' is not one of 'none', 'poll', 'explicit'"),
        (["x", "--load-model", "a"], "Use of '--load-model' requires setting '--model-control-mode=explicit' as well."),
        (["x", "--backend-directory", "/no/such/place"], "--backend-directory: '/no/such/place' is not a directory"),
        (["x", "--strict-model-config=perhaps"], "'perhaps' is not a valid boolean"),
        ([], "name a model repository, for instance: stublet serve examples/models"),
        (["x", "--nonsense"], "No such option"),
        (["x", "--http-port", "many"], "'many' is not a valid integer"),
        (["x", "--http-port", "70000"], "70000 is not in the range 0<=x<=65535"),
        (["x", "--exit-timeout-secs", "-1"], "-1.0 is not in the range x>=0"),
        (["x", "--exit-on-error=perhaps"], "'perhaps' is not a valid boolean"),
        (["x", "--backend-config", "python"], "'python' is not of the form <backend>,<key>=<value>"),
        (["x", "--backend-config", "python,shm-default-byte-size=5"], "shm-default-byte-size can't be smaller than 1 MiB"),
        (["x", "--backend-config", "python,nonsense=5"], "unknown key; known are auto-complete-timeout-seconds, gpu-ipc-limit-byte-size,"),
        (["x", "--log-format", "fancy"], "'fancy' is not one of 'default', 'ISO8601', 'json'"),
        (["x", "--log-verbose", "-1"], "-1 is not in the range x>=0"),
        (["x", "--log-file", "/no/such/place/log"], "--log-file: [Errno 2] No such file or directory"),
        (["x", "--metrics-port", "-1"], "-1 is not in the range 0<=x<=65535"),
        (["x", "--allow-metrics=perhaps"], "'perhaps' is not a valid boolean"),
        (["x", "--allow-grpc=perhaps"], "'perhaps' is not a valid boolean"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(arguments: List[str], text: str) -> None:
    done = run_serve(*arguments)
    assert done.returncode == 2
    assert "Usage: stublet serve" in done.stderr
    assert text in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr


def test_no_such_repository() -> None:
    done = run_serve("/no/such/place", "--http-port", "0")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: the model repository '/no/such/place' is not a directory")


def test_a_model_in_two_repositories(tmp_path: Path) -> None:
    for root in ("x", "y"):
        write_model(tmp_path / root, "twice")
    done = run_serve(str(tmp_path / "x"), "--model-repository", str(tmp_path / "y"), "--http-port", "0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: failed to load 'twice': model 'twice' appears in two or more repositories: ")


def test_models_that_are_loaded_at_the_start(repository: Path, serve: Any) -> None:
    for name in ("a", "b"):
        write_model(repository, name)
    server = serve("--model-control-mode=explicit", "--load-model", "a")
    assert list(server.stubs()) == ["a_0_0"]
    server.stop()


def test_a_model_to_load_that_is_not_there(repository: Path) -> None:
    done = run_serve(str(repository), "--http-port", "0", "--model-control-mode=explicit", "--load-model", "gone")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: failed to load 'gone': failed to poll from model repository"


@pytest.mark.parametrize("option, what", [("--http-port", "HTTP"), ("--metrics-port", "metrics")])
def test_a_port_that_is_taken(repository: Path, option: str, what: str) -> None:
    write_model(repository, "echo")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_serve(str(repository), "--http-port", "0", option, str(port))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: cannot listen for {what} on 127.0.0.1:{port}: Address already in use"
    assert "Traceback" not in done.stderr


def test_an_address_that_is_none(repository: Path) -> None:
    done = run_serve(str(repository), "--http-address", "203.0.113.1", "--http-port", "0")
    assert done.returncode == 1
    assert "error: cannot listen for HTTP on 203.0.113.1:0: Cannot assign requested address" in done.stderr


def test_the_table_and_the_log(repository: Path, serve: Any) -> None:
    write_model(repository, "echo", config='input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] } instance_group { count: 2 }')
    server = serve("--id", "name of mine")
    table = [line.split() for line in server.out.splitlines()]
    assert table[0] == ["model", "version", "instance", "pid", "device", "state"]
    stubs = server.stubs()
    assert set(stubs) == {"echo_0_0", "echo_0_1"}
    assert ["echo", "1", "echo_0_0", str(stubs["echo_0_0"]), "CPU", "READY"] in table
    assert re.search(
        r"^I\d{4} \d\d:\d\d:\d\d\.\d{6} %d model_control\.py:\d+\] successfully loaded 'echo' version 1$" % server.pid, server.log, re.M
    )
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2")).json()["name"] == "name of mine"
    server.stop()


def test_the_server_copies_as_is_best(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    environment = Path(f"/proc/{serve().pid}/environ").read_text().split("\0")
    assert [one for one in environment if one.startswith("GLIBC_TUNABLES=")] == [f"{key}={value}" for key, value in copy_tuning().items()]


def test_options_that_mean_nothing_here(repository: Path, serve: Any) -> None:
    """They are accepted, and the log says so in one line."""
    given = [
        "--http-thread-count=4",
        "--pinned-memory-pool-byte-size",
        "0",
        "--cuda-memory-pool-byte-size=0:1",
        "--buffer-manager-thread-count=2",
    ]
    server = serve(*given, "--cuda-memory-pool-byte-size=1:1", "--strict-readiness=1", "--exit-on-error=TRUE", "--allow-metrics=0")
    (line,) = [line for line in server.log.splitlines() if "without effect" in line]
    assert line.startswith("W") and line.endswith(
        "] options without effect here: --http-thread-count (one event loop serves HTTP); --pinned-memory-pool-byte-size,"
        " --cuda-memory-pool-byte-size (there are no memory pools to size); --buffer-manager-thread-count (tensors are not copied by threads)"
    )
    server.stop()


def test_models_follow_the_repository(repository: Path, serve: Any) -> None:
    server = serve("--model-control-mode=poll", "--repository-poll-secs=0.05")
    write_model(repository, "echo")
    with server.wire() as wire:
        until(lambda: wire.ask(request("GET", "/v2/models/echo/ready")).status == 200)
    server.stop()


def test_an_empty_repository_is_served(serve: Any) -> None:
    server = serve("--log-format", "ISO8601")
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I \d+ run\.py:\d+\] serving 0 models; Ctrl-C ends$", server.log, re.M)
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2/health/ready")).status == 200
    server.stop()


def test_the_log_in_a_file(tmp_path: Path, repository: Path, serve: Any) -> None:
    write_model(repository, "echo", "x = 1\n")
    server = serve("--exit-on-error=false", "--log-file", str(tmp_path / "log.txt"), "--log-info=false")
    server.stop()
    assert server.log == ""
    (line, *_) = (tmp_path / "log.txt").read_text().splitlines()
    assert line.startswith("E")


def test_every_line_of_the_log_has_its_form(repository: Path, serve: Any) -> None:
    """Those of the libraries too."""
    server = serve()
    with server.wire() as wire:
        assert wire.ask(b"nonsense\r\n\r\n").status == 400
    server.stop()
    assert "Invalid HTTP request received." in server.log
    for line in server.log.splitlines():
        assert re.match(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ \w+\.py:\d+\] ", line)


def test_without_standard_streams(repository: Path, tmp_path: Path) -> None:
    """It serves, and the log is where it was wanted."""
    copy_model(repository, "vector")
    log = tmp_path / "log"
    prefix = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    server = ServerProcess(tmp_path, repository, "--log-file", str(log), prefix=prefix)
    try:
        until(lambda: log.exists() and "serving 1 model" in log.read_text())
        server.stop()
    finally:
        server.cleanup()
