"""Repositories: which models there are, what runs them, and whether they have changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from stublet.parent import model_config
from stublet.parent.model_config import ConfigError
from stublet.parent.repository import (
    ModelFile,
    ModelFiles,
    RepositoryError,
    find,
    fingerprint,
    model_file,
    names_in,
    read_config,
    scan,
    settle,
)


def directory(root: Path, name: str, *versions: str, config: bool = True, file: str = "") -> ModelFiles:
    for version in ("", *versions):
        (root / name / version).mkdir(parents=True, exist_ok=True)
        if version and file:
            (root / name / version / file).touch()
    if config:
        (root / name / "config.pbtxt").touch()
    return ModelFiles(name, str(root / name), [int(version) for version in versions if version.isdecimal()])


def test_scan(tmp_path: Path) -> None:
    directory(tmp_path, "a", "1", "2", "10", "007", "x", "-1", "1.5", "²", "0")
    directory(tmp_path, "b")
    directory(tmp_path, "c", "1", config=False)
    directory(tmp_path, "d", config=False)
    directory(tmp_path, ".hidden", "1")
    directory(tmp_path, "__pycache__", "1")
    directory(tmp_path, os.fsdecode(b"no \xff text"), "1")
    (tmp_path / "README.md").touch()
    found = scan([str(tmp_path)])
    assert {name: files.versions for name, files in found.models.items()} == {"a": [1, 2, 10], "b": [], "c": [1]}
    assert found.models["a"].path == str(tmp_path / "a") and found.faults == {}
    assert names_in([str(tmp_path), str(tmp_path)]) == ["a", "b", "c", "d"]
    for name in ("a", "b", "c", "d", ".hidden", "__pycache__", "README.md", "nothing", "a\0b"):
        assert find([str(tmp_path)], name) == found.models.get(name)


def test_a_model_in_two_repositories(tmp_path: Path) -> None:
    for root in ("x", "y"):
        directory(tmp_path / root, "m", "1")
        directory(tmp_path / root, f"in-{root}", "1")
    roots = [str(tmp_path / "x"), str(tmp_path / "y")]
    with pytest.raises(RepositoryError, match=r"^model 'm' appears in two or more repositories: '.*/x/m' and '.*/y/m'$") as caught:
        find(roots, "m")
    found = scan(roots)
    assert list(found.models) == ["in-x", "in-y"]
    assert found.faults == {"m": str(caught.value)}


def test_a_repository_that_is_named_twice(tmp_path: Path) -> None:
    files = directory(tmp_path, "m", "1")
    assert scan([str(tmp_path), f"{tmp_path}/"]).models == {"m": files}


@pytest.mark.parametrize("root", ["/no/such/place", "/dev/null"])
def test_a_repository_that_is_none(root: str) -> None:
    with pytest.raises(RepositoryError, match=rf"^the model repository '{root}' is not a directory$"):
        scan([root])


def settled(files: ModelFiles, text: str = "", backends: str = "") -> Any:
    config = model_config.parse(text, "config.pbtxt")
    settle(config, files, backends)
    return config


def test_a_model_without_config_is_recognised_by_its_file(tmp_path: Path) -> None:
    files = directory(tmp_path, "m", "1", "2", config=False, file="model.py")
    config = read_config(files)
    assert settle(config, files) == [2]
    assert (config.name, config.backend, config.default_model_filename) == ("m", "python", "model.py")


def test_a_model_without_config_is_recognised_by_its_name(tmp_path: Path) -> None:
    files = directory(tmp_path, "my.model.python", "1", config=False)
    assert settled(files).backend == "python"


@pytest.mark.parametrize("name", ["m", "m.", "model_python"])
def test_a_model_without_config_that_is_not_recognised(tmp_path: Path, name: str) -> None:
    files = directory(tmp_path, name, "1", config=False, file="model.onnx")
    with pytest.raises(ConfigError) as caught:
        settled(files)
    assert str(caught.value) == (
        f"Invalid model name: Could not determine backend for model '{name}' with no backend in model configuration. Expected model name"
        " of the form 'model.<backend_name>'."
    )


def test_a_model_whose_name_says_another_backend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unable to find backend library for backend 'onnx' of model 'm.onnx'"):
        settled(directory(tmp_path, "m.onnx", "1", config=False))


def test_a_config_without_backend(tmp_path: Path) -> None:
    assert settled(directory(tmp_path, "m", "1", file="model.py"), "max_batch_size: 4").backend == "python"
    assert settled(directory(tmp_path, "n", "1", file="main.py"), 'default_model_filename: "main.py"').backend == "python"


def test_a_model_without_versions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^at least one version must be available under the version policy of model 'm'$"):
        settled(directory(tmp_path, "m"))


def test_a_config_that_is_not_text(tmp_path: Path) -> None:
    files = directory(tmp_path, "m", "1")
    (tmp_path / "m" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.pbtxt: 'utf-8' codec can't decode"):
        read_config(files)


def test_the_file_of_an_ordinary_model(tmp_path: Path) -> None:
    files = directory(tmp_path, "m", "3")
    version = str(tmp_path / "m" / "3")
    assert model_file("", files, 3, settled(files, 'backend: "python"')) == ModelFile(f"{version}/model.py", "", version)
    config = settled(files, 'backend: "python" default_model_filename: "src/main.py"')
    assert model_file("/backends", files, 3, config) == ModelFile(f"{version}/src/main.py", "", version)


def test_the_file_of_a_python_based_backend(tmp_path: Path) -> None:
    backends = tmp_path / "backends"
    (backends / "mine").mkdir(parents=True)
    (backends / "mine" / "model.py").touch()
    files = directory(tmp_path, "m", "3")
    config = settled(files, 'backend: "mine"', str(backends))
    file = model_file(str(backends), files, 3, config)
    assert file.settings() == {
        "path": str(backends / "mine" / "model.py"),
        "backend_dir": str(backends / "mine"),
        "model_dir": str(tmp_path / "m" / "3"),
    }


def test_a_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    directory(tmp_path, "m", "1", file="model.py")
    file = tmp_path / "m" / "1" / "model.py"
    seen = {fingerprint(str(tmp_path / "m"))}

    def expect(new: bool) -> None:
        found = fingerprint(str(tmp_path / "m"))
        assert (found not in seen) == new
        seen.add(found)

    expect(False)
    os.utime(file, ns=(1, 1))
    expect(True)
    file.write_text("x")
    os.utime(file, ns=(1, 1))
    expect(True)
    (tmp_path / "m" / "labels.txt").touch()
    expect(True)
    (tmp_path / "m" / "labels.txt").unlink()
    (tmp_path / "m" / "1" / "__pycache__").mkdir()
    (tmp_path / "m" / "1" / "__pycache__" / "model.pyc").touch()
    expect(False)


def test_a_fingerprint_of_links(tmp_path: Path) -> None:
    directory(tmp_path, "m", "1", file="model.py")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w").touch()
    for name, target in {"up": tmp_path / "m", "weights": tmp_path / "weights", "nowhere": tmp_path / "gone"}.items():
        (tmp_path / "m" / "1" / name).symlink_to(target)
    names = {path for path, _, _ in fingerprint(str(tmp_path / "m"))}
    assert {str(tmp_path / "m" / "1" / "weights" / "w"), str(tmp_path / "m" / "1" / "model.py")} <= names
    assert len(names) < 10


def test_a_fingerprint_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "env.tar.gz").write_text("x")
    ((path, _, nbytes),) = fingerprint(str(tmp_path / "env.tar.gz"))
    assert (path, nbytes) == (str(tmp_path / "env.tar.gz"), 1)
    assert fingerprint(str(tmp_path / "gone")) == frozenset()
