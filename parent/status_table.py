"""The table that ``stublet serve`` prints when its models are loaded."""

from __future__ import annotations

import sys
from typing import Sequence, TextIO

from .core import ModelStatus

_COLUMNS = ("model", "version", "instance", "pid", "device", "state")


def print_status(rows: Sequence[ModelStatus], file: TextIO = sys.stdout) -> None:
    """Prints a row for each instance: as a table on a terminal, as plain columns elsewhere."""
    if file.isatty():
        # Imported only here: a server without a terminal starts sooner.
        from rich.console import Console
        from rich.table import Table

        table = Table(*_COLUMNS)
        for row in rows:
            style = "green" if row.state == "READY" else "red"
            table.add_row(row.model, row.version, row.instance, row.pid, row.device, f"[{style}]{row.state}[/]")
        Console(file=file).print(table)
        return
    cells = [_COLUMNS, *[tuple(row)[: len(_COLUMNS)] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip(), file=file)
