"""``config.pbtxt``: what is read, what is filled in, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent import model_config
from stublet.parent.model_config import ConfigError
from stublet.parent.repository import ModelFiles, RepositoryError, load_config, scan

TENSORS = 'input { name: "A" data_type: TYPE_FP32 dims: [4] } output { name: "B" data_type: TYPE_STRING dims: [-1, 2] }'


def configured(text: str, name: str = "m") -> Any:
    config = model_config.parse(text, "config.pbtxt")
    model_config.complete(config, name)
    model_config.check(config, name)
    return config


@pytest.mark.parametrize(
    "text, where, what",
    [
        ("max_batch_size: 4\nnonsense", "config.pbtxt:2:1", 'Message type "inference.ModelConfig" has no field named "nonsense".'),
        ("max_batch_size: many", "config.pbtxt:1:17", "Couldn't parse integer: many"),
        ("input [", "config.pbtxt:", "Expected"),
        ('name: "a', "config.pbtxt:1:7", "String missing ending quote"),
        ("max_batch_size: 99999999999999", "config.pbtxt:1:17", "Value out of range"),
        ("input { nam: 3 }", "config.pbtxt:1:9", 'Message type "inference.ModelInput" has no field named "nam".'),
        ("name: 'a' name: 'b'", "config.pbtxt:1:17", 'should not have multiple "name" fields.'),
        ("dynamic_batching { } sequence_batching { }", "config.pbtxt:1:22", 'is specified along with field "dynamic_batching"'),
    ],
)
def test_what_does_not_parse_is_told_with_its_place(text: str, where: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config.parse(text, "config.pbtxt")
    assert str(caught.value).startswith(where)
    assert what in str(caught.value)


@given(text=st.text(max_size=100) | st.text(alphabet='inputame:[]{}"4 \n#', max_size=60))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        config = configured(text)
    except ConfigError as error:
        assert str(error)
    else:
        json.dumps(model_config.as_dict(config))


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('name: "other"', "the model's directory is named 'm', but its configuration says name: 'other'"),
        ('backend: "onnxruntime"', "unable to find backend 'onnxruntime' of model 'm': stublet serves backend: \"python\""),
        ('platform: "ensemble"', "'m' is an ensemble, which this version of stublet does not serve"),
        ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
        ("sequence_batching { }", "'sequence_batching' of model 'm' is not supported by this version of stublet"),
        ("input { data_type: TYPE_FP32 dims: [1] }", "model input must specify 'name' for m"),
        ('input { name: "A" dims: [1] }', "model input 'A' must specify 'data_type' for m"),
        ('output { name: "A" data_type: TYPE_FP32 }', "model output 'A' must specify 'dims' for m"),
        (
            'input { name: "A" data_type: TYPE_FP32 dims: [0] }',
            "model input 'A' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for m",
        ),
        (
            'output { name: "A" data_type: TYPE_FP32 dims: [4, -2] }',
            "model output 'A' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for m",
        ),
        (
            'input [{ name: "A" data_type: TYPE_FP32 dims: [1] }, { name: "A" data_type: TYPE_FP32 dims: [1] }]',
            "model input 'A' is specified more than once for m",
        ),
        (
            "instance_group { kind: KIND_CPU gpus: [0] }",
            "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPU",
        ),
    ],
)
def test_what_does_not_hold_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(text)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("name", list(";|&$`<>()[]{}\\\"'*?~#!"))
def test_names_with_forbidden_characters(name: str) -> None:
    with pytest.raises(ConfigError, match="contains invalid characters"):
        configured("", f"a{name}b")


def test_what_is_filled_in() -> None:
    config = model_config.as_dict(configured(f"max_batch_size: 8 dynamic_batching {{ }} {TENSORS}"))
    assert config["name"] == "m"
    assert config["backend"] == "python"
    assert config["default_model_filename"] == "model.py"
    assert config["dynamic_batching"]["preferred_batch_size"] == [8]
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["optimization"]["input_pinned_memory"] == {"enable": True}
    (group,) = config["instance_group"]
    assert (group["name"], group["count"], group["kind"]) == ("m_0", 1, "KIND_CPU")


def test_the_json_has_numbers_for_numbers_and_names_for_enums() -> None:
    config = json.loads(json.dumps(model_config.as_dict(configured('parameters { key: "k" value { string_value: "v" } }' + TENSORS))))
    assert config["input"][0]["dims"] == [4]
    assert config["output"][0]["dims"] == [-1, 2]
    assert config["output"][0]["data_type"] == "TYPE_STRING"
    assert config["max_batch_size"] == 0
    assert config["parameters"] == {"k": {"string_value": "v"}}
    assert "sequence_batching" not in config


@pytest.mark.parametrize("batch, shapes", [(0, [(4,), (-1, 2)]), (8, [(-1, 4), (-1, -1, 2)])])
def test_shapes_lead_with_the_batch(batch: int, shapes: List[Any]) -> None:
    config = configured(f"max_batch_size: {batch} {TENSORS}")
    specs = [*model_config.tensor_specs(config, config.input), *model_config.tensor_specs(config, config.output)]
    assert [(spec.name, spec.shape) for spec in specs] == [("A", shapes[0]), ("B", shapes[1])]
    assert [spec.dtype.name for spec in specs] == ["FP32", "BYTES"]


@pytest.mark.parametrize(
    "groups, names",
    [
        ("", ["m_0_0"]),
        ("instance_group { count: 3 }", ["m_0_0", "m_0_1", "m_0_2"]),
        ('instance_group { name: "x" count: 2 } instance_group { kind: KIND_CPU }', ["x_0", "x_1", "m_1_0"]),
    ],
)
def test_instance_names(groups: str, names: List[str]) -> None:
    assert [spec.name for spec in model_config.instance_specs(configured(groups))] == names


@pytest.mark.parametrize(
    "policy, chosen",
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [3, 10]),
        ("version_policy { all { } }", [1, 3, 10]),
        ("version_policy { specific { versions: [3, 1] } }", [1, 3]),
    ],
)
def test_version_policies(policy: str, chosen: List[int]) -> None:
    assert model_config.chosen_versions(configured(policy), [1, 10, 3]) == chosen


def test_a_version_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"^model 'm' has no version 7, which its version_policy names$"):
        model_config.chosen_versions(configured("version_policy { specific { versions: [1, 7] } }"), [1])


def environment(value: str) -> Any:
    return configured(f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{value}" }} }}')


def test_no_environment() -> None:
    assert model_config.environment_of(configured(""), "/models/m") is None
    assert model_config.environment_of(environment(""), "/models/m") is None


def test_an_environment_in_the_model_directory(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    assert model_config.environment_of(environment("$$TRITON_MODEL_DIRECTORY/env"), str(tmp_path)) == str(tmp_path / "env")


@pytest.mark.parametrize(
    "value, complaint",
    [
        ("/no/such/place", "'/no/such/place' does not exist"),
        ("/dev/null", "'/dev/null' is not a directory (packed archives are not supported by this version)"),
        ("/dev/shm", "'/dev/shm/bin/python' is not an executable interpreter"),
    ],
)
def test_an_environment_that_is_none(value: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config.environment_of(environment(value), "/models/m")
    assert str(caught.value) == f"EXECUTION_ENV_PATH of model 'm': {complaint}"


# Repositories


def directory(root: Path, name: str, *versions: str, config: bool = True) -> None:
    for version in ("", *versions):
        (root / name / version).mkdir(parents=True, exist_ok=True)
    if config:
        (root / name / "config.pbtxt").touch()


def test_scan(tmp_path: Path) -> None:
    directory(tmp_path, "a", "1", "2", "10", "007", "x", "-1", "1.5", "²", "0")
    directory(tmp_path, "b")
    directory(tmp_path, "c", "1", config=False)
    directory(tmp_path, "d", config=False)
    directory(tmp_path, ".hidden", "1")
    directory(tmp_path, "__pycache__", "1")
    (tmp_path / "README.md").touch()
    found = scan([str(tmp_path)])
    assert {name: files.versions for name, files in found.items()} == {"a": [1, 2, 10], "b": [], "c": [1]}
    assert found["a"].path == str(tmp_path / "a")


def test_a_model_in_two_repositories(tmp_path: Path) -> None:
    for root in ("x", "y"):
        directory(tmp_path / root, "m", "1")
    with pytest.raises(RepositoryError, match=r"^model 'm' appears in two or more repositories: '.*/x/m' and '.*/y/m'$"):
        scan([str(tmp_path / "x"), str(tmp_path / "y")])


@pytest.mark.parametrize("root", ["/no/such/place", "/dev/null"])
def test_a_repository_that_is_none(root: str) -> None:
    with pytest.raises(RepositoryError, match=rf"^the model repository '{root}' is not a directory$"):
        scan([root])


def test_a_model_without_config(tmp_path: Path) -> None:
    directory(tmp_path, "m", "1", config=False)
    with pytest.raises(ConfigError, match=r"^model 'm' has no config.pbtxt in '"):
        load_config(scan([str(tmp_path)])["m"])


def test_a_model_without_versions(tmp_path: Path) -> None:
    directory(tmp_path, "m")
    with pytest.raises(ConfigError, match=r"^at least one version must be available under the version policy of model 'm'$"):
        load_config(scan([str(tmp_path)])["m"])


def test_a_config_that_is_not_text(tmp_path: Path) -> None:
    directory(tmp_path, "m", "1")
    (tmp_path / "m" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.pbtxt: 'utf-8' codec can't decode"):
        load_config(ModelFiles("m", str(tmp_path / "m"), [1]))
