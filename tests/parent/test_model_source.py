"""Models that come with the request to load them: nothing of it is trusted."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stublet.parent import model_source
from stublet.parent.errors import InvalidArgument, NotFound
from stublet.parent.model_config import ConfigError
from stublet.parent.model_source import Source, check_name, identity, in_repository, in_request, remove
from stublet.parent.repository import ModelFiles

pytestmark = pytest.mark.usefixtures("temporary")


@pytest.mark.parametrize("name", ["m", "a-b_c.d", "é", "..m", "a{b"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("", "Model name cannot be empty. Please enter a valid name to deploy."),
        *[
            (name, "model name must not contain path traversal characters")
            for name in ("..", ".", "../m", "a/b", "/m", "a\\b", "a\0", "\ud800")
        ],
        (None, "the name of a model must be text, not NoneType"),
        (b"m", "the name of a model must be text, not bytes"),
    ],
)
def test_names_that_cannot_be(name: Any, complaint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_name(name)
    assert str(caught.value) == complaint


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        in_repository([str(tmp_path)], "m")
    assert str(caught.value) == "failed to load 'm', failed to poll from model repository"


def test_a_model_in_two_repositories(tmp_path: Path) -> None:
    for root in ("x", "y"):
        (tmp_path / root / "m" / "1").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match=r"^failed to load 'm', model 'm' appears in two or more repositories: "):
        in_repository([str(tmp_path / "x"), str(tmp_path / "y")], "m")


def test_a_configuration_that_replaces_the_files(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 1")
    assert in_repository([str(tmp_path)], "m").config().max_batch_size == 1
    assert in_repository([str(tmp_path)], "m", '{"max_batch_size": 2}').config().max_batch_size == 2
    with pytest.raises(ConfigError):
        in_repository([str(tmp_path)], "m", '{"nonsense": 2}').config()


def make(files: Dict[Any, Any], config: str = "{}") -> Source:
    return asyncio.run(in_request("m", config, files, tempfile.gettempdir))


@pytest.mark.parametrize("key", ["file:1/model.py", "file:/1/model.py"])
def test_files_of_a_request(temporary: Path, key: str) -> None:
    source = make({key: b"x = 1", "file:12/sub/data.bin": b"\0" * 100_000, "file:labels.txt": b"", "file:x/..y": b""})
    assert (source.files.name, source.files.versions) == ("m", [1, 12])
    path = Path(source.files.path)
    assert path.parent.parent == temporary and path.name == "m"
    assert (path / "1" / "model.py").read_bytes() == b"x = 1"
    assert (path / "12" / "sub" / "data.bin").stat().st_size == 100_000
    assert source.config() == model_source.model_config.messages.ModelConfig()
    assert path.parent.stat().st_mode & 0o77 == 0
    remove(source.temporary)
    assert os.listdir(temporary) == []


def test_files_without_a_configuration(temporary: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^failed to load 'm', failed to poll from model repository: files are given without"):
        make({"file:1/model.py": b""}, "")
    assert os.listdir(temporary) == []


@pytest.mark.parametrize(
    "key",
    ["1/model.py", "", "file", "file:", "file:/", "file:1/", "file:..", "file:../x", "file:1/../../x", "file:1/./x", "file:1//x",
     "file:1/\0", "file:\ud800", "FILE:1/x", 5, None, b"file:1/x"],
)  # fmt: skip
def test_paths_that_cannot_be(temporary: Path, key: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^failed to load 'm', "):
        make({"file:1/model.py": b"", key: b""})
    assert os.listdir(temporary) == []


@pytest.mark.parametrize(
    "keys, complaint",
    [
        (["file:1/a", "file:1/a/b"], "Not a directory|File exists"),
        (["file:1/a/b", "file:1/a"], "File exists|Is a directory"),
        (["file:1/a", "file:/1/a"], "File exists"),
        (["file:1/" + "a" * 300], "File name too long"),
    ],
)
def test_files_that_cannot_be_written(temporary: Path, keys: List[str], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^failed to load 'm', its files cannot be written: ({complaint})$"):
        make(dict.fromkeys(keys, b""))
    assert os.listdir(temporary) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(key=st.text(alphabet="1a./\\:\0 ~-", max_size=12).map(lambda text: f"file:{text}"))
def test_no_path_leads_elsewhere(temporary: Path, key: str) -> None:
    try:
        source = make({key: b"x"})
    except InvalidArgument:
        assert os.listdir(temporary) == []
        return
    written = [path for path in temporary.rglob("*") if path.is_file()]
    assert len(written) == 1
    assert Path(source.files.path) in written[0].resolve().parents
    remove(source.temporary)


def test_the_identity_of_a_source(tmp_path: Path) -> None:
    for file in ("models/m/1/model.py", "backends/b/model.py", "env.tar.gz"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    source = in_repository([str(tmp_path / "models")], "m")
    config = model_source.model_config.messages.ModelConfig(backend="b")
    config.parameters["EXECUTION_ENV_PATH"].string_value = "$$TRITON_MODEL_DIRECTORY/../../env.tar.gz"

    def now(of: Source = source) -> Any:
        return identity(of, config, str(tmp_path / "backends"))

    seen = [now()]
    assert now() == seen[0]
    for file in ("models/m/1/model.py", "backends/b/model.py", "env.tar.gz"):
        os.utime(tmp_path / file, ns=(1, 1))
        assert now() not in seen
        seen.append(now())
    assert now(source._replace(config_json="{}")) not in seen
    assert now(Source(ModelFiles("m", str(tmp_path / "models" / "m"), [1]), "{}", str(tmp_path))) is None
