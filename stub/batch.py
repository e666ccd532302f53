"""``pb_utils.batch`` and ``pb_utils.split``: the requests of a batch as one tensor, and one result as a response to each of them.

The requests of a model with the parameter ``concatenate_batch`` are placed in rows of one block, of which all of them have the same base
array. Where their tensors follow each other there, the batch is one more view of it; else they are copied to a new array.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..shm import bytes_codec
from ..shm.dtype import BYTES, element_count
from .batch_config import BatchConfig, BatchInput
from .error import TritonModelException
from .host import host
from .request import InferenceRequest
from .response import InferenceResponse, expect
from .tensor import Tensor

Shapes = List[Tuple[int, ...]]

_known: Dict[str, BatchConfig] = {}
"""By the text of the configuration, of which a process sees one."""


def batch(requests: Sequence[InferenceRequest], name: str) -> Optional[Tensor]:
    """One input of all requests as one tensor. Not in Triton's own pb_utils.

    Its shape is [sum of batch sizes, ...]; of a model that does not batch, [number of requests, ...]. The elements of an input with
    ``allow_ragged_batch`` are in one dimension, whatever their shapes. An input that ``batch_input`` of the configuration defines is made
    of its source input, with the values and the shape that Triton documents for its kind.

    With the parameter ``concatenate_batch`` the tensor is, where that is possible, a view of the memory in which the requests lie: then
    what is written to it is seen in their own inputs. Else it is a copy.

    Args:
        requests: those that ``execute`` was given, or some of them, in any order.
        name: of the input.

    Returns:
        None if the input is optional and no request has it.

    Raises:
        TypeError: ``requests`` is not a list of requests, or ``name`` not a str.
        TritonModelException: no requests, requests of several models, no such input, an input that some of the requests have, or
            tensors that cannot be joined; the text says what and where.
    """
    _check_requests("batch", requests)
    expect("batch", "name", name, str)
    config = _config()
    made = config.made.get(name)
    if made is not None:
        source = _inputs(requests, made.source, config)
        return None if source is None else Tensor(name, _make(made, source, config.batches))
    tensors = _inputs(requests, name, config)
    return None if tensors is None else _join(name, tensors, name in config.ragged, config.batches)


def split(requests: Sequence[InferenceRequest], output_tensors: Sequence[Tensor]) -> List[InferenceResponse]:
    """A response to each request, with its rows of each tensor. Not in Triton's own pb_utils.

    Rows are views. Where the tensor was made with ``pb_utils.empty``, or is a view of inputs, rows from 16 KiB on are sent from where
    they lie.

    Args:
        requests: as for ``batch``, in the same order.
        output_tensors: each of shape [sum of batch sizes, ...]; of a model that does not batch, [number of requests, ...]. One that
            ``batch_output`` of the configuration names has as many elements as the source input has in all requests, in any shape; each
            response gets as many of them as there are in the input of its request, in the shape of that.

    Raises:
        TypeError: an argument of a wrong Python type.
        TritonModelException: no requests, requests of several models, or a tensor that cannot be split so; the text says why.
    """
    _check_requests("split", requests)
    expect("split", "output_tensors", output_tensors, (list, tuple))
    config = _config()
    sizes = [_batch_size(request) if config.batches else 1 for request in requests]
    rows: List[List[Tensor]] = [[] for _ in requests]
    for tensor in output_tensors:
        expect("split", "each of output_tensors", tensor, Tensor)
        source = config.scattered.get(tensor._name)
        shapes = _rows_of(tensor, sizes, config) if source is None else _scattered(tensor, requests, source, config)
        for own, part in zip(rows, _cut(tensor, shapes)):
            own.append(part)
    return [InferenceResponse._received(own, None, "{}") for own in rows]


def _config() -> BatchConfig:
    text = host.model_config
    config = _known.get(text)
    if config is None:
        config = _known[text] = BatchConfig.of(text)
    return config


def _check_requests(what: str, requests: Sequence[InferenceRequest]) -> None:
    expect(what, "requests", requests, (list, tuple))
    if not requests:
        raise TritonModelException(f"{what}: there are no requests")
    for request in requests:
        if type(request) is not InferenceRequest:
            expect(what, "each of requests", request, InferenceRequest)
    # Those that were received are of this model, and do not say so.
    models = {request._model_name if request._exchange is None else None for request in requests}
    if len(models) > 1:
        named = ", ".join(sorted(f"'{model}'" if model is not None else "this one" for model in models))
        raise TritonModelException(f"{what}: the requests are of several models: {named}")


def _inputs(requests: Sequence[InferenceRequest], name: str, config: BatchConfig) -> Optional[List[Tensor]]:
    """That input of each request; None if it is optional and none has it."""
    found: List[Tensor] = []
    missing: List[int] = []
    for index, request in enumerate(requests):
        for tensor in request._inputs:
            if tensor._name == name:
                found.append(tensor)
                break
        else:
            missing.append(index)
    if not missing:
        return found
    optional = config.optional
    if name not in optional if optional is not None else not found:
        known = [tensor._name for tensor in requests[0]._inputs] if optional is None else [*optional, *config.made]
        raise TritonModelException(f"batch: there is no input '{name}'; the inputs are {', '.join(map(repr, known)) or 'none'}")
    if not found:
        return None
    some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    raise TritonModelException(
        f"batch: input '{name}' is missing in {len(missing)} of {len(requests)} requests (at {some} in the list); join only those that have it"
    )


def _batch_size(request: InferenceRequest) -> int:
    inputs = request._inputs
    return inputs[0]._shape[0] if inputs and inputs[0]._shape else 1


# From requests to a batch


def _join(name: str, tensors: List[Tensor], ragged: bool, batches: bool) -> Tensor:
    first = tensors[0]
    dtype, data, start, usual = first._dtype, first._data, first._offset, first._shape
    if batches and not usual:
        raise TritonModelException(f"batch: input '{name}' has no batch dimension")
    end = start
    for index, tensor in enumerate(tensors):
        shape = tensor._shape
        if tensor._dtype is not dtype or not (shape == usual or ragged or (batches and shape and shape[1:] == usual[1:])):
            raise _misfit(name, first, tensor, index)
        if tensor._data is not data or tensor._offset != end:
            data = None
        end += tensor._nbytes
    nbytes = end - start
    if ragged:
        whole: Tuple[int, ...] = (sum([element_count(tensor._shape) for tensor in tensors]),)
    elif batches:
        whole = (sum([tensor._shape[0] for tensor in tensors]), *usual[1:])
    else:
        whole = (len(tensors), *usual)
    if data is not None:
        return Tensor._over(name, dtype, whole, data, start, nbytes)  # they lie next to one another
    return Tensor._over(name, dtype, whole, np.concatenate([tensor._wire() for tensor in tensors]), 0, nbytes)


def _misfit(name: str, first: Tensor, other: Tensor, index: int) -> TritonModelException:
    if other._dtype is not first._dtype:
        return TritonModelException(f"batch: input '{name}' is {first._dtype.name} in request 0 and {other._dtype.name} in request {index}")
    return TritonModelException(
        f"batch: input '{name}' has shape {list(first._shape)} in request 0 and {list(other._shape)} in request {index}: they cannot be "
        "joined unless the configuration says 'allow_ragged_batch'"
    )


# Inputs that are made for a batch


def _make(made: BatchInput, source: List[Tensor], batches: bool) -> np.ndarray:
    assert made.dtype.numpy is not None
    return _MAKERS[made.kind]([tensor._shape for tensor in source], batches, made.dtype.numpy)


def _counts(shapes: Shapes, _batches: bool, dtype: np.dtype) -> np.ndarray:
    return np.array([element_count(shape) for shape in shapes], dtype)


def _accumulated(shapes: Shapes, _batches: bool, dtype: np.dtype) -> np.ndarray:
    return np.array(list(accumulate(map(element_count, shapes))), dtype)


def _accumulated_with_zero(shapes: Shapes, _batches: bool, dtype: np.dtype) -> np.ndarray:
    return np.array([0, *accumulate(map(element_count, shapes))], dtype)


def _largest_as_shape(shapes: Shapes, _batches: bool, dtype: np.dtype) -> np.ndarray:
    # Its shape is what counts. Triton leaves the elements undefined.
    return np.zeros(max(map(element_count, shapes)), dtype)


def _item_shapes(shapes: Shapes, batches: bool, dtype: np.dtype) -> np.ndarray:
    """The shape of each batch item, [batch items, dimensions]."""
    items = [shape[1:] for shape in shapes for _ in range(shape[0])] if batches else shapes
    return np.array(items, dtype).reshape(len(items), -1 if items else 0)


def _item_shapes_flat(shapes: Shapes, batches: bool, dtype: np.dtype) -> np.ndarray:
    return _item_shapes(shapes, batches, dtype).reshape(-1)


_MAKERS: Dict[str, Callable[[Shapes, bool, np.dtype], np.ndarray]] = {
    "BATCH_ELEMENT_COUNT": _counts,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": _accumulated,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": _accumulated_with_zero,
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": _largest_as_shape,
    "BATCH_ITEM_SHAPE": _item_shapes,
    "BATCH_ITEM_SHAPE_FLATTEN": _item_shapes_flat,
}


# From a result to responses


def _rows_of(tensor: Tensor, sizes: Sequence[int], config: BatchConfig) -> Shapes:
    """The shape of each request's part."""
    shape, total = tensor._shape, sum(sizes)
    if not shape or shape[0] != total:
        rule = f"the {len(sizes)} requests have {total} batch items" if config.batches else f"there are {total} requests"
        raise TritonModelException(
            f"split: output '{tensor._name}' has shape {list(shape)}, but {rule}, which has to be its first dimension"
        )
    item = shape[1:]
    if not config.batches:
        return [item] * total
    known = {size: (size, *item) for size in set(sizes)}
    return [known[size] for size in sizes]


