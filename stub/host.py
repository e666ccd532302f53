"""What the objects of ``model.py`` need from the process they live in.

In a stub the process replaces these; anywhere else (a unit test of a model, a notebook) the defaults do.
"""

from __future__ import annotations

import sys
from typing import Callable

import numpy as np


def _print_log(level: str, file: str, line: int, text: str) -> None:
    print(f"{level} {file}:{line}] {text}", file=sys.stderr)


class Host:
    """``log``: takes (level, file, line, text). ``allocate``: bytes -> UINT8 array to place an output in. ``model_dir``: the version
    directory of the model."""

    log: Callable[[str, str, int, str], None] = staticmethod(_print_log)
    allocate: Callable[[int], np.ndarray] = staticmethod(lambda nbytes: np.empty(nbytes, np.uint8))
    model_dir: str = ""


host = Host()
