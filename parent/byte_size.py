"""Numbers of bytes, as people read and write them."""

from __future__ import annotations

import re
from typing import Optional

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(nbytes: Optional[int]) -> str:
    """``12.3MiB``; a dash for what is not known."""
    if nbytes is None:
        return "-"
    value, unit = float(nbytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f}{_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f}{_UNITS[unit]}"


def parse_size(text: str) -> int:
    """The number of bytes that ``text`` says: ``12.3MiB``, ``2GiB``, or plain bytes.

    Raises:
        ValueError: it says none.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([KMGT]?i?B)?", text)
    unit = (match[2] or "B") if match else ""
    if match is None or unit not in _UNITS or (unit == "B" and "." in match[1]):
        raise ValueError(f"'{text}' is no number of bytes")
    return int(float(match[1]) * 1024 ** _UNITS.index(unit))
