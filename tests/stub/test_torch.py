"""DLPack with torch: what a model does with its inputs and outputs."""

from __future__ import annotations

import sys
from typing import Any, Callable, Sequence

import pytest
from stublet.stub.error import TritonModelException
from stublet.stub.tensor import Tensor

torch = pytest.importorskip("torch", reason="torch is not installed: it is large, and no dependency of stublet")

SHAPES = [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)]
DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(dtype: str, shape: Sequence[int]) -> None:
    source = torch.ones(shape, dtype=getattr(torch, dtype))
    for offered in (source, torch.utils.dlpack.to_dlpack(source)):
        tensor = Tensor.from_dlpack("x", offered)
        for back in (torch.from_dlpack(tensor), torch.from_dlpack(tensor.to_dlpack())):
            assert back.dtype == source.dtype and back.shape == source.shape and torch.equal(back, source)
            assert not source.numel() or back.data_ptr() == source.data_ptr()


def test_torch_holds_the_reference_until_its_tensor_is_gone() -> None:
    tensor = Tensor.from_dlpack("x", torch.ones(3))
    before = sys.getrefcount(tensor)
    for offer in (lambda tensor: tensor, Tensor.to_dlpack):
        taken = torch.from_dlpack(offer(tensor))
        assert sys.getrefcount(tensor) == before + 1
        view = taken[1:]
        del taken
        assert sys.getrefcount(tensor) == before + 1
        del view
        assert sys.getrefcount(tensor) == before


@pytest.mark.parametrize("strided", [lambda: torch.ones(2, 3).T, lambda: torch.ones(6)[::2], lambda: torch.ones(3).expand(2, 3)])
def test_a_strided_tensor_is_refused(strided: Callable[[], Any]) -> None:
    with pytest.raises(TritonModelException, match=r"^DLPack tensor is not contiguous"):
        Tensor.from_dlpack("x", strided())
