"""Every way in which a model fails to load: the others serve, and the reason is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, NamedTuple

import pytest
from http_wire import infer, request, tensor
from model_repository import ECHO, ECHO_CONFIG, write_model
from server_process import ServerProcess, run_serve, serving

CLASS = "import ctypes, os, signal, sys, time\n\nclass TritonPythonModel:\n"


def hook(name: str, body: str) -> str:
    """A model that does that in one of its methods."""
    arguments = {"__init__": "self", "initialize": "self, args"}[name]
    return f"{CLASS}    def {name}({arguments}):\n        {body}\n\n    def execute(self, requests):\n        return []\n"


class Broken(NamedTuple):
    """A model that does not load, and what is said of it."""

    name: str
    code: str
    reason: str
    config: str = ECHO_CONFIG


KILL = "os.kill(os.getpid(), signal.SIGKILL)"

BROKEN = [
    Broken("parse_error", ECHO, "parse_error/config.pbtxt:2:9: 'input { { }': Expected identifier or number, got {.", "input { { }"),
    Broken("unknown_field", ECHO, 'config.pbtxt:2:1: Message type "inference.ModelConfig" has no field named "nonsense".', "nonsense: 1"),
    Broken("wrong_name", ECHO, "the model's directory is named 'wrong_name', but its configuration says name: 'other'", 'name: "other"'),
    Broken("bad{name", ECHO, "contains invalid characters"),
    Broken(
        "no_such_file", ECHO, "Failed to preinitialize Python stub: Python model file not found in '", 'default_model_filename: "other.py"'
    ),
    Broken("not_python", ECHO, "Model name must end with '.py'. Model name is \"model.txt\".", 'default_model_filename: "model.txt"'),
    Broken("syntax_error", "def (:\n", "SyntaxError: invalid syntax"),
    Broken("no_class", "x = 1\n", "the class TritonPythonModel is missing in '"),
    Broken("raise_in_import", "raise KeyError('gone')\n", "KeyError: 'gone'"),
    Broken("missing_module", "import no_such_module_anywhere\n", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    Broken("sys_exit_in_import", "import sys\nsys.exit(4)\n", "the model called sys.exit(4) while it was loaded"),
    Broken("os_exit_in_import", "import os\nos._exit(5)\n", "it ended with exit code 5 while loading the model"),
    Broken("killed_in_import", f"import os, signal\n{KILL}\n", "it ended with SIGKILL while loading the model"),
    Broken("raise_in_constructor", hook("__init__", "raise ValueError('odd')"), "ValueError: odd"),
    Broken("sys_exit_in_constructor", hook("__init__", "sys.exit()"), "the model called sys.exit("),
    Broken("os_exit_in_constructor", hook("__init__", "os._exit(0)"), "it ended with exit code 0 while loading the model"),
    Broken("killed_in_constructor", hook("__init__", KILL), "it ended with SIGKILL while loading the model"),
    Broken("constructor_with_arguments", f"{CLASS}    def __init__(self, args): pass\n", "TypeError: "),
    Broken("raise_in_initialize", hook("initialize", "raise OSError(2, 'weights')"), "FileNotFoundError: [Errno 2] weights"),
    Broken("sys_exit_in_initialize", hook("initialize", "sys.exit('no')"), "the model called sys.exit("),
    Broken("os_exit_in_initialize", hook("initialize", "os._exit(7)"), "it ended with exit code 7 while loading the model"),
    Broken("killed_in_initialize", hook("initialize", KILL), "it ended with SIGKILL while loading the model"),
    Broken("segfault_in_initialize", hook("initialize", "ctypes.string_at(0)"), "it ended with SIGSEGV while loading the model"),
    Broken("abort_in_initialize", hook("initialize", "os.abort()"), "it ended with SIGABRT while loading the model"),
    Broken("last_words", hook("initialize", "print('out of luck', file=sys.stderr, flush=True); os._exit(1)"), "out of luck"),
]

ROWS = [pytest.param(broken, id=broken.name) for broken in BROKEN]
DATA = {"inputs": [tensor("INPUT0", "FP32", [2], [1.0, 2.0])]}


@pytest.fixture(scope="module", params=[[], ["--disable-auto-complete-config"]], ids=["completed", "as it is"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves one good model, and the others as far as that is possible. Models that cannot be imported fail where that is tried first."""
    root = tmp_path_factory.mktemp("broken")
    repository = root / "models"
    write_model(repository, "good")
    for broken in BROKEN:
        write_model(repository, broken.name, broken.code, broken.config)
    with serving(root, repository, "--exit-on-error=false", *request.param, tracebacks=True) as server:
        yield server


