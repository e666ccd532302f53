"""``stublet serve`` on a machine with a GPU that is a stand-in: a program, whose arguments are the command that it stands for."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def main() -> None:
    """Serves."""
    from stublet.parent import client_regions, devices

    devices.CHECK = (sys.executable, str(TESTS / "standin_check.py"))
    client_regions.CHECK = (sys.executable, str(TESTS / "standin_check_region.py"))
    _, _, _, module, *arguments = sys.argv  # this program, an interpreter, and its -m
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
