"""Models whose configuration and files come with the request to load them: spec 1.12."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Dict

import pytest
from controlled import CONFIG, Controlled, constant, controlled
from server_process import until
from stublet.parent import InvalidArgument


def test_a_configuration_in_the_place_of_the_file(models: Controlled) -> None:
    models.write("m", 1)
    config = {
        "backend": "python", "max_batch_size": 4, "instance_group": [{"count": 2}],
        "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [1]}], "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    }  # fmt: skip
    models.load("m", json.dumps(config))
    model = models.core.find("m")
    assert (model.max_batch_size, len(model.instances), model.inputs[0].shape) == (4, 2, (-1, 1))
    models.load("m")
    model = models.core.find("m")
    assert (model.max_batch_size, len(model.instances)) == (0, 1)


@pytest.mark.parametrize(
    "config, text",
    [
        ("{", "the configuration is not JSON: "),
        ('{"nonsense": 1}', "the configuration does not hold: "),
        ('{"name": "other", "backend": "python"}', "the model's directory is named 'm', but its configuration says name: 'other'"),
        ('{"backend": "onnx"}', "unable to find backend library for backend 'onnx' of model 'm': "),
        ('{"backend": "python", "default_model_filename": "../../n/1/model.py"}', "'default_model_filename' of model 'm' must be below"),
    ],
)
def test_a_configuration_that_cannot_be(models: Controlled, config: str, text: str) -> None:
    models.write("m", 1)
    models.write("n", 1)
    with pytest.raises(InvalidArgument) as caught:
        models.load("m", config)
    assert str(caught.value).startswith(f"failed to load 'm', {text}")


@pytest.mark.parametrize("key", ["file:1/model.py", "file:/1/model.py"])
def test_a_model_made_of_files(models: Controlled, temporary: Path, key: str) -> None:
    models.load("m", CONFIG, {key: constant(5).encode(), "file:1/data/weights.bin": b"\0" * 1000})
    assert models.value("m") == 5
    (directory,) = temporary.glob("*/*")
    assert Path(models.core.find("m").directory) == directory / "m"
    models.unload("m")
    assert not directory.exists()


def test_files_in_the_place_of_those_of_the_repository(models: Controlled, temporary: Path) -> None:
    models.write("m", 1)
    models.load("m")
    models.load("m", CONFIG, {"file:7/model.py": constant(5).encode()})
    assert models.value("m") == 5
    assert list(models.core.models["m"]) == [7]
    models.load("m", CONFIG, {"file:8/model.py": constant(6).encode()})
    assert models.value("m") == 6
    until(lambda: len(list(temporary.glob("*/*"))) == 1)
    models.load("m")
    assert models.value("m") == 1
    until(lambda: not list(temporary.glob("*/*")))


def test_files_that_do_not_load(models: Controlled, temporary: Path) -> None:
    models.write("m", 1)
    models.load("m")
    for files in ({"file:1/model.py": b"x = "}, {"file:1/model.py": constant(5, "raise ValueError()").encode()}, {"file:labels.txt": b""}):
        with pytest.raises(InvalidArgument):
            models.load("m", CONFIG, files)
        with pytest.raises(InvalidArgument):
            models.load("other", CONFIG, files)
        until(lambda: not list(temporary.glob("*/*")))
    assert models.value("m") == 1


@pytest.mark.parametrize(
    "config, files, text",
    [
        ("", {"file:1/model.py": b""}, "failed to load 'm', failed to poll from model repository: files are given without a configuration"),
        (CONFIG, {"file:../../x": b""}, "failed to load 'm', the path of 'file:../../x' must lead to a file in the model's directory"),
        (CONFIG, {"1/model.py": b""}, "failed to load 'm', a file is named 'file:<version>/<path>', not '1/model.py'"),
    ],
)
def test_files_that_cannot_be(models: Controlled, temporary: Path, config: str, files: Dict[str, bytes], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        models.load("m", config, files)
    assert str(caught.value) == text
    assert os.listdir(temporary) == []


def test_the_end_of_the_server_removes_the_files(repository: Path, temporary: Path) -> None:
    with controlled(repository) as models:
        models.load("m", CONFIG, {"file:1/model.py": constant(5).encode()})
        assert list(temporary.glob("*/*"))
    assert os.listdir(temporary) == []
