"""Models with an interpreter of their own: EXECUTION_ENV_PATH (spec 2.13)."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Optional

import pytest
from http_wire import infer, request, tensor
from model_repository import copy_model
from server_process import alive, assert_no_names_left, descendants, until

OTHERS = ["3.9", "3.13", "3.12", "3.10"]
SERVERS = "%d.%d" % sys.version_info[:2]


def interpreter(version: str) -> Optional[str]:
    """An interpreter of that version: on PATH, or one of pyenv's."""
    candidates = [shutil.which(f"python{version}"), *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        # pyenv's shims are there for versions that are not.
        said = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.strip() == version:
            return candidate
    return None


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory of environments, shared by the test processes."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "environments"
    directory.mkdir(exist_ok=True)
    return directory


def environment(directory: Path, version: str, *packages: str) -> Path:
    """A virtual environment of that version with these packages; skips where there is none to be had."""
    path = directory / "-".join([version, *packages])
    with (directory / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        why = path / "cannot-be-made"
        if not path.exists():
            path.mkdir()
            problem = _make(path, version, packages)
            if problem:
                why.write_text(problem)
        if why.exists():
            pytest.skip(why.read_text())
    return path


def _make(path: Path, version: str, packages: Any) -> str:
    python = interpreter(version)
    if python is None:
        return f"there is no Python {version} here"
    commands = [[python, "-m", "venv", *([] if packages else ["--without-pip"]), str(path)]]
    if packages:
        commands.append([str(path / "bin" / "python"), "-m", "pip", "install", "-q", *packages])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()[-500:]}"
    return ""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the servers of this test keep environments."""
    monkeypatch.setenv("STUBLET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "environments"


def in_environment(path: Any) -> str:
    return f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{path}" }} }}'


def told(code: str, model: str = "obey") -> bytes:
    return infer(model, {"inputs": [tensor("CODE", "BYTES", [1], [code])]})


TELL = """
import subprocess
result = json.dumps({
    "version": "%d.%d" % sys.version_info[:2], "prefix": sys.prefix, "VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV"),
    "PATH": os.environ["PATH"].split(":")[0], "PYTHONHOME": os.environ.get("PYTHONHOME"), "argv": sys.argv,
    "libraries": os.environ.get("LD_LIBRARY_PATH"), "numpy": np.__file__,
    "server": [name for name in ("uvicorn", "tritonclient", "google.protobuf") if name in sys.modules],
    "which": subprocess.run(["python", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True).stdout.strip(),
    "shaken": float(np.random.random(3).sum()) > 0,
})
"""


@pytest.mark.parametrize("version", OTHERS[:2])
def test_a_model_of_another_python(environments: Path, repository: Path, serve: Any, version: str) -> None:
    path = environment(environments, version, "numpy")
    copy_model(repository, "obey", "other", in_environment(path))
    copy_model(repository, "obey")
    for name in ("add_sub", "identity_bytes", "every_type"):
        copy_model(repository, name, extra=in_environment(path))
    server = serve(PYTHONHOME="")
    with server.wire() as wire:
        told_of: Dict[str, Dict[str, Any]] = {}
        for model in ("other", "obey"):
            answer = wire.ask(told(TELL, model))
            assert answer.status == 200, answer.error
            told_of[model] = json.loads(answer.json()["outputs"][0]["data"][0])
        other = told_of["other"]
        assert other["version"] == version
        assert other["prefix"] == other["VIRTUAL_ENV"] == other["which"] == str(path)
        assert other["PATH"] == f"{path}/bin"
        assert other["PYTHONHOME"] is None
        assert other["libraries"] is None
        assert other["numpy"].startswith(str(path))
        assert other["server"] == []
        assert told_of["obey"]["version"] == SERVERS
        assert told_of["obey"]["VIRTUAL_ENV"] != str(path)
        four = [1.0, 2.0, 3.0, 4.0]
        added = wire.ask(infer("add_sub", {"inputs": [tensor(f"INPUT{i}", "FP32", [4], four) for i in (0, 1)]})).json()
        assert added["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]
        text = wire.ask(infer("identity_bytes", {"inputs": [tensor("INPUT0", "BYTES", [2], ["é", "日本"])]})).json()
        assert text["outputs"][0]["data"] == ["é", "日本"]
        large = "#" * (4 << 20)
        assert wire.ask(told(f"result = 'y' * (4 << 20){large}", "other")).json()["outputs"][0]["data"] == ["y" * (4 << 20)]
        half = {"inputs": [tensor("IN_BF16", "BF16", [4], binary_data_size=8)], "parameters": {"binary_data_output": True}}
        assert wire.ask(infer("every_type", half, b"12345678")).binary == b"12345678"
    server.stop()


@pytest.mark.parametrize("code, how", [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL")])
def test_its_death_is_named(environments: Path, repository: Path, serve: Any, code: str, how: str) -> None:
    copy_model(repository, "obey", extra=in_environment(environment(environments, OTHERS[0], "numpy")))
    server = serve()
    with server.wire() as wire:
        answer = wire.ask(told(code))
        assert answer.status == 503
        assert f"Stub process 'obey_0_0' is not healthy: it ended with {how} while serving" in answer.error
    server.stop()


def test_it_does_not_outlive_the_server(environments: Path, repository: Path, tmp_path: Path, serve: Any) -> None:
    copy_model(repository, "obey", extra=in_environment(environment(environments, OTHERS[0], "numpy")))
    server = serve()
    family = descendants(server.pid)
    with server.wire() as wire:
        wire.send(told(f"open({str(tmp_path / 'begun')!r}, 'w').close(); ctypes.PyDLL(None).sleep(600)"))
        until((tmp_path / "begun").exists)
        server.signal(signal.SIGKILL)
        server.wait()
    until(lambda: not any(map(alive, family)), 2)
    assert_no_names_left()


def test_an_environment_within_the_model(environments: Path, repository: Path, serve: Any) -> None:
    model = copy_model(repository, "obey", extra=in_environment("$$TRITON_MODEL_DIRECTORY/env"))
    (model / "env").symlink_to(environment(environments, OTHERS[0], "numpy"))
    server = serve()
    with server.wire() as wire:
        assert wire.ask(told("result = os.environ['VIRTUAL_ENV']")).json()["outputs"][0]["data"] == [str(model / "env")]
    server.stop()


def test_an_environment_without_numpy(repository: Path, tmp_path: Path, serve: Any) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    copy_model(repository, "obey", "bare", in_environment(tmp_path / "bare"))
    copy_model(repository, "obey")
    server = serve("--exit-on-error=false")
    (told_why,) = [entry for entry in server.log.split("\nE") if "failed to load 'bare': " in entry]
    assert "stublet: the model's environment has no usable numpy, which is the one package it needs: pip install numpy" in told_why
    # What clients may be told names no paths; the log of the process's end does.
    assert str(tmp_path) not in told_why and f"({tmp_path}/bare/bin/python: " in server.log
    with server.wire() as wire:
        assert wire.ask(told("result = 'well'")).status == 200
    server.stop()


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.touch(), "cannot be unpacked: it is no tar archive, compressed or not"),
        (lambda path: path.mkdir(), "is not an executable interpreter"),
        (lambda path: _script(path, "#!/no/such/interpreter\n"), "cannot be started: No such file or directory"),
        (lambda path: _script(path, "not a program"), "cannot be started: Exec format error"),
        (lambda path: _script(path, "#!/bin/sh\necho this is no Python >&2; exit 9\n"), "this is no Python"),
        (lambda path: _script(path, "#!/bin/sh\n").chmod(0o644), "is not an executable interpreter"),
        (lambda path: _slip(path), "its entry '../slipped' is refused: Path contains '..'"),
    ],
    ids=["absent", "a file", "empty", "no interpreter", "no program", "another program", "not executable", "slips out"],
)
def test_an_environment_that_is_none(repository: Path, tmp_path: Path, serve: Any, make: Any, reason: str) -> None:
    make(tmp_path / "odd")
    copy_model(repository, "obey", "odd", in_environment(tmp_path / "odd"))
    server = serve("--exit-on-error=false")
    (told_why,) = [entry for entry in server.log.split("\nE") if "failed to load 'odd': " in entry]
    assert reason in told_why
    server.stop()


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    python = path / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(text)
    python.chmod(0o755)
    return python


def _slip(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../slipped"))


# Packed, and made from requirements


def pack(path: Path, directory: Path, said: str) -> Path:
    """A packed environment that consists of little more than the tests' own interpreter, and says so in $SAYS."""
    directory.mkdir(exist_ok=True)
    (directory / "conda-meta").mkdir(exist_ok=True)
    if not (directory / "bin").exists():
        _script(directory, f'#!/bin/sh\nSAYS="{said} $LD_LIBRARY_PATH" exec {sys.executable} "$@"\n')
    with tarfile.open(path, "w:gz") as tar:
        tar.add(directory, ".")
    return path


TELL_PACKED = """
result = json.dumps({name: os.environ.get(name) for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "SAYS", "LD_LIBRARY_PATH", "STUBLET_LIBRARIES")})
"""


def test_a_packed_environment(repository: Path, tmp_path: Path, serve: Any, cache: Path) -> None:
    archive = pack(tmp_path / "env.tar.gz", tmp_path / "env", "packed")
    for name in ("first", "second"):
        copy_model(repository, "obey", name, in_environment(archive))
    theirs = str(tmp_path / "theirs")
    for times in (1, 0):
        server = serve(LD_LIBRARY_PATH=theirs)
        with server.wire() as wire:
            (first, second) = [json.loads(wire.ask(told(TELL_PACKED, n)).json()["outputs"][0]["data"][0]) for n in ("first", "second")]
        server.stop()
        # One unpacks it, for both, and for the server that comes after.
        assert server.log.count(f"Extracting Python execution env {archive}") == times
        (key,) = os.listdir(cache)
        root = f"{cache}/{key}/env"
        assert first == second
        assert first == {
            "VIRTUAL_ENV": root,
            "CONDA_PREFIX": root,
            "SAYS": f"packed {root}/lib:{theirs}",
            "LD_LIBRARY_PATH": theirs,
            "STUBLET_LIBRARIES": None,
        }


SLOW_UV = """#!/bin/sh
echo "$$" > "$ASKED"
exec sleep 600
"""


def _uv(directory: Path, text: str) -> Path:
    """A uv that is a script, and requirements."""
    uv = directory / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(text)
    uv.chmod(0o755)
    (directory / "requirements.txt").touch()
    return uv


def test_an_installation_does_not_outlive_the_server(repository: Path, tmp_path: Path, serve: Any, cache: Path) -> None:
    uv = _uv(tmp_path, SLOW_UV)
    copy_model(repository, "obey", extra=in_environment(tmp_path / "requirements.txt"))
    server = serve(wait=False, PATH=f"{uv.parent}:{os.environ['PATH']}", ASKED=str(tmp_path / "asked"))
    pid = int(until(lambda: (tmp_path / "asked").exists() and (tmp_path / "asked").read_text()))
    assert alive(pid)
    server.signal(signal.SIGKILL)
    server.wait()
    until(lambda: not alive(pid), 2)
    # What it left is in nobody's way.
    assert len(os.listdir(cache)) == 2
    uv.write_text("#!/bin/sh\necho there is no such package; exit 1\n")
    server = serve("--exit-on-error=false", PATH=f"{uv.parent}:{os.environ['PATH']}")
    assert "ended with exit code 1; it said last:" in server.log
    assert "there is no such package" in server.log
    assert os.listdir(cache) == []
    server.stop()


def test_an_installation_does_not_keep_the_server(repository: Path, tmp_path: Path, serve: Any, cache: Path) -> None:
    uv = _uv(tmp_path, SLOW_UV)
    copy_model(repository, "obey", extra=in_environment(tmp_path / "requirements.txt"))
    server = serve(wait=False, PATH=f"{uv.parent}:{os.environ['PATH']}", ASKED=str(tmp_path / "asked"))
    pid = int(until(lambda: (tmp_path / "asked").exists() and (tmp_path / "asked").read_text()))
    server.signal(signal.SIGTERM)
    server.wait()
    assert not alive(pid)
    assert os.listdir(cache) == []


def test_many_installations_do_not_keep_requests(repository: Path, tmp_path: Path, serve: Any, cache: Path) -> None:
    """More of them than the event loop has threads for what requests need a thread for."""
    uv = _uv(tmp_path, SLOW_UV)
    copy_model(repository, "vector")
    names = [f"obey{number}" for number in range(40)]
    for name in names:
        copy_model(repository, "obey", name, in_environment(tmp_path / "requirements.txt"))
    explicit = ("--model-control-mode=explicit", "--load-model=vector")
    server = serve(*explicit, PATH=f"{uv.parent}:{os.environ['PATH']}", ASKED=str(tmp_path / "asked"))
    with ExitStack() as stack:
        loads = [stack.enter_context(server.wire()) for _ in names]
        for wire, name in zip(loads, names):
            wire.send(request("POST", f"/v2/repository/models/{name}/load"))
        wire = stack.enter_context(server.wire())
        until(lambda: wire.ask(request("POST", "/v2/repository/index")).body.count(b'"LOADING"') == len(names), what="all loads")
        until(lambda: (tmp_path / "asked").exists(), what="the installation")
        assert wire.ask(request("GET", "/v2/stublet/instances")).status == 200
    server.stop()


def test_requirements(repository: Path, cache: Path, serve: Any) -> None:
    model = copy_model(repository, "obey", extra=in_environment("$$TRITON_MODEL_DIRECTORY/requirements.txt"))
    (model / "requirements.txt").write_text("# nothing but numpy, which a stub needs anyhow\n")
    paths = [path for path in os.environ["PATH"].split(":") if not os.path.exists(f"{path}/uv")]
    server = serve(wait=False, PATH=":".join(paths)).start(120)
    with server.wire() as wire:
        other = json.loads(wire.ask(told(TELL)).json()["outputs"][0]["data"][0])
    server.stop()
    assert f"Building Python execution env {model}/requirements.txt with venv and pip" in server.log
    assert "Successfully installed numpy-" in server.log
    assert other["prefix"] == other["VIRTUAL_ENV"] == other["which"]
    assert other["prefix"].startswith(str(cache))
    assert other["numpy"].startswith(other["prefix"])
    assert other["version"] == SERVERS


def test_a_python_that_is_too_old(environments: Path, repository: Path, serve: Any) -> None:
    path = environment(environments, "3.8")
    copy_model(repository, "obey", "old", in_environment(path))
    server = serve("--exit-on-error=false")
    assert "a model's environment needs Python 3.9 or newer" in server.log
    assert "has 3.8" in server.log
    server.stop()
