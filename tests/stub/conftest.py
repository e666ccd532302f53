"""What tests of imports need: a stub loads one model in its life, a test process loads many."""

from __future__ import annotations

import sys
from typing import Iterator

import pytest


@pytest.fixture
def own_imports() -> Iterator[None]:
    """Whatever the test imports is forgotten afterwards."""
    path, modules, no_bytecode = list(sys.path), dict(sys.modules), sys.dont_write_bytecode
    yield
    sys.dont_write_bytecode = no_bytecode
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)
