"""The checks that every request passes, whatever protocol it came by (spec 6.5), and where its inputs go in their block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from ..shm import bytes_codec
from ..shm.arena import aligned, size_class
from ..shm.dtype import BYTES, MAX_ELEMENTS, element_count
from .client_memory import RegionSlice
from .errors import InvalidArgument
from .model_config import TensorSpec
from .reshape import reshaped
from .slabs import Rows, rows_of

if TYPE_CHECKING:
    from .servable import Servable

_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. "
    "If you want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. "
    "See the model configuration docs for more info on max_batch_size."
)


class GivenInput(NamedTuple):
    """An input as a client describes it. ``datatype`` is the protocol's name; ``nbytes`` what it will send, or has at ``place``."""

    name: str
    datatype: str
    shape: Tuple[int, ...]
    nbytes: int
    place: Optional[RegionSlice] = None


class Placement(NamedTuple):
    """Where one input goes: ``offset`` in the request's block, unless it lies in a region of the client's."""

    spec: TensorSpec
    shape: Tuple[int, ...]
    offset: int
    nbytes: int
    in_region: bool = False


class Layout(NamedTuple):
    """``placements`` in the order the client gave, and in ``indices`` the place of each in the configuration; ``inputs`` as a message
    describes them when one block holds them all, in the order of the configuration; ``nbytes`` of that block. Those that lie in regions of
    the client's are at ``slices``, which a message counts after the block. ``rows``: as which they may lie in a slab, if they may."""

    placements: List[Placement]
    indices: List[int]
    inputs: Tuple[Tuple[int, int, Tuple[int, ...], int, int, int], ...]
    nbytes: int
    slices: Tuple[RegionSlice, ...] = ()
    rows: Optional[Rows] = None


def lay_out(model: Servable, given: Sequence[GivenInput]) -> Layout:
    """Checks names, data types, shapes and sizes, and places the inputs one after another, each on a cache line of its own; those that lie
    in regions of the client's stay there.

    Raises:
        InvalidArgument: in Triton's words, naming the input and the model.
    """
    specs: Dict[str, Tuple[int, TensorSpec]] = {spec.name: (i, spec) for i, spec in enumerate(model.inputs)}
    _check_names(model, given, specs)
    placements: List[Placement] = []
    indices, message = [], []
    slices: List[RegionSlice] = []
    offset = 0
    for one in given:
        index, spec = specs[one.name]
        if one.datatype != spec.dtype.name:
            raise InvalidArgument(
                f"inference input '{one.name}' data-type is '{one.datatype}', but model '{model.name}' expects '{spec.dtype.name}'"
            )
        _check_shape(model, spec, one.shape)
        _check_size(model, spec, one)
        seen = one.shape if spec.model_shape is None else reshaped(one.shape, spec.shape, spec.model_shape) or ()
        indices.append(index)
        if one.place is not None:
            slices.append(one.place)
            placements.append(Placement(spec, one.shape, 0, one.nbytes, in_region=True))
            message.append((index, spec.dtype.code, seen, len(slices), 0, one.nbytes))
            continue
        placements.append(Placement(spec, one.shape, offset, one.nbytes))
        message.append((index, spec.dtype.code, seen, 0, offset, one.nbytes))
        offset += aligned(one.nbytes)
    if model.max_batch_size > 0 and len({one.shape[0] for one in given}) > 1:
        batches = ", ".join(f"'{one.name}': {one.shape[0]}" for one in given)
        raise InvalidArgument(f"the inputs of a request to model '{model.name}' must have the same batch size, got {batches}")
    inputs = tuple(sorted(message))
    in_rows = model.slabs is not None and not slices and all(place.spec.dtype is not BYTES for place in placements)
    return Layout(placements, indices, inputs, size_class(offset), tuple(slices), rows_of(inputs) if in_rows else None)


def _check_names(model: Servable, given: Sequence[GivenInput], specs: Dict[str, Tuple[int, TensorSpec]]) -> None:
    names = [one.name for one in given]
    seen: Set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidArgument(f"input '{name}' already exists in request")
        seen.add(name)
    required = [spec.name for spec in model.inputs if not spec.optional]
    missing = [name for name in required if name not in names]
    unknown = [name for name in names if name not in specs]
    most = len(specs)
    if len(required) <= len(names) <= most and unknown:
        raise InvalidArgument(f"unexpected inference input '{unknown[0]}' for model '{model.name}'")
    if missing or unknown:
        expected = f"{most} inputs" if len(required) == most else f"number of inputs between {len(required)} and {most}"
        raise InvalidArgument(
            f"expected {expected} but got {len(names)} inputs for model '{model.name}'. Got input(s) {_quoted(names)}, but missing "
            f"required input(s) {_quoted(missing)}. Please provide all required input(s)."
        )


def _quoted(names: Sequence[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _dims(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _check_shape(model: Servable, spec: TensorSpec, shape: Tuple[int, ...]) -> None:
    batching = model.max_batch_size > 0
    if batching and shape and len(shape) == len(spec.shape):
        if shape[0] > model.max_batch_size:
            raise InvalidArgument(f"inference request batch-size must be <= {model.max_batch_size} for '{model.name}'")
        if shape[0] == 0:
            raise InvalidArgument(f"inference request batch-size must be >= 1 for '{model.name}'")
    if len(shape) != len(spec.shape) or any(want not in (-1, got) for want, got in zip(spec.shape, shape)):
        raise InvalidArgument(
            f"unexpected shape for input '{spec.name}' for model '{model.name}'. Expected {_dims(spec.shape)}, got {_dims(shape)}. "
            + (_BATCH_NOTE if batching else "")
        )
    # A 0 among them makes the count 0, but no array library takes the other sizes for that.
    if element_count([dim or 1 for dim in shape]) * max(spec.dtype.itemsize, 1) > MAX_ELEMENTS:
        raise InvalidArgument(
            f"invalid shape for input '{spec.name}': shape {_dims(shape)} causes total element count to exceed maximum size of "
            f"{MAX_ELEMENTS}"
        )


def _check_size(model: Servable, spec: TensorSpec, given: GivenInput) -> None:
    if spec.dtype is BYTES:
        return
    expected = element_count(given.shape) * spec.dtype.itemsize
    if expected != given.nbytes:
        raise InvalidArgument(
            f"input byte size mismatch for input '{spec.name}' for model '{model.name}'. Expected {expected}, got {given.nbytes}"
        )


def check_strings(model: Servable, placement: Placement, wire: memoryview) -> None:
    """Checks that a BYTES input holds as many strings as its shape says, now that its bytes are there.

    Raises:
        InvalidArgument: too few, too many, or the bytes end within one.
    """
    wrong = bytes_codec.mismatch(wire, element_count(placement.shape), placement.spec.name, model.name)
    if wrong:
        raise InvalidArgument(wrong)


def output_indices(model: Servable, names: Sequence[str]) -> Optional[Tuple[int, ...]]:
    """The requested outputs as indices in the configuration; None when none are named, which means all.

    Raises:
        InvalidArgument: an output that the model does not have, or one named twice.
    """
    if not names:
        return None
    known = {spec.name: i for i, spec in enumerate(model.outputs)}
    indices: List[int] = []
    for name in names:
        if name not in known:
            raise InvalidArgument(f"unexpected inference output '{name}' for model '{model.name}'")
        if known[name] in indices:
            raise InvalidArgument(f"output '{name}' already exists in request")
        indices.append(known[name])
    return tuple(indices)
