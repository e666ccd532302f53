"""On PYTHONPATH, it gives every Python process a GPU that is a stand-in: the library of the driver, and the file of the device."""

from __future__ import annotations

import ctypes
import glob
import sys
from pathlib import Path
from typing import Any, List

TESTS = Path(__file__).parents[1]

_load, _find = ctypes.CDLL, glob.glob
_libraries: List[Any] = []


def _loaded(name: Any, *arguments: Any, **more: Any) -> Any:
    if name != "libcuda.so.1":
        return _load(name, *arguments, **more)
    if not _libraries:
        sys.path.append(str(TESTS))
        from standin_cuda import StandinCuda

        _libraries.append(StandinCuda())
    return _libraries[0]


def _found(pattern: str, *arguments: Any, **more: Any) -> List[str]:
    return ["/dev/nvidia0"] if pattern.startswith("/dev/nvidia") else _find(pattern, *arguments, **more)


ctypes.CDLL = _loaded  # type: ignore[assignment,misc]
glob.glob = _found
