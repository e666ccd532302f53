"""Numbers of bytes, for the eye."""

from __future__ import annotations

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
