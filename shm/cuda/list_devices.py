"""Says which GPUs a process sees. A program, run by path with any interpreter; it needs the module ``driver`` beside it and nothing else.

Its output is a line for each device: the compute capability, such as "9.0". No context is made.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main(load: Any) -> None:
    """Prints."""
    driver = load()
    for device in range(driver.count()):
        major, minor = driver.capability(device)
        print(f"{major}.{minor}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # where it is already, unless PYTHONSAFEPATH is set
    main(import_module("driver").load)
