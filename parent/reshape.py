"""``reshape`` of inputs and outputs (spec 5.2): clients see ``dims``, the model another shape of as many elements."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

Shape = Tuple[int, ...]


def check_reshape(tensor: Any, what: str, max_batch_size: int, model: str) -> None:
    """Checks the section of an input or output whose ``dims`` are in order; ``what`` of the two it is.

    Raises:
        ValueError: with Triton's text.
    """
    if not tensor.HasField("reshape"):
        return
    start = f"model {what} '{tensor.name}'"
    shape = tensor.reshape.shape
    if not shape and max_batch_size == 0:
        raise ValueError(f"{start} cannot have empty reshape for non-batching model as scalar tensors are not supported for {model}")
    if any(dim < 1 and dim != -1 for dim in shape):
        raise ValueError(f"{start} reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension for {model}")
    outside, inside = _trunks(tensor.dims), _trunks(shape)
    if len(outside) != len(inside):
        if 1 in (len(outside), len(inside)):  # Triton compares the sizes first, and one that varies is not one that does not
            raise ValueError(f"{start} has different size for dims and reshape for {model}")
        raise ValueError(f"{start} has different number of variable-size dimensions for dims and reshape for {model}")
    if outside != inside:
        raise ValueError(f"{start} has different size for dims and reshape for {model}")


def _trunks(dims: Sequence[int]) -> List[int]:
    """How many elements there are before, between and after the sizes that vary."""
    counts = [1]
    for dim in dims:
        if dim == -1:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts


def model_shape(config: Any, tensor: Any) -> Optional[Shape]:
    """What the model sees of an input or output of a checked configuration, -1 for sizes that vary; None if that is what clients see."""
    if not tensor.HasField("reshape"):
        return None
    return ((-1,) if config.max_batch_size > 0 else ()) + tuple(tensor.reshape.shape)


def reshaped(shape: Sequence[int], old: Sequence[int], new: Sequence[int]) -> Optional[Shape]:
    """The shape of a tensor of shape ``shape`` that is not to be seen as ``old`` says any more, but as ``new`` does; None if it is not of
    the shape ``old``. The sizes that vary are the same in either, one after the other."""
    if len(shape) != len(old) or any(want not in (-1, size) for want, size in zip(old, shape)):
        return None
    varying = iter([size for want, size in zip(old, shape) if want == -1])
    return tuple([next(varying) if size == -1 else size for size in new])
