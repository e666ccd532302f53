"""DLPack with JAX: what a model does with its inputs and outputs."""

from __future__ import annotations

import sys
from typing import Any, Sequence

import pytest
from stublet.stub.tensor import Tensor

jax: Any = pytest.importorskip("jax", reason="jax is not installed: it is large, and no dependency of stublet")
jnp: Any = pytest.importorskip("jax.numpy")

SHAPES = [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)]
DTYPES = ["bool", "uint8", "uint16", "int8", "int16", "int32", "float16", "float32", "bfloat16"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(dtype: str, shape: Sequence[int]) -> None:
    source = jnp.ones(shape, dtype)
    tensor = Tensor.from_dlpack("x", source)
    back = jnp.from_dlpack(tensor)
    assert back.dtype == source.dtype and back.shape == source.shape and bool((back == source).all())
    assert not source.size or back.unsafe_buffer_pointer() == source.unsafe_buffer_pointer()


def test_jax_holds_the_reference_until_its_array_is_gone() -> None:
    tensor = Tensor.from_dlpack("x", jnp.ones(3))
    before = sys.getrefcount(tensor)
    taken = jnp.from_dlpack(tensor)
    assert sys.getrefcount(tensor) == before + 1
    del taken
    assert sys.getrefcount(tensor) == before
