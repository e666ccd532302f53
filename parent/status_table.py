"""Tables on the terminal: that of ``stublet serve`` when its models are loaded, and that of ``stublet ps``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, List, Sequence, TextIO, Tuple

if TYPE_CHECKING:
    from .core import ModelStatus

_COLUMNS = ("model", "version", "instance", "pid", "device", "state")
_STATE = "state"
_NUMBERS = ("pid", "queue", "running", "memory", "shared memory", "gpu memory", "gpu exports", "gpu imports", "restarts")
_DISPENSABLE = ("device", "shared memory", "version", "running")
_COLOURS = {"READY": "green", "UNAVAILABLE": "red", "FAILED": "red"}


def print_status(rows: Sequence[ModelStatus], file: TextIO = sys.stdout) -> None:
    """Prints a row for each instance."""
    print_table(_COLUMNS, [tuple(row)[: len(_COLUMNS)] for row in rows], file)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], file: TextIO = sys.stdout) -> None:
    """Prints rows of text under the names of their columns: as a table on a terminal, as plain columns elsewhere."""
    if file.isatty():
        # Imported only here: a server without a terminal starts sooner.
        from rich.console import Console

        console = Console(file=file)
        console.print(rich_table(columns, rows, console.width))
        return
    for line in plain_lines(columns, rows):
        print(line, file=file)


def plain_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    """The table as lines of text: two blanks at least between columns, none at the end of a line."""
    cells = [[name.replace(" ", "-") for name in columns], *rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [name in _NUMBERS for name in columns]
    return [
        "  ".join(cell.rjust(width) if at_right else cell.ljust(width) for cell, width, at_right in zip(line, widths, right)).rstrip()
        for line in cells
    ]


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Any:
    """The table for a terminal that is so wide; a narrow one does without some columns. A name that repeats that of the row above is left
    out."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    columns, rows = _fitting(columns, rows, width)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=0, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name != "reason", overflow="fold")
    above = ""
    for row in rows:
        cells = [escape(cell) for cell in row]
        state = row[columns.index(_STATE)]
        cells[columns.index(_STATE)] = f"[{_COLOURS.get(state, 'yellow')}]{escape(state)}[/]"
        if row[0] == above:
            cells[0] = ""
        above = row[0]
        table.add_row(*cells)
    return table


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Tuple[Sequence[str], Sequence[Sequence[str]]]:
    for name in _DISPENSABLE:
        if sum(max(map(len, (title, *cells))) + 1 for title, *cells in zip(columns, *rows)) < width:
            break
        if name in columns:
            left = [number for number, title in enumerate(columns) if title != name]
            columns, rows = [columns[number] for number in left], [[row[number] for number in left] for row in rows]
    return columns, rows
