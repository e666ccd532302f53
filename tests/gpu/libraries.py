"""The libraries that compute on a GPU, as far as they are installed."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

_COME_WITH_THE_EXTRAS = ("cupy", "torch", "cuda.bindings.runtime")
"""With ``pip install .[gpu,test] torch``."""


def needs(*modules: str) -> None:
    """Skips a test, or fails it with REQUIRE_GPU=1, if a module that it needs is not installed. JAX, which is asked for nowhere, it skips
    always."""
    missing = [module for module in modules if not _is_there(module)]
    if missing:
        text = f"{', '.join(missing)} is not installed (pip install .[gpu,test] torch)"
        if os.environ.get("REQUIRE_GPU") == "1" and not set(missing).isdisjoint(_COME_WITH_THE_EXTRAS):
            pytest.fail(f"REQUIRE_GPU=1, but {text}")
        pytest.skip(text)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it would be in
        return False
