"""The classification extension: in place of an output, the best of its elements as text (spec 6.6)."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ..shm import bytes_codec
from ..shm.dtype import BF16, BOOL, BYTES, FP16, DataType, element_count
from .errors import InvalidArgument

MAX_ELEMENTS = 1_000_000
_WITHOUT_ORDER = (FP16, BF16, BOOL, BYTES)

Labels = Sequence[bytes]


def check_labels(config: Any, name: str) -> None:
    """Checks where the files of labels are: a configuration may come from a client.

    Raises:
        ValueError: outside of the model's directory.
    """
    for output in config.output:
        file = os.path.normpath(output.label_filename)
        if os.path.isabs(file) or file.split(os.sep)[0] == os.pardir or "\0" in file:
            raise ValueError(f"'label_filename' of output '{output.name}' of model '{name}' must be below its directory, not '{file}'")


def read_labels(directory: str, config: Any) -> Dict[str, Labels]:
    """The labels of each output that has a ``label_filename``, by its name: lines of that file in the model's directory.

    Raises:
        OSError: a file cannot be read.
    """
    labels: Dict[str, Labels] = {}
    for output in config.output:
        if output.label_filename:
            with open(os.path.join(directory, output.label_filename), "rb") as file:
                labels[output.name] = file.read().splitlines()
    return labels


def classify(
    wire: bytes, dtype: DataType, shape: Sequence[int], batching: bool, count: int, labels: Labels
) -> Tuple[bytes, Tuple[int, ...]]:
    """The ``count`` greatest elements of an output, or of each item of its batch, as ``value:index`` or ``value:index:label``, greatest first.

    Args:
        wire: the output's bytes.
        batching: whether the first dimension is that of the batch.
        count: at least 1; if there are fewer elements, all are taken.
        labels: by index; those that are missing, or empty, are left out.

    Returns:
        The elements in the wire form of BYTES, and the shape: ``[count]``, or ``[batch, count]``.

    Raises:
        InvalidArgument: elements of that type have no order, or there are too many.
    """
    if dtype in _WITHOUT_ORDER:
        raise InvalidArgument(f"class result not available for output due to unsupported type '{dtype.name}'")
    batch = shape[0] if batching else 1
    elements = element_count(shape[1:] if batching else shape)
    if elements > MAX_ELEMENTS:
        raise InvalidArgument("classification output tensor too large")
    count = min(count, elements)
    items = np.frombuffer(wire, dtype.numpy).reshape(batch, elements)
    texts = [text for item in items for text in _best(item, count, labels)]
    return bytes_codec.encode(texts), (batch, count) if batching else (count,)


def _best(values: np.ndarray, count: int, labels: Labels) -> List[bytes]:
    texts = []
    for index in _greatest(values, count).tolist():
        value = values[index].item()
        text = b"%f:%d" % (value, index) if isinstance(value, float) else b"%d:%d" % (value, index)
        if index < len(labels) and labels[index]:
            text += b":" + labels[index]
        texts.append(text)
    return texts


def _greatest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the greatest values, in falling order; among equals the first comes first, and NaN comes last."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -np.inf, values)
    candidates = np.arange(values.size)
    if 0 < count < values.size:
        least = np.partition(values, values.size - count)[values.size - count]
        candidates = np.flatnonzero(values >= least)
    rising = np.argsort(values[candidates[::-1]], kind="stable")
    return candidates[::-1][rising][::-1][:count]
