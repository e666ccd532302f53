"""``pb_utils.ModelConfig``: spec 1.13, row by row."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.stub.model_config import ModelConfig

X = {"name": "X", "data_type": "TYPE_FP32", "dims": [4]}
WHERE = "in auto-complete-config function for model 'M'"
KINDS = ["input", "output"]
PROPERTIES = {"input": "'name', 'data_type', 'dims' and 'optional'", "output": "'name', 'data_type' and 'dims'"}


def config(**more: Any) -> ModelConfig:
    return ModelConfig({"name": "M", "max_batch_size": 0, "input": [], "output": [], **more})


def add(config: ModelConfig, kind: str, entry: Any) -> None:
    getattr(config, f"add_{kind}")(entry)


@contextmanager
def refused(text: str) -> Iterator[None]:
    with pytest.raises(ValueError) as raised:
        yield
    assert str(raised.value) == text


# ---- the dict ----


@pytest.mark.parametrize("form", [json.dumps, lambda parsed: json.dumps(parsed).encode(), dict])
def test_it_is_made_of_text_or_of_a_dict(form: Any) -> None:
    assert ModelConfig(form({"name": "M", "max_batch_size": 4})).as_dict() == {"name": "M", "max_batch_size": 4}


def test_the_dict_is_live() -> None:
    parsed: Dict[str, Any] = {"name": "M"}
    made = ModelConfig(parsed)
    made.set_max_batch_size(4)
    made.as_dict()["parameters"] = {}
    assert made.as_dict() is parsed == {"name": "M", "max_batch_size": 4, "parameters": {}}


@pytest.mark.parametrize("wrong", [None, [], 5, "[]"])
def test_anything_else_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match="must be a JSON object"):
        ModelConfig(wrong)


# ---- the largest batch ----


@pytest.mark.parametrize("before, size", [({}, 0), ({}, 8), ({"max_batch_size": 4}, 4), ({"max_batch_size": 4}, 5), ({}, np.int64(3))])
def test_the_largest_batch_can_be_raised(before: Dict[str, Any], size: Any) -> None:
    made = config(**before)
    made.set_max_batch_size(size)
    assert made.as_dict()["max_batch_size"] == size and type(made.as_dict()["max_batch_size"]) is int


@pytest.mark.parametrize("configured, size", [(4, 2), (4, 0), (0, -1)])
def test_the_largest_batch_cannot_be_lowered(configured: int, size: int) -> None:
    made = config(max_batch_size=configured)
    with refused(f"configuration specified max_batch_size {configured}, but {WHERE} specified max_batch_size {size}"):
        made.set_max_batch_size(size)
    assert made.as_dict()["max_batch_size"] == configured


# ---- dynamic batching ----


@pytest.mark.parametrize("before, after", [({}, {}), ({"dynamic_batching": {"a": 1}}, {"a": 1})])
def test_dynamic_batching_is_added_if_it_is_not_there(before: Dict[str, Any], after: Dict[str, Any]) -> None:
    made = config(**before)
    for _ in range(2):
        made.set_dynamic_batching()
        assert made.as_dict()["dynamic_batching"] == after


@pytest.mark.parametrize("scheduler", ["sequence_batching", "ensemble_scheduling"])
def test_another_scheduler_stays(scheduler: str) -> None:
    made = config(**{scheduler: {}})
    text = (
        f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function for model 'M' tries to set "
        "scheduling_choice as 'dynamic_batching'"
    )
    with refused(text):
        made.set_dynamic_batching()
    assert "dynamic_batching" not in made.as_dict()


# ---- inputs and outputs ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_one_is_appended(kind: str) -> None:
    made = config(**{kind: [X]})
    given = {"name": "Y", "data_type": "TYPE_STRING", "dims": (np.int64(-1), 2)}
    add(made, kind, given)
    assert made.as_dict()[kind] == [X, {"name": "Y", "data_type": "TYPE_STRING", "dims": [-1, 2]}]
    assert given["dims"] == (-1, 2)
    json.dumps(made.as_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_without_the_section_gets_one(kind: str) -> None:
    made = ModelConfig({"name": "M"})
    add(made, kind, X)
    assert made.as_dict()[kind] == [X]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "before",
    [X, {"name": "X"}, {"name": "X", "data_type": "TYPE_INVALID", "dims": []}, {**X, "dims": []}, {"name": "X", "dims": [4], "label_filename": "f"}],
)  # fmt: skip
def test_what_is_missing_is_merged_in_place(kind: str, before: Dict[str, Any]) -> None:
    entry = dict(before)
    made = config(**{kind: [{"name": "W"}, entry]})
    add(made, kind, X)
    assert made.as_dict()[kind] == [{"name": "W"}, {**before, **X}]
    assert made.as_dict()[kind][1] is entry


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change, text",
    [
        (
            {"data_type": "TYPE_INT8"},
            "unable to load model 'M', configuration expects datatype TYPE_FP32 for {} 'X', model provides TYPE_INT8",
        ),
        ({"dims": [5]}, "model 'M', tensor 'X': the model expects dims [5] but the model configuration specifies dims [4]"),
        ({"dims": [4, -1]}, "model 'M', tensor 'X': the model expects dims [4, -1] but the model configuration specifies dims [4]"),
        ({"dims": []}, "model 'M', tensor 'X': the model expects dims [] but the model configuration specifies dims [4]"),
    ],
)
def test_what_differs_is_refused(kind: str, change: Dict[str, Any], text: str) -> None:
    made = config(**{kind: [dict(X)]})
    with refused(text.format(kind)):
        add(made, kind, {**X, **change})
    assert made.as_dict()[kind] == [X]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "given, text",
    [
        ({"name": "X", "reshape": {}}, "{kind} 'X' {where} contains property other than {properties}."),
        ({}, "{kind} {where} is missing 'name' property."),
        ({"data_type": "TYPE_FP32", "dims": [1]}, "{kind} {where} is missing 'name' property."),
        ({"name": "X"}, "{kind} 'X' {where} is missing 'data_type' property."),
        ({"name": "X", "dims": [1]}, "{kind} 'X' {where} is missing 'data_type' property."),
        ({"name": "X", "data_type": "TYPE_FP32"}, "{kind} 'X' {where} is missing 'dims' property."),
    ],
)
def test_malformed_ones_are_refused(kind: str, given: Dict[str, Any], text: str) -> None:
    made = config()
    with refused(text.format(kind=kind, where=WHERE, properties=PROPERTIES[kind])):
        add(made, kind, given)
    assert made.as_dict()[kind] == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_property_without_a_name_is_a_key_error(kind: str) -> None:
    with pytest.raises(KeyError, match="name"):
        add(config(), kind, {"reshape": {}})


@pytest.mark.parametrize("before, given, after", [(None, True, True), (True, True, True), (True, None, True), (False, False, False)])
def test_optional_inputs(before: Any, given: Any, after: bool) -> None:
    made = config(input=[{**X, **({} if before is None else {"optional": before})}])
    made.add_input({**X, **({} if given is None else {"optional": given})})
    assert made.as_dict()["input"] == [{**X, "optional": after}]


def test_optional_cannot_be_changed() -> None:
    made = config(input=[{**X, "optional": True}])
    with refused("model 'M', tensor 'X': the model expects optional False but the model configuration specifies optional True"):
        made.add_input({**X, "optional": False})


def test_an_output_is_never_optional() -> None:
    with refused(f"output 'X' {WHERE} contains property other than 'name', 'data_type' and 'dims'."):
        config().add_output({**X, "optional": True})


# ---- the transaction policy ----


@pytest.mark.parametrize("before", [{}, {"model_transaction_policy": {}}, {"model_transaction_policy": {"decoupled": True}}])
def test_the_policy_can_be_set(before: Dict[str, Any]) -> None:
    made = config(**before)
    for _ in range(2):
        made.set_model_transaction_policy({"decoupled": True})
        assert made.as_dict()["model_transaction_policy"] == {"decoupled": True}


def test_an_empty_policy_sets_nothing() -> None:
    made = config()
    made.set_model_transaction_policy({})
    assert made.as_dict()["model_transaction_policy"] == {}


@pytest.mark.parametrize("configured", [True, False])
def test_the_policy_cannot_be_changed(configured: bool) -> None:
    made = config(model_transaction_policy={"decoupled": configured})
    with refused(f"trying to change decoupled property in auto-complete-config for model 'M', which is already set to '{configured}'."):
        made.set_model_transaction_policy({"decoupled": not configured})
    assert made.as_dict()["model_transaction_policy"] == {"decoupled": configured}


@pytest.mark.parametrize("policy", [{"x": True}, {"decoupled": True, "x": True}])
def test_a_policy_has_no_other_property(policy: Dict[str, Any]) -> None:
    with refused(f"model transaction property {WHERE} contains property other than 'decoupled'."):
        config().set_model_transaction_policy(policy)


# ---- types ----


@pytest.mark.parametrize(
    "method, arguments",
    [
        ("set_max_batch_size", [None]),
        ("set_max_batch_size", ["4"]),
        ("set_max_batch_size", [4.0]),
        ("set_max_batch_size", []),
        *((f"add_{kind}", [given]) for kind in KINDS for given in (None, "X", [X], {**X, "dims": None}, {**X, "dims": [1.5]}, {**X, "dims": "4"})),
        ("set_model_transaction_policy", [None]),
        ("set_model_transaction_policy", [True]),
        ("set_model_transaction_policy", [{"decoupled": 1}]),
        ("set_model_transaction_policy", [{"decoupled": "true"}]),
    ],
)  # fmt: skip
def test_wrong_types_are_type_errors(method: str, arguments: List[Any]) -> None:
    with pytest.raises(TypeError):
        getattr(config(), method)(*arguments)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("XYZ"), st.lists(st.integers(-1, 9), max_size=3))))
def test_names_stay_unique(entries: Any) -> None:
    made = config()
    for kind, name, dims in entries:
        try:
            add(made, kind, {"name": name, "data_type": "TYPE_FP32", "dims": dims})
        except ValueError as error:
            assert f"tensor '{name}'" in str(error)
    for kind in KINDS:
        names = [entry["name"] for entry in made.as_dict()[kind]]
        assert len(names) == len(set(names)) and set(names) == {name for given, name, _ in entries if given == kind}