@pytest.mark.parametrize("broken", ROWS)
def test_the_reason_is_in_the_log_and_the_state_in_the_table(server: ServerProcess, broken: Broken) -> None:
    (told,) = [entry for entry in server.log.split("\nE") if f"failed to load '{broken.name}': " in entry]
    assert broken.reason in told
    (row,) = [line for line in server.out.splitlines() if line.split()[:1] == [broken.name]]
    assert row.endswith("UNAVAILABLE")


@pytest.mark.parametrize("broken", ROWS)
def test_requests_are_told_at_once(server: ServerProcess, broken: Broken) -> None:
    with server.wire() as wire:
        answer = wire.ask(infer(broken.name.replace("{", "%7B"), DATA))
        assert (answer.status, answer.error) == (404, f"Request for unknown model: '{broken.name}' has no available versions")
        assert wire.ask(request("GET", f"/v2/models/{broken.name}/ready".replace("{", "%7B"))).status == 400
        assert wire.ask(infer("good", DATA)).status == 200


def test_a_version_that_did_not_load(server: ServerProcess) -> None:
    with server.wire() as wire:
        answer = wire.ask(infer("raise_in_initialize/versions/1", DATA))
        assert (answer.status, answer.error) == (404, "Request for unknown model: 'raise_in_initialize' version 1 is not at ready state")


def test_such_a_server_is_live_but_not_ready(server: ServerProcess) -> None:
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2/health/live")).status == 200
        assert wire.ask(request("GET", "/v2/health/ready")).status == 400


def test_without_strict_readiness_it_is_ready(repository: Path, serve: Any) -> None:
    write_model(repository, "broken", "x = 1\n")
    server = serve("--exit-on-error=false", "--strict-readiness=false")
    with server.wire() as wire:
        assert wire.ask(request("GET", "/v2/health/ready")).status == 200
        assert wire.ask(request("GET", "/v2/models/broken/ready")).status == 400
    server.stop()


@pytest.mark.parametrize("name", ["unknown_field", "no_class", "raise_in_initialize", "os_exit_in_import", "segfault_in_initialize"])
def test_by_default_the_server_ends_and_says_why_last(repository: Path, name: str) -> None:
    (broken,) = [broken for broken in BROKEN if broken.name == name]
    write_model(repository, "good")
    write_model(repository, broken.name, broken.code, broken.config)
    done = run_serve(str(repository), "--http-port", "0")
    assert done.returncode == 1
    last = done.stderr[done.stderr.rindex("\nerror: ") :]
    assert last.startswith(f"\nerror: failed to load '{name}': ")
    assert broken.reason in last
    assert "HTTP     http://" not in done.stdout


def test_one_instance_of_several_that_fails_fails_the_model(repository: Path, serve: Any) -> None:
    code = f"{CLASS}    def initialize(self, args):\n        if args['model_instance_name'].endswith('_1'): raise ValueError('second')\n"
    write_model(repository, "half", code, ECHO_CONFIG + "instance_group { count: 3 }")
    server = serve("--exit-on-error=false")
    assert server.stubs() == {}
    assert "failed to load 'half': version 1 is at UNAVAILABLE state: ValueError: second" in server.log
    server.stop(tracebacks=True)


@pytest.mark.parametrize("arguments", [(), ("--disable-auto-complete-config",)], ids=["completed", "as it is"])
def test_a_reason_as_long_as_a_book_is_shortened(repository: Path, serve: Any, arguments: Any) -> None:
    where = "raise ValueError('x' * (10 << 20) + ' the end')"
    completes = f"\n    @staticmethod\n    def auto_complete_config(config):\n        {where}\n" if not arguments else ""
    write_model(repository, "long", hook("initialize", where) + completes, ECHO_CONFIG)
    server = serve("--exit-on-error=false", *arguments)
    with server.wire() as wire:
        (row,) = wire.ask(request("POST", "/v2/repository/index")).json()
    assert row["reason"].startswith("ValueError: xxx") and row["reason"].endswith("x the end") and len(row["reason"]) < 40_000
    assert len(server.log) < 200_000
    server.stop(tracebacks=True)
