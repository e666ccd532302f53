"""``stublet infer`` and ``stublet ps`` as a user runs them, against a server as users run it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, List

import numpy as np
import pytest
from model_repository import MODELS, obey
from server_process import DEADLINE, ServerProcess, serving, until
from stublet.parent.placement.host_policy import allowed
from stublet.parent.placement.placement import usable_cores

COMMAND = [sys.executable, "-m", "stublet.parent"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("commands"), MODELS) as server:
        yield server


def run(*arguments: Any, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


ADD = ("--input", "INPUT0=[1, 2, 3, 4]", "--input", "INPUT1=[10, 20, 30, 40]")


def test_an_inference(server: ServerProcess) -> None:
    done = run("infer", server.address, "add_sub", *ADD, "--id", "seven")
    first, _, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"add_sub version 1 · id seven · \d+\.\d ms", first)
    assert rest == ["OUTPUT0  FP32 [4]", "[11., 22., 33., 44.]", "", "OUTPUT1  FP32 [4]", "[ -9., -18., -27., -36.]"]
    assert done.stderr == ""


def test_files_in_and_out(server: ServerProcess, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.arange(4))
    (tmp_path / "in.json").write_text("[1, 1, 1, 1]")
    out = (tmp_path / "out.npy", tmp_path / "out.json")
    inputs = ("--input", f"INPUT0={tmp_path / 'in.npy'}", "--input", f"INPUT1=@{tmp_path / 'in.json'}")
    done = run("infer", f"http://{server.address}/", "add_sub", *inputs, "--output", f"OUTPUT0={out[0]}", "--output", f"OUTPUT1={out[1]}")
    assert np.load(out[0]).tolist() == [1, 2, 3, 4] and json.loads(out[1].read_text()) == [-1, 0, 1, 2]
    assert f"OUTPUT0  FP32 [4]  -> {out[0]}" in done.stdout


def test_only_the_outputs_that_are_asked_for(server: ServerProcess) -> None:
    document = json.loads(run("infer", server.address, "add_sub", *ADD, "--output", "OUTPUT1", "--json").stdout)
    assert document["outputs"] == [{"name": "OUTPUT1", "datatype": "FP32", "shape": [4], "data": [-9.0, -18.0, -27.0, -36.0]}]
    assert (document["model_name"], document["model_version"]) == ("add_sub", "1")


def test_strings(server: ServerProcess) -> None:
    done = run("infer", server.address, "identity_bytes", "--input", 'INPUT0=["a", "日本", ""]', "--version", "1")
    assert '["a", "日本", ""]' in done.stdout


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("nosuch",), "Request for unknown model: 'nosuch' is not found"),
        (("add_sub",), "model 'add_sub' needs --input INPUT0=...; its inputs are INPUT0 (FP32 [4]), INPUT1 (FP32 [4])"),
        (("add_sub", *ADD, "--input", "X=1"), "model 'add_sub' has no input 'X'; its inputs are INPUT0 (FP32 [4]), INPUT1 (FP32 [4])"),
        (("add_sub", *ADD[:2], "--input", "INPUT1=/no/such.npy"), "input 'INPUT1': /no/such.npy: No such file or directory"),
        (
            ("add_sub", *ADD[:2], "--input", "INPUT1=[1,2]"),
            "unexpected shape for input 'INPUT1' for model 'add_sub'. Expected [4], got [2]. ",
        ),
        (("add_sub", *ADD, "--output", "NONE"), "unexpected inference output 'NONE' for model 'add_sub'"),
        (("add_sub", *ADD, "--version", "9"), "Request for unknown model: 'add_sub' version 9 is not found"),
        (("add_sub", *ADD, "--output", "OUTPUT0=/no/such/o.npy"), "/no/such/o.npy: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_inferred(server: ServerProcess, arguments: Any, text: str) -> None:
    done = run("infer", server.address, *arguments, status=1)
    assert done.stderr == f"error: {text}\n" and done.stdout == ""


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("infer",), "Missing argument 'URL'."),
        (("infer", "x", "m", "--input", "a"), "Invalid value for '--input': 'a' is not of the form NAME=TENSOR"),
        (("infer", "x", "m", "--input", "a=1", "--input", "a=2"), "an --input is given twice"),
        (("infer", "x", "m", "--version", "0"), "Invalid value for '--version': 0 is not in the range x>=1."),
        (("infer", "x", "m", "--header", "a"), "Invalid value for '--header': 'a' is not of the form 'name: value'"),
        (("infer", "x", "m", "--inptu", "a=1"), "Did you mean '--input'?"),
        (("ps", "--interval", "0"), "0.0 is not in the range x>0."),
        (("srve",), "No such command 'srve'. Did you mean 'serve'?"),
        (("xyz",), "No such command 'xyz'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_arguments(arguments: Any, text: str) -> None:
    assert text in run(*arguments, status=2).stderr


@pytest.mark.parametrize("arguments", [("ps", "127.0.0.1:1"), ("ps", "127.0.0.1:1", "--watch"), ("infer", "127.0.0.1:1", "m")])
def test_nobody_there(arguments: Any) -> None:
    assert run(*arguments, status=1).stderr == "error: no server answers at http://127.0.0.1:1: Connection refused\n"


def test_help() -> None:
    for arguments, words in (((), "Commands:"), (("infer",), "--output NAME[=FILE]"), (("ps",), "--watch"), (("serve",), "gRPC:")):
        assert words in run(*arguments, "--help").stdout
    nothing = run(status=2)
    assert "Commands:" in nothing.stderr + nothing.stdout


def test_ps(server: ServerProcess) -> None:
    done = run("ps", server.address)
    title, head, *lines = done.stdout.splitlines()
    assert re.fullmatch(
        rf"triton 2\.73\.0 · http://{server.address} · ready · pid {server.pid} · up \S+( \S+)? · \S+B · \d+ models ready", title
    )
    columns = head.split()
    assert columns == ["model", "version", "instance", "pid", "device", "state", "running", "queue", "memory", "shared-memory"]
    rows = {row["instance"]: row for row in (dict(zip(columns, line.split())) for line in lines)}
    assert {name: int(row["pid"]) for name, row in rows.items()} == server.stubs()
    assert {row["state"] for row in rows.values()} == {"READY"}
    assert all(re.fullmatch(r"[\d.]+MiB", row["memory"]) for row in rows.values())
    assert "\x1b" not in done.stdout


def test_ps_as_json(server: ServerProcess) -> None:
    document = json.loads(run("ps", server.address, "--json").stdout)
    assert document["server"]["pid"] == server.pid and document["server"]["memory_bytes"] > 1 << 20
    (model,) = [model for model in document["models"] if model["name"] == "add_sub"]
    (instance,) = model["instances"]
    assert instance.pop("memory_bytes") > 1 << 20
    assert instance == {
        "name": "add_sub_0_0", "pid": server.stubs()["add_sub_0_0"], "device": "CPU", "cores": "", "threads": usable_cores(allowed()),
        "passive": False, "state": "READY", "reason": "", "executing": 0, "restarts": 0, "restart_in_seconds": None,
        "gpu_exported_bytes": 0, "gpu_imported_bytes": 0, "gpu_memory_bytes": None,
    }  # fmt: skip
    assert model["shared_memory_bytes"] >= 2 << 20 and model["pending"] == 0


def test_ps_of_a_server_with_troubles(repository: Path, serve: Any) -> None:
    obey(repository, instances=2, restart_limit="0")
    obey(repository, "bad", initialize="raise ValueError('odd')")
    server = serve("--exit-on-error=false")
    os.kill(server.stubs()["obey_0_1"], signal.SIGKILL)

    def rows() -> List[List[str]]:
        return [line.split() for line in run("ps", server.address).stdout.splitlines()]

    until(lambda: [row[5] for row in rows() if row[2:3] == ["obey_0_1"]] == ["FAILED"])
    text = run("ps", server.address).stdout
    assert " · NOT READY · " in text
    assert re.search(r"^bad +1 +bad_0_0 +- +CPU +FAILED ", text, re.MULTILINE) or re.search(r"^bad .* UNAVAILABLE ", text, re.MULTILINE)
    assert re.search(r"^obey_0_1: Stub process 'obey_0_1' is not healthy: it ended with SIGKILL", text, re.MULTILINE)
    assert re.search(r"^bad\S*.*: .*ValueError: odd$", text, re.MULTILINE)
    server.stop(tracebacks=True)


def test_ps_shows_what_runs_and_waits(repository: Path, serve: Any) -> None:
    obey(repository)
    server = serve()
    code = json.dumps(["time.sleep(600)"])
    asking = [
        subprocess.Popen(
            [*COMMAND, "infer", server.address, "obey", "--input", f"CODE={code}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(3)
    ]
    try:

        def busy() -> bool:
            (model,) = json.loads(run("ps", server.address, "--json").stdout)["models"]
            return (model["instances"][0]["executing"], model["pending"]) == (3, 2)

        until(busy)
    finally:
        for process in asking:
            process.kill()
            process.wait()
    os.kill(server.stubs()["obey_0_0"], signal.SIGKILL)
    server.stop()


def test_ps_on_a_terminal(server: ServerProcess) -> None:
    """In colours, again and again, until Ctrl-C."""
    near, far = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "ps", server.address, "--watch", "--interval", "0.1"], stdin=far, stdout=far, stderr=far, env={**os.environ, "TERM": "xterm"}
    )  # fmt: skip
    os.close(far)
    try:
        shown = b""

        def twice() -> bool:
            nonlocal shown
            with suppress(OSError):  # the far end is closed
                if select.select([near], [], [], 0)[0]:
                    shown += os.read(near, 65536)
            return shown.count(b"models ready") >= 3

        until(twice)
        assert b"\x1b[" in shown and b"READY" in shown
        process.send_signal(signal.SIGINT)
        until(lambda: (twice(), process.poll() is not None)[1])  # its output must be read, or it could not end
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
        os.close(near)


class Other(BaseHTTPRequestHandler):
    """A server of the protocol without our endpoint and without the binary extension."""

    ANSWERS: ClassVar[Dict[str, Any]] = {
        "/v2": {"name": "other", "version": "1.0", "extensions": ["model_repository"]},
        "/v2/repository/index": [{"name": "m", "version": "1", "state": "READY"}, {"name": "n", "state": "UNAVAILABLE", "reason": "odd"}],
        "/v2/models/m": {"name": "m", "inputs": [{"name": "X", "datatype": "BYTES", "shape": [-1]}], "outputs": []},
        "/v2/health/ready": "",
    }

    def do_GET(self) -> None:
        self.answer(self.ANSWERS.get(self.path))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/infer"):
            (given,) = json.loads(body)["inputs"]
            self.answer({"model_name": "m", "outputs": [{**given, "name": "Y"}]})
        else:
            self.answer(self.ANSWERS.get(self.path))

    def answer(self, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(404 if document is None else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def other() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_server(other: str) -> None:
    title, head, *rows = run("ps", other).stdout.splitlines()
    assert title == f"other 1.0 · http://{other} · ready · 1 model ready"
    assert [line.split() for line in (head, *rows[:2])] == [["model", "version", "state"], ["m", "1", "READY"], ["n", "-", "UNAVAILABLE"]]
    assert rows[2:] == ["n: odd"]
    assert 'Y  BYTES [2]\n["a", "b"]' in run("infer", other, "m", "--input", 'X=["a", "b"]').stdout
