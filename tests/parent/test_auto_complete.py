"""What a model is offered of its configuration, and what is taken over of what it returns."""

from __future__ import annotations

import json
import sys
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent import model_config
from stublet.parent.auto_complete import adopt, offered
from stublet.parent.model_config import ConfigError

INPUT = {"name": "A", "data_type": "TYPE_FP32", "dims": [4]}
OUTPUT = {"name": "B", "data_type": "TYPE_STRING", "dims": [-1, 2]}


def configured(text: str = "") -> Any:
    config = model_config.parse(f'backend: "python" {text}', "config.pbtxt")
    model_config.complete(config, "m")
    return config


def test_what_is_offered_of_nothing() -> None:
    config = offered(configured())
    assert (config["name"], config["input"], config["output"], config["max_batch_size"]) == ("m", [], [], 0)
    assert "dynamic_batching" not in config and "model_transaction_policy" not in config
    assert json.loads(json.dumps(config)) == config


def test_what_is_offered_of_a_tensor() -> None:
    (offer,) = offered(configured('input { name: "A" dims: [4] }'))["input"]
    assert (offer["name"], offer["data_type"], offer["dims"], offer["optional"]) == ("A", "TYPE_INVALID", [4], False)


def test_what_is_returned_unchanged_changes_nothing() -> None:
    config = configured(
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [2] } model_transaction_policy { decoupled: true }"
        'input { name: "A" data_type: TYPE_FP32 dims: [4] optional: true } output { name: "B" data_type: TYPE_STRING dims: [-1] }'
    )
    before = config.SerializeToString(deterministic=True)
    assert adopt(config, offered(config), "m") == config
    assert adopt(config, json.dumps(offered(config)), "m") == config
    assert adopt(config, {}, "m") == config
    assert config.SerializeToString(deterministic=True) == before


def test_what_is_taken_over() -> None:
    config = configured()
    returned = {
        **offered(config),
        "max_batch_size": 4,
        "input": [INPUT],
        "output": [OUTPUT],
        "dynamic_batching": {},
        "model_transaction_policy": {"decoupled": True},
    }
    completed = adopt(config, returned, "m")
    assert completed.max_batch_size == 4
    assert [(t.name, list(t.dims)) for t in (*completed.input, *completed.output)] == [("A", [4]), ("B", [-1, 2])]
    assert completed.HasField("dynamic_batching")
    assert completed.model_transaction_policy.decoupled
    assert not config.input


def test_what_is_not_taken_over() -> None:
    config = configured("instance_group { count: 2 }")
    returned = {
        **offered(config), "name": "other", "backend": "other", "default_model_filename": "/etc/passwd", "instance_group": [{"count": 99}],
        "version_policy": {"all": {}}, "parameters": {"k": {"string_value": "v"}}, "nonsense": object(),
    }  # fmt: skip
    assert adopt(config, returned, "m") == config


def test_another_scheduler_stays() -> None:
    config = configured("sequence_batching { }")
    completed = adopt(config, {"dynamic_batching": {}}, "m")
    assert completed.WhichOneof("scheduling_choice") == "sequence_batching"


def test_a_list_is_taken_over_as_a_whole() -> None:
    config = configured('input { name: "A" data_type: TYPE_FP32 dims: [4] }')
    assert [tensor.name for tensor in adopt(config, {"input": [{**INPUT, "name": "C"}]}, "m").input] == ["C"]
    assert not adopt(config, {"input": []}, "m").input


@pytest.mark.parametrize(
    "returned, complaint",
    [
        ("", "what is not JSON"),
        ("{", "what is not JSON"),
        ("[" * 100_000, "what is not JSON"),
        ("[]", "list, not a configuration"),
        ("null", "NoneType, not a configuration"),
        ("5", "int, not a configuration"),
        ({"max_batch_size": "4"}, "max_batch_size"),
        ({"max_batch_size": 4.0}, "max_batch_size"),
        ({"max_batch_size": True}, "max_batch_size"),
        ({"max_batch_size": None}, "max_batch_size"),
        ({"max_batch_size": 1 << 31}, "max_batch_size"),
        ({"max_batch_size": -sys.maxsize}, "max_batch_size"),
        ({"input": {}}, "what is not a configuration"),
        ({"input": "A"}, "what is not a configuration"),
        ({"input": [5]}, "what is not a configuration"),
        ({"input": [None]}, "what is not a configuration"),
        ({"input": [[INPUT]]}, "what is not a configuration"),
        ({"input": [{**INPUT, "nonsense": 1}]}, "what is not a configuration"),
        ({"input": [{**INPUT, "dims": ["many"]}]}, "what is not a configuration"),
        ({"input": [{**INPUT, "dims": [1 << 64]}]}, "what is not a configuration"),
        ({"input": [{**INPUT, "dims": 4}]}, "what is not a configuration"),
        ({"input": [{**INPUT, "data_type": "TYPE_NONE"}]}, "what is not a configuration"),
        ({"input": [{**INPUT, "name": ["A"]}]}, "what is not a configuration"),
        ({"input": [{**INPUT, "name": "\ud800"}]}, "what is not a configuration"),
        ({"dynamic_batching": True}, "what is not a configuration"),
        ({"model_transaction_policy": {"decoupled": "perhaps"}}, "what is not a configuration"),
    ],
)
def test_what_is_no_configuration(returned: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        adopt(configured(), returned, "m")
    assert "auto_complete_config of model 'm' " in str(caught.value)


KEYS = st.sampled_from(
    [
        "input",
        "output",
        "max_batch_size",
        "dynamic_batching",
        "model_transaction_policy",
        "name",
        "dims",
        "data_type",
        "decoupled",
        "reshape",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["TYPE_FP32", "A"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=15,
)


@given(returned=st.dictionaries(KEYS, VALUES) | VALUES)
def test_anything_is_a_configuration_or_a_config_error(returned: Any) -> None:
    config = configured()
    for form in (returned, json.dumps(returned)):
        try:
            completed: Any = adopt(config, form, "m")
            as_dict: Dict[str, Any] = model_config.as_dict(completed)
            json.dumps(as_dict)
            model_config.complete(completed, "m")
            model_config.check(completed, "m")
        except ConfigError as error:
            assert str(error)
