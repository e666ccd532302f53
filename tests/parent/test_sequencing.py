"""``sequence_batching`` of a configuration: what is refused, and in which words; what the scheduler and the model are told of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple, Union

import numpy as np
import pytest
from stublet.parent import model_config
from stublet.parent.errors import InvalidArgument
from stublet.parent.model_config import ConfigError
from stublet.parent.sequence.config import controls_of, strategy_of
from stublet.parent.sequence.controls import Controls
from stublet.parent.sequence.state_config import read_initial, states_of
from stublet.parent.sequence.strategies import Direct, Oldest
from stublet.shm import bytes_codec

BASE = """
backend: "python"
max_batch_size: 4
input { name: "IN" data_type: TYPE_INT32 dims: [1] }
output { name: "OUT" data_type: TYPE_INT32 dims: [1] }
"""
START = "kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1]"
STATE = 'input_name: "SI" output_name: "SO" data_type: TYPE_INT32 dims: [2]'
OTHER = STATE.replace("SI", "TI").replace("SO", "TO")
INITIAL = 'name: "zeros" data_type: TYPE_INT32 dims: [2] zero_data: true'


def checked(section: str, base: str = BASE) -> Any:
    config = model_config.parse(f"{base} sequence_batching {{ {section} }}", "config.pbtxt")
    model_config.complete(config, "m")
    model_config.check(config, "m")
    return config


def control(controls: str, name: str = "A") -> str:
    return f'control_input {{ name: "{name}" {controls} }}'


EITHER = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"


@pytest.mark.parametrize(
    "section, text",
    [
        (control(f"control {{ {START} }}") + control(f"control {{ {START} }}", "B"), "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m"),
        (
            control("control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }") * 2,
            "sequence batching specifies multiple CONTROL_SEQUENCE_CORRID tensors for m",
        ),
        (
            control(f"control {{ {START} }}") + control("control { kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }"),
            "sequence batching control tensor 'A' is specified for multiple control kinds for m",
        ),
        (
            control(f"control [ {{ {START} }}, {{ kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] }} ]"),
            "sequence batching control tensor 'A' is specified for multiple control kinds for m",
        ),
        (control("control { kind: CONTROL_SEQUENCE_READY }"), f"sequence batching must specify either {EITHER} for CONTROL_SEQUENCE_READY for m"),
        (
            control("control { kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] fp32_false_true: [0, 1] }"),
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and 'bool_false_true' for "
            "CONTROL_SEQUENCE_READY for m",
        ),
        (
            control("control { kind: CONTROL_SEQUENCE_END fp32_false_true: [0] }"),
            "sequence batching control 'fp32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_END for m",
        ),
        (
            control("control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 }"),
            "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. Allowed data types are TYPE_UINT64, TYPE_INT64, TYPE_UINT32, "
            "TYPE_INT32 and TYPE_STRING",
        ),
        (
            control("control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 int32_false_true: [0, 1] }"),
            f"sequence batching must not specify either {EITHER} for CONTROL_SEQUENCE_CORRID for m",
        ),
        (control(f"control {{ {START} }}", ""), "sequence batching control tensor must have a name for m"),
        (control(f"control {{ {START} }}", "IN"), "sequence batching control tensor 'IN' is an input of its own for m"),
        ("oldest { preferred_batch_size: [0] }", "sequence batching preferred batch size must be positive for m"),
        ("oldest { preferred_batch_size: [8] }", "sequence batching preferred batch size must be <= max batch size for m"),
        ("oldest { max_candidate_sequences: -1 }", "sequence batching max candidate sequences must be non-negative for m"),
        ("direct { minimum_slot_utilization: 1.5 }", "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m"),
        ("direct { minimum_slot_utilization: -0.5 }", "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_section(section: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(section)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "state, text",
    [
        ('output_name: "SO" data_type: TYPE_INT32 dims: [1]', "state must specify 'input_name' and 'output_name' for m"),
        ('input_name: "SI" data_type: TYPE_INT32 dims: [1]', "state must specify 'input_name' and 'output_name' for m"),
        ('input_name: "SI" output_name: "SO" dims: [1]', "state 'SI' must specify 'data_type' for m"),
        ('input_name: "SI" output_name: "SO" data_type: TYPE_INT32', "state 'SI' must specify 'dims' for m"),
        ('input_name: "SI" output_name: "SO" data_type: TYPE_INT32 dims: [0]', "state 'SI' dimension must be integer >= 1, or -1"),
        ('input_name: "IN" output_name: "SO" data_type: TYPE_INT32 dims: [1]', "state 'IN' has the name of an input for m"),
        ('input_name: "SI" output_name: "OUT" data_type: TYPE_FP32 dims: [1]', "state 'SI' and the output 'OUT' must have the same data type"),
        ('input_name: "SI" output_name: "OUT" data_type: TYPE_INT32 dims: [2]', "state 'SI' and the output 'OUT' must have the same data type"),
        (f"{STATE} initial_state {{ {INITIAL} }} initial_state {{ {INITIAL} }}", "must contain exactly one or zero element. Found '2' elements."),
        (
            STATE + ' initial_state { data_type: TYPE_INT32 dims: [2] zero_data: true }',
            "Field 'name' must be set when using initial_state for state input 'SI'.",
        ),
        (
            STATE + ' initial_state { name: "i" data_type: TYPE_FP32 dims: [2] zero_data: true }',
            "The data type used for 'initial_state' field of state 'SI' does not match the state data type.",
        ),
        (
            STATE + ' initial_state { name: "i" data_type: TYPE_INT32 zero_data: true }',
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input 'SI'. 0 != 1",
        ),
        (
            STATE + ' initial_state { name: "i" data_type: TYPE_INT32 dims: [-1] zero_data: true }',
            "'initial_state' field for state input name 'SI' contains variable dimensions.",
        ),
        (
            STATE + ' initial_state { name: "i" data_type: TYPE_INT32 dims: [3] zero_data: true }',
            "'initial_state' dim for input name 'SI' doesn't match 'state' dim description. 3 != 2",
        ),
        (STATE + ' initial_state { name: "i" data_type: TYPE_INT32 dims: [2] }', "initial_state setting expects state'SI' to have state_data set"),
        (STATE + ' initial_state { name: "i" data_type: TYPE_INT32 dims: [2] data_file: "../x" }', "must be below the directory 'initial_state'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_state(state: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(f"state {{ {state} }}")
    assert text in str(caught.value)


def test_states_that_are_in_each_others_way() -> None:
    with pytest.raises(ConfigError, match="state 'SI' has the name of another state for m"):
        checked(f"state {{ {STATE} }} state {{ {STATE.replace('SO', 'SO2')} }}")
    with pytest.raises(ConfigError, match="state output 'SO' is specified for several states for m"):
        checked(f"state {{ {STATE} }} state {{ {STATE.replace('SI', 'SI2')} }}")
    with pytest.raises(ConfigError, match="state 'SI' has the name of a control tensor for m"):
        checked(control(f"control {{ {START} }}", "SI") + f"state {{ {STATE} }}")


@pytest.mark.parametrize(
    "section, strategy",
    [
        ("", Direct(4)),
        ("direct { max_queue_delay_microseconds: 7 minimum_slot_utilization: 0.5 }", Direct(4, 7000, 0.5)),
        ("oldest { }", Oldest(4, 4, (4,))),
        (
            "oldest { max_candidate_sequences: 9 preferred_batch_size: [2] max_queue_delay_microseconds: 5 preserve_ordering: true }",
            Oldest(9, 4, (2,), 5000),
        ),
    ],
)
def test_the_strategy(section: str, strategy: Any) -> None:
    assert strategy_of(checked(section)) == strategy


def test_a_model_that_does_not_batch_has_one_place() -> None:
    assert strategy_of(checked("", BASE.replace("max_batch_size: 4", ""))) == Direct(1)


ALL = (
    control(f"control {{ {START.replace('0, 1', '5, 7')} }}", "START")
    + control("control { kind: CONTROL_SEQUENCE_END fp32_false_true: [-1, 0.5] }", "END")
    + control("control { kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] }", "READY")
    + control("control { kind: CONTROL_SEQUENCE_CORRID data_type: %s }", "CORRID")
)


def values(data_type: str, sequence: Union[int, str], flags: int = 0, ready: bool = True) -> Tuple[bytes, ...]:
    return tuple(Controls(controls_of(checked(ALL % data_type)), "m").values(sequence, flags, ready))


def test_what_controls_say() -> None:
    for flags, start, end in ((0, 5, -1.0), (1, 7, -1.0), (2, 5, 0.5), (3, 7, 0.5)):
        expected = (np.int32(start).tobytes(), np.float32(end).tobytes(), b"\1", np.uint64(9).tobytes())
        assert values("TYPE_UINT64", 9, flags) == expected
    assert values("TYPE_UINT64", 0, ready=False)[2] == b"\0"


@pytest.mark.parametrize(
    "data_type, sequence, value",
    [
        ("TYPE_UINT64", 2**64 - 1, np.uint64(2**64 - 1)),
        ("TYPE_INT64", 2**64 - 5, np.int64(-5)),
        ("TYPE_UINT32", 2**32 - 1, np.uint32(2**32 - 1)),
        ("TYPE_INT32", 2**31 - 1, np.int32(2**31 - 1)),
        ("TYPE_INT32", 2**64 - 2**31, np.int32(-(2**31))),
    ],
)
def test_ids_that_are_numbers(data_type: str, sequence: int, value: np.generic) -> None:
    assert values(data_type, sequence)[3] == value.tobytes()


@pytest.mark.parametrize("sequence, text", [("abc", "abc"), ("ö" * 128, "ö" * 128), (7, "7"), (2**64 - 1, str(2**64 - 1))])
def test_ids_that_are_strings(sequence: Union[int, str], text: str) -> None:
    assert values("TYPE_STRING", sequence)[3] == bytes_codec.encode([text.encode()])


@pytest.mark.parametrize(
    "data_type, sequence", [("TYPE_UINT64", "abc"), ("TYPE_INT32", 2**31), ("TYPE_UINT32", 2**32), ("TYPE_UINT64", "5")]
)
def test_ids_that_do_not_fit(data_type: str, sequence: Union[int, str]) -> None:
    with pytest.raises(InvalidArgument, match=f"the correlation ID of a request to model 'm' must be a number that its control input 'CORRID' of type {data_type}"):  # fmt: skip
        values(data_type, sequence)


def test_what_sequences_begin_with(tmp_path: Path) -> None:
    (tmp_path / "initial_state").mkdir()
    file = tmp_path / "initial_state" / "two"
    file.write_bytes(np.array([3, 4], np.int32).tobytes())
    from_file = INITIAL.replace("zero_data: true", 'data_file: "two"')
    section = f"state {{ {STATE} }} state {{ {OTHER} initial_state {{ {from_file} }} }}"
    section += 'state { input_name: "UI" output_name: "UO" data_type: TYPE_STRING dims: [-1, 2] }'
    states = states_of(checked(section))
    assert [(state.shape, state.first_shape) for state in states] == [((-1, 2), (1, 2)), ((-1, 2), (1, 2)), ((-1, -1, 2), (1, 1, 2))]
    assert read_initial(states, "m", str(tmp_path)) == [bytes(8), file.read_bytes(), bytes(8)]
    file.write_bytes(b"123")
    with pytest.raises(ValueError, match="has 3 bytes, but shape and data type say 8"):
        read_initial(states, "m", str(tmp_path))
    file.unlink()
    with pytest.raises(FileNotFoundError):
        read_initial(states, "m", str(tmp_path))
