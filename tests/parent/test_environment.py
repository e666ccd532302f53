"""From ``EXECUTION_ENV_PATH`` to an interpreter and its variables. uv is a script here: what it is asked for is what is tested."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List

import pytest
from leaks import eventually
from stublet.parent import model_config
from stublet.parent.environments import source
from stublet.parent.environments.environment import Environment, prepare
from stublet.parent.model_config import ConfigError

PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


def config(value: str) -> Any:
    made = model_config.parse("", "config.pbtxt")
    made.name = "m"
    made.parameters["EXECUTION_ENV_PATH"].string_value = value
    return made


def program(path: Path, text: str) -> Path:
    """A program of this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def environment(path: Path) -> Path:
    """The least that counts as an environment."""
    program(path / "bin" / "python", PYTHON)
    return path


def packed(path: Path, directory: Path, top: str = ".") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(directory, top)
    return path


def complaint(value: object, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(config(str(value)), "/models/m", **arguments)
    prefix, text = str(caught.value).split("': '", 1)
    assert prefix == "EXECUTION_ENV_PATH of model 'm"
    return text


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where environments are made."""
    monkeypatch.setenv("STUBLET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "environments"


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO")
    return caplog


# Directories


def test_none() -> None:
    for it in (model_config.parse("", "config.pbtxt"), config("")):
        assert prepare(it, "/models/m") == Environment(None, {})


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")
    path = environment(tmp_path / "env")
    prepared = prepare(config(str(path)), "/models/m")
    assert prepared.interpreter == f"{path}/bin/python"
    assert prepared.variables == {
        "VIRTUAL_ENV": str(path),
        "PATH": f"{path}/bin:/bin:/usr/bin",
        "LD_LIBRARY_PATH": f"{path}/lib:/theirs",
        "STUBLET_LIBRARIES": f"{path}/lib",
        "PYTHONHOME": None,
    }
    (path / "conda-meta").mkdir()
    monkeypatch.delenv("PATH")
    monkeypatch.delenv("LD_LIBRARY_PATH")
    prepared = prepare(config(str(path)), "/models/m")
    assert prepared.variables == {
        "VIRTUAL_ENV": str(path),
        "CONDA_PREFIX": str(path),
        "PATH": f"{path}/bin",
        "LD_LIBRARY_PATH": f"{path}/lib",
        "STUBLET_LIBRARIES": f"{path}/lib",
        "PYTHONHOME": None,
    }
    assert not cache.exists()


def test_a_directory_in_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(tmp_path / "m" / "env")
    assert prepare(config("$$TRITON_MODEL_DIRECTORY/env"), str(tmp_path / "m")).interpreter == f"{tmp_path}/m/env/bin/python"
    monkeypatch.chdir(tmp_path)
    assert prepare(config("./$$TRITON_MODEL_DIRECTORY/env"), "m").interpreter == f"{tmp_path}/m/env/bin/python"
    (tmp_path / "m" / "env" / "bin" / "python").rename(tmp_path / "m" / "env" / "bin" / "python3")
    assert prepare(config("m/env"), "/").interpreter == f"{tmp_path}/m/env/bin/python3"


def test_no_environment(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none") == f"{tmp_path}/none' does not exist"
    assert complaint("/dev/null") == "/dev/null' is neither a file nor a directory"
    why = f"holds no environment: '{tmp_path}/env/bin/python' is not an executable interpreter"
    (tmp_path / "env" / "bin").mkdir(parents=True)
    assert complaint(tmp_path / "env") == f"{tmp_path}/env' {why}"
    (tmp_path / "env" / "bin" / "python").write_text(PYTHON)
    assert complaint(tmp_path / "env").endswith(why)
    (tmp_path / "env" / "bin" / "python").unlink()
    (tmp_path / "env" / "bin" / "python").symlink_to("/no/such/python")
    assert complaint(tmp_path / "env").endswith(why)


# Packed environments


def test_a_packed_environment(tmp_path: Path, cache: Path, log: pytest.LogCaptureFixture) -> None:
    archive = packed(tmp_path / "env.tar.gz", environment(tmp_path / "env"))
    first = prepare(config(str(archive)), "/models/m")
    (key,) = os.listdir(cache)
    assert first.interpreter == f"{cache}/{key}/env/bin/python"
    assert first.variables["VIRTUAL_ENV"] == f"{cache}/{key}/env"
    assert (cache / key / "complete").read_text() == f"{archive}\n"
    # The same content by another name is the same environment.
    shutil.copy(archive, tmp_path / "copy.tgz")
    assert prepare(config(str(tmp_path / "copy.tgz")), "/models/m") == first
    assert log.messages[0] == f"Extracting Python execution env {archive}"
    assert log.messages[1].startswith(f"Python execution env {archive} is ready after ")
    assert len(log.messages) == 2
    (tmp_path / "env" / "more").touch()
    second = prepare(config(str(packed(archive, tmp_path / "env"))), "/models/m")
    assert second.interpreter not in (None, first.interpreter)
    assert len(os.listdir(cache)) == 2


@pytest.mark.parametrize("top", [".", "", "env", "some/env"])
def test_where_it_begins_in_the_archive(tmp_path: Path, top: str) -> None:
    archive = packed(tmp_path / "env.tar.gz", environment(tmp_path / "env"), top)
    if top == "some/env":
        assert complaint(archive) == f"{archive}' holds no environment: there is no executable interpreter bin/python in it"
    else:
        prepared = prepare(config(str(archive)), "/models/m")
        assert prepared.interpreter == f"{prepared.variables['VIRTUAL_ENV']}/bin/python"
        assert os.access(prepared.interpreter, os.X_OK)


def test_its_paths_are_fixed(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    fix = "import pathlib, sys\npathlib.Path(sys.argv[0]).with_name('fixed').touch()\n"
    program(environment(tmp_path / "env") / "bin" / "conda-unpack", fix)
    root = prepare(config(str(packed(tmp_path / "env.tar.gz", tmp_path / "env"))), "/models/m").variables["VIRTUAL_ENV"]
    assert os.path.exists(f"{root}/bin/fixed")
    assert not [record for record in log.records if record.levelname == "WARNING"]
    program(tmp_path / "env" / "bin" / "conda-unpack", "import sys; sys.exit('no prefix here')")
    archive = packed(tmp_path / "env.tar.gz", tmp_path / "env")
    assert prepare(config(str(archive)), "/models/m").interpreter
    (warning,) = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    assert warning.startswith(f"The paths in Python execution env {archive} may be wrong: '")
    assert warning.endswith("/bin/conda-unpack' ended with exit code 1; it said last:\nno prefix here")


def test_an_archive_that_is_refused(tmp_path: Path, cache: Path) -> None:
    with tarfile.open(tmp_path / "slip.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    why = "cannot be unpacked: its entry '../outside' is refused: Path contains '..'"
    assert complaint(tmp_path / "slip.tar.gz") == f"{tmp_path}/slip.tar.gz' {why}"
    (tmp_path / "text").write_text("no archive")
    assert complaint(tmp_path / "text").endswith("cannot be unpacked: it is no tar archive, compressed or not")
    assert os.listdir(cache) == []


def test_an_archive_that_changes_meanwhile(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(tmp_path / "env.tar.gz", environment(tmp_path / "env"))
    stamps = iter([1, 2])
    monkeypatch.setattr(source, "identity", lambda path: next(stamps))
    assert "changed while it was read" in complaint(archive)
    assert os.listdir(cache) == []


def test_an_archive_that_cannot_be_read(tmp_path: Path) -> None:
    archive = packed(tmp_path / "env.tar.gz", environment(tmp_path / "env"))
    (tmp_path / "cache").write_text("in the way")
    assert f"cannot be made ready in '{tmp_path}/cache/environments' (STUBLET_CACHE names another directory): [Errno" in complaint(archive)


def test_one_that_was_spoilt_is_made_again(tmp_path: Path) -> None:
    archive = packed(tmp_path / "env.tar.gz", environment(tmp_path / "env"))
    python = prepare(config(str(archive)), "/models/m").interpreter
    assert python
    os.unlink(python)
    assert prepare(config(str(archive)), "/models/m").interpreter == python
    assert os.access(python, os.X_OK)


# Requirements

UV = f"""#!/bin/sh
# Stands for uv. Tells $ASKED what it is asked for, and makes an environment of one program.
echo "$(pwd): $*" >> "$ASKED"
echo "+ installed $*" >&2
for last; do true; done
if [ "$1" = venv ]; then
    mkdir -p "$last/bin"
    printf '%s\\n' '#!/bin/sh' 'exec {sys.executable} "$@"' > "$last/bin/python"
    chmod +x "$last/bin/python"
elif [ -n "$FAIL" ]; then
    eval "$FAIL"
fi
"""


class Uv:
    """What it was asked for, and how it is to fail."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asked = directory / "asked"
        self._monkeypatch = monkeypatch
        program(directory / "uv-bin" / "uv", UV)
        monkeypatch.setenv("ASKED", str(self._asked))
        monkeypatch.setenv("PATH", f"{directory}/uv-bin:/usr/bin:/bin")

    @property
    def asked(self) -> List[str]:
        return self._asked.read_text().splitlines() if self._asked.exists() else []

    def fails(self, how: str) -> None:
        self._monkeypatch.setenv("FAIL", how)


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    return Uv(tmp_path, monkeypatch)


def requirements(path: Path, text: str = "numpy\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_requirements(tmp_path: Path, cache: Path, uv: Uv, log: pytest.LogCaptureFixture) -> None:
    file = requirements(tmp_path / "m" / "requirements.txt")
    prepared = prepare(config("$$TRITON_MODEL_DIRECTORY/requirements.txt"), str(tmp_path / "m"))
    root = f"{cache}/{os.listdir(cache)[0]}/env"
    assert prepared.interpreter == f"{root}/bin/python"
    assert uv.asked == [
        f"{tmp_path}/m: venv --no-project --python {sys.executable} {root}",
        f"{tmp_path}/m: pip install --python {root}/bin/python -r {file}",
    ]
    assert log.messages[0] == f"Building Python execution env {file} with {tmp_path}/uv-bin/uv"
    assert log.messages[1] == f"+ installed venv --no-project --python {sys.executable} {root}"
    assert log.messages[-1].startswith(f"Python execution env {file} is ready after ")
    assert prepare(config(str(requirements(tmp_path / "other" / "same.txt"))), "/models/m") == prepared
    assert len(uv.asked) == 2


def test_numpy_is_added_where_nothing_brings_it(tmp_path: Path, uv: Uv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_HAS_NUMPY", "raise SystemExit(1)")
    prepare(config(str(requirements(tmp_path / "requirements.txt", "requests\n"))), "/models/m")
    assert len(uv.asked) == 3
    assert uv.asked[2].endswith("/bin/python numpy")


def test_an_installation_that_fails(tmp_path: Path, cache: Path, uv: Uv) -> None:
    uv.fails("for i in $(seq 30); do echo line $i; done; echo nothing of that name; exit 7")
    file = requirements(tmp_path / "requirements.txt", "nothing-of-that-name")
    told = complaint(file)
    assert told.startswith(f"{file}' cannot be installed: '{tmp_path}/uv-bin/uv pip install --python {cache}")
    assert told.endswith(
        "ended with exit code 7; it said last:\n" + "\n".join(f"line {i}" for i in range(17, 31)) + "\nnothing of that name"
    )
    uv.fails("kill -9 $$")
    assert complaint(file).split("\n")[0].endswith("was ended by SIGKILL; it said last:")
    assert os.listdir(cache) == []


def test_no_room(tmp_path: Path, cache: Path, uv: Uv) -> None:
    uv.fails("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    file = requirements(tmp_path / "requirements.txt")
    assert complaint(file) == (
        f"{file}' finds no room on the disk of '{cache}': free some, or set STUBLET_CACHE to a directory on another disk"
    )
    assert os.listdir(cache) == []


def test_the_end_of_the_server_ends_it(tmp_path: Path, cache: Path, uv: Uv) -> None:
    uv.fails("sleep 600 & sleep 600")
    ending = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        why = pool.submit(complaint, requirements(tmp_path / "requirements.txt"), ending=ending)
        eventually(lambda: len(uv.asked) == 2)
        ending.set()
        assert why.result(10).endswith("was given up: the server is ending")
    assert os.listdir(cache) == []


@pytest.mark.parametrize(
    "text, file, before, after",
    [
        ("numpy", "requirements.txt", "numpy", "numpy>=2"),
        ("-r more.txt", "more.txt", "numpy", "numpy>=2"),
        ("-c more.txt\nnumpy", "more.txt", "numpy", "numpy>=2"),
        ("--requirement=more.txt", "more.txt", "-r third.txt", "-r other.txt"),
        ("own @ file:own.whl", "own.whl", "1", "2"),
        ("./own.whl[extra] ; python_version > '3'", "own.whl", "1", "2"),
    ],
)
def test_what_makes_it_another(tmp_path: Path, cache: Path, uv: Uv, text: str, file: str, before: str, after: str) -> None:
    path = requirements(tmp_path / "requirements.txt", text)
    for content in (before, after):
        (tmp_path / file).write_text(content)
        prepare(config(str(path)), "/models/m")
    assert len(os.listdir(cache)) == 2


def test_what_does_not_make_it_another(tmp_path: Path, cache: Path, uv: Uv) -> None:
    for name in ("one", "two"):
        path = requirements(tmp_path / name / "requirements.txt", "numpy [extra] # more.txt\n")
        (tmp_path / name / "more.txt").write_text(name)
        prepare(config(str(path)), "/models/m")
    assert len(os.listdir(cache)) == 1


def test_directories_and_circles_of_requirements(tmp_path: Path, cache: Path, uv: Uv) -> None:
    # The same words name other packages in another place.
    for name in ("one", "two"):
        (tmp_path / name / "own").mkdir(parents=True)
        prepare(config(str(requirements(tmp_path / name / "r.txt", "-e ./own\n-r r.txt\n-r https://nowhere/r.txt\n"))), "/models/m")
    assert len(os.listdir(cache)) == 2


# Projects

PROJECT = """
[project]
name = "mine"
dependencies = ["numpy", "requests >= 2; python_version > '3'"]
"""


def test_a_project(tmp_path: Path, uv: Uv) -> None:
    prepare(config(str(requirements(tmp_path / "pyproject.toml", PROJECT))), "/models/m")
    assert uv.asked[1].endswith("/bin/python numpy requests >= 2; python_version > '3'")
    prepare(config(str(requirements(tmp_path / "pyproject.toml", "[project]\nname = 'mine'\n"))), "/models/m")
    assert len(uv.asked) == 3


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[project", "is no TOML: "),
        ("[tool.poetry]", "has no section [project]; name a requirements.txt instead"),
        ("[project]\ndynamic = ['dependencies']", "leaves its dependencies to its build (dynamic); name a requirements.txt instead"),
        ("[project]\ndependencies = 'numpy'", "has 'dependencies' that are not a list of requirements"),
        ("[project]\ndependencies = ['--index-url=elsewhere']", "has 'dependencies' that are not a list of requirements"),
    ],
)
def test_what_is_no_project(tmp_path: Path, cache: Path, text: str, reason: str) -> None:
    path = requirements(tmp_path / "pyproject.toml", text)
    assert complaint(path).startswith(f"{path}' {reason}")
    assert not cache.exists()
