"""The documents say what is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Set

from stublet.shm.message import ErrorCode
from stublet.stub import c_python_backend_utils, triton_python_backend_utils

ROOT = Path(__file__).parent.parent


def name_by_name() -> str:
    """The table of all that a model can use."""
    text = (ROOT / "docs" / "compatibility.md").read_text()
    return text.split("## Name by name")[1].split("\n## ")[0]


def test_every_name_of_pb_utils_is_in_the_table() -> None:
    names: Set[str] = set(triton_python_backend_utils.__all__)
    for module in (triton_python_backend_utils, c_python_backend_utils):
        for found in map(vars(module).get, module.__all__):
            if inspect.isclass(found) and not issubclass(found, int):
                names |= {name for name in vars(found) if not name.startswith("_")}
    code = re.findall(r"`([^`]+)`", name_by_name())
    words = set(re.findall(r"\w+", " ".join(code)))
    codes = {code.name for code in ErrorCode}  # which the table has as "the eight codes"
    assert names - words - codes == set()


def test_the_tests_in_the_table_exist() -> None:
    named = re.findall(r"`([a-z_/]+/test_\w+\.py)`", name_by_name())
    assert named
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()
    last_column = [line.rsplit("|", 2)[1] for line in name_by_name().splitlines() if line.startswith("| ")]
    assert not [cell for cell in last_column if "`" in cell and "test_" not in cell]


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *ROOT.glob("*/*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document}: {link}"
