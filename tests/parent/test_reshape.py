"""``reshape`` of a configuration: what it may be, and what shapes become of it (spec 5.2)."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent import model_config
from stublet.parent.model_config import ConfigError, TensorSpec
from stublet.parent.request import OutputPlan
from stublet.parent.reshape import reshaped
from stublet.shm.dtype import BY_NAME

FP32 = BY_NAME["FP32"]


def checked(what: str, dims: List[int], shape: List[int], max_batch_size: int = 0) -> Any:
    text = f'backend: "python" max_batch_size: {max_batch_size} {what} {{ name: "X" data_type: TYPE_FP32 dims: {dims} reshape {{ shape: {shape} }} }}'
    config = model_config.parse(text, "config.pbtxt")
    model_config.complete(config, "m")
    model_config.check(config, "m")
    return config


@pytest.mark.parametrize("what", ["input", "output"])
@pytest.mark.parametrize(
    "dims, shape, text",
    [
        ([1], [], "cannot have empty reshape for non-batching model as scalar tensors are not supported for m"),
        ([4], [2, 3], "has different size for dims and reshape for m"),
        ([4], [-1], "has different size for dims and reshape for m"),
        ([-1], [4], "has different size for dims and reshape for m"),
        ([2, -1], [4, -1], "has different size for dims and reshape for m"),
        ([2, -1, 3], [3, -1, 2], "has different size for dims and reshape for m"),
        ([-1, -1], [-1], "has different number of variable-size dimensions for dims and reshape for m"),
        ([4], [4, 0], "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension for m"),
        ([4], [-2, -2], "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension for m"),
    ],
)
def test_a_reshape_that_cannot_be(what: str, dims: List[int], shape: List[int], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(what, dims, shape)
    assert str(caught.value) == f"model {what} 'X' {text}"


@pytest.mark.parametrize(
    "dims, shape, max_batch_size",
    [
        ([4], [2, 2], 0),
        ([1], [], 8),
        ([1, 1], [], 8),
        ([2, -1, 3], [1, 2, -1, 3, 1], 0),
        ([2, 4, -1, 6], [8, -1, 1, 6], 8),
        ([-1], [-1, 1], 0),
    ],
)
def test_a_reshape_that_can_be(dims: List[int], shape: List[int], max_batch_size: int) -> None:
    for what in ("input", "output"):
        config = checked(what, dims, shape, max_batch_size)
        batch = (-1,) if max_batch_size else ()
        (spec,) = model_config.tensor_specs(config, getattr(config, what))
        assert (spec.shape, spec.model_shape) == ((*batch, *dims), (*batch, *shape))
        assert spec.metadata()["shape"] == (*batch, *dims), "clients are told what they see"


@pytest.mark.parametrize(
    "shape, old, new, expected",
    [
        ((4,), (4,), (2, 2), (2, 2)),
        ((3, 1), (-1, 1), (-1,), (3,)),
        ((5, 2, 7, 3, 9), (-1, 2, -1, 3, -1), (-1, 1, 2, -1, 3, -1), (5, 1, 2, 7, 3, 9)),
        ((0, 4), (-1, 4), (-1, 2, 2), (0, 2, 2)),
        ((5,), (4,), (2, 2), None),
        ((4, 1), (4,), (2, 2), None),
    ],
)
def test_sizes_that_vary_stay_what_they_are(shape: Any, old: Any, new: Any, expected: Optional[Tuple[int, ...]]) -> None:
    assert reshaped(shape, old, new) == expected


@given(st.lists(st.tuples(st.integers(1, 4), st.none() | st.integers(0, 5)), max_size=5))
def test_there_and_back(trunks: List[Tuple[int, Optional[int]]]) -> None:
    """What the model sees of a tensor is seen by the client as it was."""
    old, new, shape = [], [], []
    for fixed, varying in trunks:
        old += [fixed, 2]
        new += [2 * fixed]
        shape += [fixed, 2]
        if varying is not None:
            old, new, shape = [*old, -1], [*new, -1], [*shape, varying]
    there = reshaped(shape, old, new)
    assert there is not None and reshaped(there, new, old) == tuple(shape)


def test_an_output_of_another_shape_than_its_reshape_says() -> None:
    specs = [TensorSpec("OUT", FP32, (-1, 4), False, (-1, 2, 2))]
    right = OutputPlan(specs, [(0, FP32.code, (3, 2, 2), 0, 0, 48)], 1)
    assert (right.outputs[0].shape, right.misshapen) == ((3, 4), "")
    wrong = OutputPlan(specs, [(0, FP32.code, (3, 4), 0, 0, 48)], 1)
    assert wrong.misshapen == "output 'OUT' has shape [3, 4], but its 'reshape' says [-1, 2, 2]"
