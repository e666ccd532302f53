"""Tensors in a stub's memory, as requests bring them and as models make them."""

from __future__ import annotations

import mmap
import weakref
from typing import Any, Tuple

import numpy as np
from stub_runtime import FOREIGN, REQUESTS, Memory
from stublet.shm.arena import LARGE_BYTES
from stublet.shm.dtype import BY_NAME
from stublet.stub.memory import REFERENCE_BYTES
from stublet.stub.tensor import Tensor

LARGE, SMALL, BORROWED = REFERENCE_BYTES, 64, LARGE_BYTES
PAGE = mmap.PAGESIZE


def over(base: np.ndarray) -> Tensor:
    """The tensor that fills a block."""
    return Tensor._over("x", BY_NAME["UINT8"], (base.size,), base, 0, base.size)


def request_input(both: Memory, nbytes: int, offset: int = 0) -> Tuple[Tensor, weakref.ref[Any]]:
    """An input that fills its request's block, and what tells that nobody views the block."""
    (base,) = both.memory.receive([(REQUESTS, offset, nbytes)])
    base[:] = 7
    return over(base), weakref.ref(base)


def borrowed_input(both: Memory, nbytes: int, offset: int = 0) -> Tuple[Tensor, weakref.ref[Any]]:
    """The same from another stub, filled with 9."""
    both.others[FOREIGN].memory[offset : offset + nbytes] = b"\x09" * nbytes
    (base,) = both.memory.borrow([(FOREIGN, offset, nbytes)])
    return over(base), weakref.ref(base)


# ---- outputs ----


def output(nbytes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, nbytes, np.uint8)