def _scattered(tensor: Tensor, requests: Sequence[InferenceRequest], source: str, config: BatchConfig) -> Shapes:
    """The shape of the source input in each request."""
    inputs = _inputs(requests, source, config)
    if inputs is None:
        raise TritonModelException(f"split: no request has the input '{source}', by which an output is to be scattered")
    shapes = [one._shape for one in inputs]
    found, wanted = element_count(tensor._shape), sum(map(element_count, shapes))
    if found != wanted:
        raise TritonModelException(
            f"split: output '{tensor._name}' has {found} elements, but its source input '{source}' has {wanted} in the {len(requests)} requests"
        )
    return shapes


def _cut(tensor: Tensor, shapes: Shapes) -> List[Tensor]:
    """Parts of a tensor of these shapes, one after the other."""
    name, dtype, data = tensor._name, tensor._dtype, tensor._wire()
    counts = list(map(element_count, shapes))
    sizes = _sizes_of_strings(data, counts) if dtype is BYTES else [count * dtype.itemsize for count in counts]
    parts: List[Tensor] = []
    offset = 0
    for shape, nbytes in zip(shapes, sizes):
        parts.append(Tensor._over(name, dtype, shape, data, offset, nbytes))
        offset += nbytes
    return parts


def _sizes_of_strings(data: np.ndarray, counts: Sequence[int]) -> List[int]:
    """The bytes that so many strings take, the next ones after them, and so on."""
    ends = [0, *accumulate([len(item) + bytes_codec.LENGTH_BYTES for item in bytes_codec.decode(data)])]
    bounds = [0, *accumulate(counts)]
    return [ends[stop] - ends[start] for start, stop in zip(bounds, bounds[1:])]
