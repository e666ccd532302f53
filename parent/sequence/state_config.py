"""``state`` of the section ``sequence_batching`` of a configuration (spec 5.4): what it may be, and what a sequence begins with."""

from __future__ import annotations

import os
from typing import Any, Dict, List, NamedTuple, Sequence, Set, Tuple

from ...shm import bytes_codec
from ...shm.dtype import BY_CONFIG_NAME, BYTES, DataType, element_count

_DIRECTORY = "initial_state"


class StateSpec(NamedTuple):
    """A state. ``shape``: leads with -1 when the model batches; -1 is a size that varies. ``first_shape``, ``first_file``: what a sequence
    begins with: the contents of that file, or zeros where there is none."""

    input: str
    output: str
    dtype: DataType
    shape: Tuple[int, ...]
    first_shape: Tuple[int, ...]
    first_file: str


def check_states(config: Any, name: str) -> None:
    """Checks ``state`` of the section ``sequence_batching``.

    Raises:
        ValueError: with Triton's text where it has one.
    """
    outputs = {tensor.name: tensor for tensor in config.output}
    taken: Dict[str, str] = {tensor.name: "an input" for tensor in config.input}
    taken.update({control.name: "a control tensor" for control in config.sequence_batching.control_input})
    written: Set[str] = set()
    for state in config.sequence_batching.state:
        if not state.input_name or not state.output_name:
            raise ValueError(f"sequence batching state must specify 'input_name' and 'output_name' for {name}")
        what = f"sequence batching state '{state.input_name}'"
        if state.input_name in taken:
            raise ValueError(f"{what} has the name of {taken[state.input_name]} for {name}")
        if state.output_name in written:
            raise ValueError(f"sequence batching state output '{state.output_name}' is specified for several states for {name}")
        taken[state.input_name] = "another state"
        written.add(state.output_name)
        if not state.data_type:
            raise ValueError(f"{what} must specify 'data_type' for {name}")
        if not state.dims:
            raise ValueError(f"{what} must specify 'dims' for {name}")
        if any(dim < 1 and dim != -1 for dim in state.dims):
            raise ValueError(f"{what} dimension must be integer >= 1, or -1 to indicate a variable-size dimension for {name}")
        also = outputs.get(state.output_name)
        if also is not None and (also.data_type != state.data_type or list(also.dims) != list(state.dims) or also.HasField("reshape")):
            raise ValueError(f"{what} and the output '{also.name}' must have the same data type and dims, and no reshape, for {name}")
        _check_initial(state)


def _check_initial(state: Any) -> None:
    name = state.input_name
    if len(state.initial_state) > 1:
        raise ValueError(
            f"initial_state field for state input '{name}' must contain exactly one or zero element. Found '{len(state.initial_state)}' elements."
        )
    for initial in state.initial_state:
        if not initial.name:
            raise ValueError(f"Field 'name' must be set when using initial_state for state input '{name}'.")
        if initial.data_type != state.data_type:
            raise ValueError(f"The data type used for 'initial_state' field of state '{name}' does not match the state data type.")
        if len(initial.dims) != len(state.dims):
            raise ValueError(
                f"Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input '{name}'. "
                f"{len(initial.dims)} != {len(state.dims)}"
            )
        for want, got in zip(state.dims, initial.dims):
            if got == -1:
                raise ValueError(f"'initial_state' field for state input name '{name}' contains variable dimensions.")
            if want not in (-1, got) or got < 0:
                raise ValueError(f"'initial_state' dim for input name '{name}' doesn't match 'state' dim description. {got} != {want}")
        kind = initial.WhichOneof("state_data")
        if kind is None:
            raise ValueError(f"initial_state setting expects state'{name}' to have state_data set")
        file = os.path.normpath(initial.data_file)
        if kind == "data_file" and (os.path.isabs(file) or file.split(os.sep)[0] == os.pardir):
            raise ValueError(
                f"'data_file' of the initial state of '{name}' must be below the directory '{_DIRECTORY}' of the model, not '{file}'"
            )


def states_of(config: Any) -> List[StateSpec]:
    """The states of a checked configuration."""
    batch = (1,) if config.max_batch_size > 0 else ()
    specs = []
    for state in config.sequence_batching.state:
        types = state.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
        dims, file = tuple(dim if dim > 0 else 1 for dim in state.dims), ""
        for initial in state.initial_state:
            dims, file = tuple(initial.dims), initial.data_file
        shape = tuple(-1 for _ in batch) + tuple(state.dims)
        specs.append(StateSpec(state.input_name, state.output_name, BY_CONFIG_NAME[types[state.data_type].name], shape, batch + dims, file))
    return specs


def read_initial(states: Sequence[StateSpec], model: str, directory: str) -> List[bytes]:
    """What each state of a model is when a sequence begins.

    Args:
        model: its name.
        directory: its directory.

    Raises:
        OSError: a file cannot be read.
        ValueError: it does not hold what it should.
    """
    contents = []
    for state in states:
        # A string is its length, and as many bytes: zeros are empty strings.
        nbytes = element_count(state.first_shape) * (state.dtype.itemsize or 4)
        if not state.first_file:
            contents.append(bytes(nbytes))
            continue
        path = os.path.join(directory, _DIRECTORY, state.first_file)
        with open(path, "rb") as file:
            data = file.read()
        if state.dtype is BYTES:
            wrong = bytes_codec.mismatch(data, element_count(state.first_shape), state.input, model)
            if wrong:
                raise ValueError(f"the initial state '{path}' is wrong: {wrong}")
        elif len(data) != nbytes:
            raise ValueError(f"the initial state '{path}' has {len(data)} bytes, but shape and data type say {nbytes}")
        contents.append(data)
    return contents
