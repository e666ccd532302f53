"""Models in sandboxes: what the kernel says of their processes, and what they can do."""

from __future__ import annotations

import base64
import json
import os
import pwd
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
from http_wire import Answer, infer, request, tensor
from model_repository import obey, write_model
from server_process import ServerProcess, alive, descendants, run_serve, serving, until
from stublet.parent.sandbox.cgroups import CgroupError, Cgroups, Limits

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")

REPORT = """
import resource
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
limits = {name: resource.getrlimit(getattr(resource, 'RLIMIT_' + name.upper())) for name in ('nofile', 'core', 'as')}
result = json.dumps({**limits, 'uid': os.getresuid(), 'gid': os.getresgid(), 'groups': os.getgroups(),
                     'no_new_privs': status['NoNewPrivs'].strip(), 'home': os.environ.get('HOME')})
"""

MODELS: Dict[str, Dict[str, str]] = {
    "plain": {},
    "limited": {"rlimit_nofile": "100", "rlimit_as": "4GiB", "no_new_privs": "yes"},
    "small": {"rlimit_as": "2GiB"},
    "brief": {"rlimit_cpu": "2"},
    **({"somebody": {"run_as_user": "nobody", "rlimit_nproc": "60"}} if os.geteuid() == 0 else {}),
}


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A directory that other users may read, which pytest's own are not."""
    directory = Path(tempfile.mkdtemp(prefix="stublet-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    for name, parameters in MODELS.items():
        obey(root / "models", name, **parameters)
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with serving(
        root, root / "models", *explicit, "--sandbox", "rlimit_core=0", "--sandbox", "rlimit_nofile=500", tracebacks=True
    ) as server:
        yield server


def ask(server: ServerProcess, model: str, code: str) -> Answer:
    with server.wire() as wire:
        return wire.ask(infer(model, {"inputs": [tensor("CODE", "BYTES", [1], [code])]}))


def said(server: ServerProcess, model: str, code: str) -> str:
    answer = ask(server, model, code)
    assert answer.status == 200, answer
    text: str = answer.json()["outputs"][0]["data"][0]
    return text


def report(server: ServerProcess, model: str) -> Any:
    return json.loads(said(server, model, REPORT))


def test_the_servers_own_setting(server: ServerProcess) -> None:
    found = report(server, "plain")
    assert (found["core"], found["nofile"]) == ([0, 0], [500, 500])
    assert found["no_new_privs"] == "0"
    assert found["uid"] == list(os.getresuid())


def test_the_models_own_setting(server: ServerProcess) -> None:
    found = report(server, "limited")
    assert (found["core"], found["nofile"], found["as"]) == ([0, 0], [100, 100], [4 << 30, 4 << 30])
    assert found["no_new_privs"] == "1"


def test_too_much_memory_is_an_error_of_the_request(server: ServerProcess) -> None:
    pid = server.stubs()["small_0_0"]
    answer = ask(server, "small", "np.ones(4 << 30, np.uint8)")
    assert answer.status == 500
    assert "Unable to allocate 4.00 GiB" in answer.error
    assert said(server, "small", "result = str(os.getpid())") == str(pid)


def test_too_much_time_is_a_death_with_its_cause(server: ServerProcess) -> None:
    answer = ask(server, "brief", "while True: pass")
    assert answer.status == 503
    assert "SIGXCPU" in answer.error or "SIGKILL" in answer.error
    assert said(server, "plain", "result = 'untouched'") == "untouched"


@as_root
class TestAnotherUser:
    def test_it_is_one(self, server: ServerProcess) -> None:
        nobody = pwd.getpwnam("nobody")
        found = report(server, "somebody")
        assert (found["uid"], found["gid"]) == ([nobody.pw_uid] * 3, [nobody.pw_gid] * 3)
        assert 0 not in found["groups"]
        assert found["home"] == nobody.pw_dir

    @pytest.mark.parametrize(
        "code, error",
        [
            ("open('/etc/shadow').read()", "Permission denied: '/etc/shadow'"),
            ("os.setuid(0)", "Operation not permitted"),
            ("os.kill(os.getppid(), signal.SIGKILL)", "Operation not permitted"),
            ("import threading\nfor _ in range(100): threading.Thread(target=time.sleep, args=(0.3,)).start()", "can't start new thread"),
        ],
    )
    def test_what_it_cannot_do(self, server: ServerProcess, code: str, error: str) -> None:
        answer = ask(server, "somebody", code)
        assert answer.status == 500 and error in answer.error, answer

    def test_large_tensors(self, server: ServerProcess) -> None:
        """Shared memory comes to it as descriptors, whoever it is."""
        large = "#" * (8 << 20)
        assert len(said(server, "somebody", f"result = 'y' * (8 << 20) {large}")) == 8 << 20

    def test_files_that_came_with_the_request_are_its_own(self, server: ServerProcess) -> None:
        code = "class TritonPythonModel:\n    def execute(self, requests): raise ValueError(__import__('os').getuid())\n"
        parameters = {
            "config": '{"backend": "python", "parameters": {"run_as_user": {"string_value": "nobody"}},'
            ' "input": [{"name": "I", "data_type": "TYPE_FP32", "dims": [1]}], "output": [{"name": "O", "data_type": "TYPE_FP32", "dims": [1]}]}',
            "file:1/model.py": base64.b64encode(code.encode()).decode(),
        }
        with server.wire() as wire:
            answer = wire.ask(request("POST", "/v2/repository/models/made/load", json.dumps({"parameters": parameters}).encode()))
            assert answer.status == 200, answer
            answer = wire.ask(infer("made", {"inputs": [tensor("I", "FP32", [1], [0])]}))
            assert f"ValueError: {pwd.getpwnam('nobody').pw_uid}" in answer.error
            assert wire.ask(request("POST", "/v2/repository/models/made/unload")).status == 200

    def test_a_model_that_it_may_not_read(self, server: ServerProcess, root: Path) -> None:
        directory = obey(root / "models", "secret", run_as_user="nobody")
        (directory / "1" / "model.py").chmod(0o600)
        with server.wire() as wire:
            answer = wire.ask(request("POST", "/v2/repository/models/secret/load"))
        assert answer.status == 400
        assert "PermissionError: [Errno 13] Permission denied: " in answer.error

    @pytest.mark.parametrize("who", ["server", "fork server"])
    def test_it_dies_with_them(self, root: Path, tmp_path: Path, who: str) -> None:
        """The kernel forgets whose death ends a process when its user changes."""
        models = root / f"models-{who}"
        obey(models, "somebody", run_as_user="nobody")
        server = ServerProcess(tmp_path, models).start()
        try:
            family, fork_server = descendants(server.pid), server.fork_server()
            os.kill(fork_server, signal.SIGSTOP)
            if who == "server":
                server.signal(signal.SIGKILL)
            else:
                os.kill(fork_server, signal.SIGKILL)
            until(lambda: not any(map(alive, family)), 1)
        finally:
            server.cleanup()

    def test_auto_complete_runs_as_it_too(self, server: ServerProcess, root: Path) -> None:
        code = """
import os
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        raise ValueError('user', os.getuid())
"""
        write_model(root / "models", "completes", code, 'parameters { key: "run_as_user" value { string_value: "nobody" } }')
        with server.wire() as wire:
            answer = wire.ask(request("POST", "/v2/repository/models/completes/load"))
        assert f"('user', {pwd.getpwnam('nobody').pw_uid})" in answer.error


def test_limits_of_cgroups_are_refused_or_kept(server: ServerProcess, root: Path) -> None:
    """With a reason when the system does not let the server set them."""
    obey(root / "models", "grouped", cgroup_memory_max="256MiB")
    with server.wire() as wire:
        answer = wire.ask(request("POST", "/v2/repository/models/grouped/load"))
    try:
        cgroups = Cgroups()
        cgroups.remove(cgroups.make(Limits(1 << 20)))
        cgroups.close()
    except CgroupError:
        assert answer.status == 400
        assert "the limits of cgroups that model 'grouped' asks for cannot be set: " in answer.error
        return
    assert answer.status == 200, answer
    group = said(server, "grouped", "result = open('/proc/self/cgroup').read()")
    assert "/stublet-" in group
    answer = ask(server, "grouped", "bytearray(512 << 20)")
    assert answer.status == 503 and "memory" in answer.error


@pytest.mark.parametrize(
    "setting, text",
    [
        ("rlimit_files=5", "--sandbox: 'rlimit_files=5' is not <parameter>=<value>; the parameters are"),
        ("rlimit_core=x", "--sandbox: parameter 'rlimit_core' must be a number of bytes"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, setting: str, text: str) -> None:
    ended = run_serve(str(tmp_path), "--sandbox", setting)
    assert ended.returncode == 2
    assert text in " ".join(ended.stderr.split())


def test_a_parameter_that_cannot_be(repository: Path, serve: Callable[..., ServerProcess]) -> None:
    obey(repository, rlimit_nofile="many")
    ended = run_serve(str(repository), "--http-port", "0")
    assert ended.returncode == 1
    assert "parameter 'rlimit_nofile' of model 'obey' must be a number, not 'many'" in ended.stderr
