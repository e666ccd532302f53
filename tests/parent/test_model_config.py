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
from stublet.parent.placement.instance_groups import instance_specs

FIELDS = st.sampled_from(
    ["name", "input", "output", "dims", "data_type", "max_batch_size", "dynamic_batching", "parameters", "instance_group"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["TYPE_FP32", "KIND_CPU"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)

TENSORS = 'input { name: "A" data_type: TYPE_FP32 dims: [4] } output { name: "B" data_type: TYPE_STRING dims: [-1, 2] }'


def configured(text: str, name: str = "m") -> Any:
    config = model_config.parse(text, "config.pbtxt")
    if not config.platform:
        config.backend = config.backend or "python"
    model_config.complete(config, name)
    model_config.check_identity(config, name)
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
        (
            'backend: "onnxruntime"',
            "unable to find backend library for backend 'onnxruntime' of model 'm': stublet serves backend: \"python\", and Python-based"
            " backends in --backend-directory",
        ),
        (
            'platform: "onnxruntime_onnx"',
            "unable to find backend library for backend 'onnxruntime_onnx' of model 'm': stublet serves backend: \"python\", and"
            " Python-based backends in --backend-directory",
        ),
        ('platform: "x" backend: "python"', "unexpected 'platform' and 'backend' pair, got:x, python"),
        (
            'default_model_filename: "../model.py"',
            "'default_model_filename' of model 'm' must be below its version directories, not '../model.py'",
        ),
        (
            'default_model_filename: "x/../../m.py"',
            "'default_model_filename' of model 'm' must be below its version directories, not '../m.py'",
        ),
        (
            'default_model_filename: "/etc/model.py"',
            "'default_model_filename' of model 'm' must be below its version directories, not '/etc/model.py'",
        ),
        ('platform: "ensemble"', "ensemble scheduling must be set for ensemble m whose platform is ensemble"),
        ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
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
            'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "never" } }',
            "Incorrect value for FORCE_CPU_ONLY_INPUT_TENSORS: never'",
        ),
        (
            "instance_group { kind: KIND_CPU gpus: [0] }",
            "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
    ],
)
def test_what_does_not_hold_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(text)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("value", ["yes", "no"])
def test_inputs_on_the_cpu_only_or_not(value: str) -> None:
    configured(f'parameters {{ key: "FORCE_CPU_ONLY_INPUT_TENSORS" value {{ string_value: "{value}" }} }}')


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
    assert [spec.name for spec in instance_specs(configured(groups))] == names


@pytest.mark.parametrize(
    "policy, chosen",
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [3, 10]),
        ("version_policy { all { } }", [1, 3, 10]),
        ("version_policy { latest { num_versions: 7 } }", [1, 3, 10]),
        ("version_policy { specific { versions: [3, 1] } }", [1, 3]),
    ],
)
def test_version_policies(policy: str, chosen: List[int]) -> None:
    assert model_config.chosen_versions(configured(policy), [1, 10, 3]) == chosen


def test_a_version_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    assert model_config.chosen_versions(configured("version_policy { specific { versions: [1, 7] } }"), [1, 3]) == [1]
    assert "version 7 is specified for model 'm', but the version directory is not present" in caplog.text


@pytest.mark.parametrize("policy", ["latest { }", "specific { }", "specific { versions: [7] }"])
def test_a_policy_that_leaves_nothing(policy: str) -> None:
    with pytest.raises(ConfigError, match=r"^at least one version must be available under the version policy of model 'm'$"):
        model_config.chosen_versions(configured(f"version_policy {{ {policy} }}"), [1, 3])


def test_the_json_of_a_configuration_is_read_as_it_is_written() -> None:
    config = configured('max_batch_size: 8 dynamic_batching { } parameters { key: "k" value { string_value: "v" } }' + TENSORS)
    assert model_config.parse_json(json.dumps(model_config.as_dict(config))) == config


def test_the_json_of_a_configuration_may_be_protobufs() -> None:
    config = model_config.parse_json('{"maxBatchSize": "8", "input": [{"name": "A", "dataType": "TYPE_FP32", "dims": ["4"]}]}')
    assert (config.max_batch_size, list(config.input[0].dims)) == (8, [4])


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        pytest.param("[" * 100_000, "is not JSON", id="deep"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("5", "is not a JSON object"),
        ('{"nonsense": 1}', 'does not hold: .* no field named "nonsense"'),
        ('{"input": 5}', "does not hold"),
        ('{"max_batch_size": 99999999999}', "does not hold: Failed to parse max_batch_size"),
    ],
)
def test_json_that_is_no_configuration(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"^the configuration {complaint}"):
        model_config.parse_json(text)


@given(document=JSON)
def test_any_json_is_a_configuration_or_a_config_error(document: Any) -> None:
    try:
        model_config.parse_json(json.dumps(document))
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('input { name: "A" data_type: 99 dims: [1] }', "99 of 'data_type' is no value of DataType"),
        ('input { name: "A" data_type: 99999999999 dims: [1] }', "Value out of range: 99999999999"),
        ("instance_group { kind: -1 }", "-1 of 'kind' is no value of Kind"),
        ("instance_group { count: 2147483647 }", "model m must have at most 4096 instances"),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 4294967295 default_priority_level: 1 }",
            "'priority_levels' must be at most 4096 for m",
        ),
    ],
)
def test_numbers_out_of_all_bounds(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        configured(text)


def test_unknown_values_in_json() -> None:
    with pytest.raises(ConfigError, match="99 of 'data_type' is no value of DataType"):
        model_config.parse_json('{"output": [{"data_type": 99}]}')


@pytest.mark.parametrize("digits", [10, 5000])
def test_a_number_of_many_digits(digits: int) -> None:
    config = configured(f'parameters {{ key: "max_concurrent" value {{ string_value: "{"1" * digits}" }} }}')
    with pytest.raises(ConfigError, match="must be a number from 1 to 4096"):
        model_config.max_concurrent(config)


def test_python_based_backends(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.py").touch()
    (tmp_path / "library").mkdir()
    assert model_config.python_based_backend(str(tmp_path), "mine") == str(tmp_path / "mine")
    for backend in ("library", "other", "", ".", "..", "../mine", "mine/.", "a\0b"):
        assert model_config.python_based_backend(str(tmp_path), backend) == ""
    assert model_config.python_based_backend("", "mine") == ""


@pytest.mark.parametrize("value, path", [("", ""), ("/envs/a", "/envs/a"), ("$$TRITON_MODEL_DIRECTORY/../e.tar.gz", "/models/e.tar.gz")])
def test_where_an_environment_is(value: str, path: str) -> None:
    config = configured(f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{value}" }} }}')
    assert model_config.environment_path(config, "/models/m") == path


def test_no_environment() -> None:
    assert model_config.environment_path(configured(""), "/models/m") == ""
