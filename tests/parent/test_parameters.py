"""The parameters of a request: what they may be in JSON, and what a message says of them."""

from __future__ import annotations

import json
import math
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.errors import InvalidArgument
from stublet.parent.http.json_document import put_parameter
from stublet.parent.parameters import EXPECTS, MAX_UNSIGNED, RequestParameters


def parsed(document: Dict[str, Any]) -> RequestParameters:
    parameters = RequestParameters()
    for key in document:
        put_parameter(parameters, document, key)
    return parameters


def test_nothing_to_say_is_no_extras() -> None:
    assert RequestParameters().extras() == ()
    assert parsed({"sequence_id": 0, "sequence_start": False, "priority": 3, "timeout": 0}).extras() == ()


@pytest.mark.parametrize(
    "document, extras",
    [
        ({"sequence_id": 7}, ("", None, "{}", 7, 0, 0)),
        ({"sequence_id": "seven"}, ("", None, "{}", "seven", 0, 0)),
        ({"sequence_id": MAX_UNSIGNED}, ("", None, "{}", MAX_UNSIGNED, 0, 0)),
        ({"sequence_start": True}, ("", None, "{}", 0, 1, 0)),
        ({"sequence_end": True}, ("", None, "{}", 0, 2, 0)),
        ({"sequence_start": True, "sequence_end": True}, ("", None, "{}", 0, 3, 0)),
        ({"timeout": 5}, ("", None, "{}", 0, 0, 5)),
        ({"a": 1, "b": True, "c": "x", "d": 0.5}, ("", None, '{"a":1,"b":true,"c":"x","d":0.5}', 0, 0, 0)),
        ({"a": 2**63}, ("", None, '{"a":9.223372036854775808e18}', 0, 0, 0)),
    ],
)
def test_extras(document: Dict[str, Any], extras: Any) -> None:
    said = parsed(document).extras()
    assert json.loads(said[2]) == json.loads(extras[2])
    assert said[:2] + said[3:] == extras[:2] + extras[3:]


def test_extras_for_a_request_id_and_outputs() -> None:
    assert RequestParameters().extras("id") == ("id", None, "{}", 0, 0, 0)
    assert RequestParameters().extras(output_indices=(1,)) == ("", (1,), "{}", 0, 0, 0)


def test_numbers_that_json_does_not_have() -> None:
    said = json.loads(parsed({"a": math.inf, "b": math.nan, "c": 1}).extras()[2])
    assert said["a"] == math.inf and math.isnan(said["b"]) and said["c"] == 1


def test_the_last_one_of_a_name_counts() -> None:
    parameters = RequestParameters()
    parameters.put("timeout", 1)
    parameters.put("timeout", 2)
    assert parameters.timeout == 2


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.just({}))


@given(st.dictionaries(st.sampled_from([*EXPECTS, "own", "triton_x", "é"]), values))
def test_anything_is_parameters_or_an_error(document: Dict[str, Any]) -> None:
    try:
        parameters = parsed(document)
    except InvalidArgument:
        return
    assert type(parameters.sequence_start) is type(parameters.sequence_end) is bool
    assert all(type(value) is int and 0 <= value <= MAX_UNSIGNED for value in (parameters.priority, parameters.timeout))
    extras = parameters.extras()
    assert json.loads(extras[2] if extras else "{}").keys() == parameters.custom.keys()
