"""``model_warmup`` of a configuration (spec 5.5): what it may be, and the data that it describes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ...shm.dtype import BYTES, DataType, element_count

DIRECTORY = "warmup"
"""Of a model's directory: where the files with data are."""

_EMPTY_STRING = bytes(4)
_SEED = 0


def check_warmup(config: Any, name: str) -> None:
    """Checks the section, apart from what only a request can show.

    Raises:
        ValueError: with Triton's text where it has one.
    """
    sequences = config.sequence_batching
    known = {tensor.name for tensor in config.input}
    known |= {control.name for control in sequences.control_input} | {state.input_name for state in sequences.state}
    for sample in config.model_warmup:
        about = f"warmup sample '{sample.name}'"
        if sample.batch_size > max(config.max_batch_size, 1):
            raise ValueError(f"failed to run {about}: batch size {sample.batch_size} for '{name}', max allowed is {config.max_batch_size}")
        for input_name, tensor in sorted(sample.inputs.items()):
            if input_name not in known:
                raise ValueError(f"{about} has input '{input_name}', which model '{name}' does not have")
            if any(dim < 0 for dim in tensor.dims):
                raise ValueError(f"warmup setting expects all variable-size dimensions are specified for input '{input_name}'")
            if tensor.WhichOneof("input_data_type") is None:
                raise ValueError(f"warmup setting expects input '{input_name}' to have input_data_type set")
            file = os.path.normpath(tensor.input_data_file)
            if os.path.isabs(file) or file.split(os.sep)[0] == os.pardir:
                raise ValueError(
                    f"'input_data_file' of {about} of model '{name}' must be below '{DIRECTORY}' in its directory, not '{file}'"
                )


def sample_data(tensor: Any, dtype: DataType, directory: str) -> bytes:
    """The bytes of an input of a sample, as a request has them.

    Args:
        tensor: what a checked configuration says of it.
        directory: the model's.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is too short, in Triton's words.
    """
    count = element_count(tensor.dims)
    kind = tensor.WhichOneof("input_data_type")
    if kind == "input_data_file":
        return _read(tensor.input_data_file, directory, None if dtype is BYTES else count * dtype.itemsize)
    if dtype is BYTES:
        return _EMPTY_STRING * count  # random ones are empty, too, as in Triton
    return bytes(count * dtype.itemsize) if kind == "zero_data" else _random(dtype, count)


def _read(file: str, directory: str, nbytes: Any) -> bytes:
    with open(os.path.join(directory, DIRECTORY, file), "rb") as opened:
        data = opened.read() if nbytes is None else opened.read(nbytes)
    if nbytes is not None and len(data) < nbytes:
        raise ValueError(f"warmup setting expects {nbytes} bytes, but the data provided from {file} only has {len(data)} bytes")
    return data


def _random(dtype: DataType, count: int) -> bytes:
    """Numbers that a model can compute with: from 0 to 1, or any integers."""
    random = np.random.default_rng(_SEED)
    if dtype.name == "BOOL":
        return random.integers(0, 2, count, np.uint8).tobytes()
    if dtype.name == "BF16":
        return (random.random(count, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if dtype.name in ("FP16", "FP32", "FP64"):
        return random.random(count).astype(f"f{dtype.itemsize}").tobytes()
    return random.bytes(count * dtype.itemsize)
