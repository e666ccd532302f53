"""``batch_input``, ``batch_output`` and ``concatenate_batch`` of a configuration: what they may be (spec 5.2)."""

from __future__ import annotations

from typing import Any

import pytest
from stublet.parent import model_config
from stublet.parent.model_config import ConfigError

TENSORS = (
    'backend: "python" input [{ name: "X" data_type: TYPE_FP32 dims: [-1] }, { name: "Y" data_type: TYPE_FP32 dims: [-1] }] '
    'output [{ name: "A" data_type: TYPE_FP32 dims: [-1] }, { name: "B" data_type: TYPE_FP32 dims: [-1] }] '
)
MADE = 'batch_input {{ kind: {kind} target_name: "INDEX" data_type: {data_type} {source} }}'


def checked(text: str) -> Any:
    config = model_config.parse(TENSORS + text, "config.pbtxt")
    model_config.complete(config, "m")
    model_config.check(config, "m")
    return config


def made(kind: str = "BATCH_ELEMENT_COUNT", source: str = 'source_input: "X"', data_type: str = "TYPE_INT32") -> str:
    return MADE.format(kind=kind, source=source, data_type=data_type)


def scattered(targets: str = 'target_name: "A"', source: str = 'source_input: "X"') -> str:
    return f"batch_output {{ kind: BATCH_SCATTER_WITH_INPUT_SHAPE {targets} {source} }}"


@pytest.mark.parametrize(
    "kind",
    [
        "BATCH_ELEMENT_COUNT",
        "BATCH_ACCUMULATED_ELEMENT_COUNT",
        "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
        "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
        "BATCH_ITEM_SHAPE",
        "BATCH_ITEM_SHAPE_FLATTEN",
    ],
)
def test_every_kind_of_batch_input_has_one_source(kind: str) -> None:
    checked(made(kind))
    for count, source in ((0, ""), (2, 'source_input: ["X", "Y"]')):
        with pytest.raises(ConfigError) as caught:
            checked(made(kind, source))
        assert str(caught.value) == f"batch input kind '{kind}' expects 1 source input, got {count} for m"


@pytest.mark.parametrize(
    "text, complaint",
    [
        (made(source='source_input: "Z"'), "unknown source input name 'Z' for m"),
        (made(data_type="TYPE_STRING"), "batch input data type must be TYPE_INT32 or TYPE_FP32 for m"),
        (made(data_type="TYPE_INVALID"), "unexpected batch input data type 'TYPE_INVALID'"),
        (made() + made(), "batch input target name 'INDEX' can only be specified once, and not for an input, for m"),
        (made().replace("INDEX", "Y"), "batch input target name 'Y' can only be specified once, and not for an input, for m"),
        (scattered(source=""), "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 0 for m"),
        (
            scattered(source='source_input: ["X", "Y"]'),
            "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 2 for m",
        ),
        (scattered(source='source_input: "A"'), "unknown source input name 'A' for m"),
        (scattered('target_name: ["A", "A"]'), "target output name 'A' can only be specified once for m"),
        (scattered() + scattered('target_name: ["B", "A"]'), "target output name 'A' can only be specified once for m"),
        (scattered('target_name: "X"'), "unknown target output name 'X' for m"),
    ],
)
def test_what_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(text)
    assert str(caught.value) == complaint


def test_both_sections_of_the_documentation() -> None:
    config = checked(made() + scattered('target_name: ["A", "B"]'))
    told = model_config.as_dict(config)
    assert told["batch_input"] == [
        {"kind": "BATCH_ELEMENT_COUNT", "target_name": ["INDEX"], "data_type": "TYPE_INT32", "source_input": ["X"]}
    ]
    assert told["batch_output"][0]["target_name"] == ["A", "B"]


def with_parameter(value: str, max_batch_size: int = 4) -> Any:
    return checked(f'max_batch_size: {max_batch_size} parameters {{ key: "concatenate_batch" value: {{ string_value: "{value}" }} }}')


def test_concatenate_batch_is_yes_or_no() -> None:
    assert model_config.concatenates(with_parameter("yes"))
    assert not model_config.concatenates(with_parameter("no"))
    assert not model_config.concatenates(checked("max_batch_size: 4"))
    assert not model_config.concatenates(with_parameter("yes", max_batch_size=0)), "there is no batch dimension"
    with pytest.raises(ConfigError) as caught:
        model_config.concatenates(with_parameter("true"))
    assert str(caught.value) == "parameter 'concatenate_batch' of model 'm' must be \"yes\" or \"no\", not 'true'"
