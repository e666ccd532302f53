"""``stublet ps``: what a server serves, once or again and again."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn, Optional

import click

from ..status_table import plain_lines, rich_table
from .client import connection_options
from .commands import EXIT_FAILED, EXIT_OK
from .http_client import ClientError, HttpClient
from .ps_report import Listing, as_json, fetch

_SHOW_CURSOR = b"\x1b[?25h"


@click.command()
@click.argument("url", default="localhost:8000")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True, metavar="SECONDS", help="With --watch."
)
@click.option("--json", "wants_json", is_flag=True, help="Print what the server says, as JSON.")
@connection_options(seconds=10)
def ps(url: str, watch: bool, interval: float, wants_json: bool, connect: Any) -> None:
    """Shows what the server at URL (localhost:8000) serves: models, instances, processes, queues, memory.

    \b
    Example:
      stublet ps localhost:8000 --watch

    "running" is how many requests an instance was handed and has not answered, "queue" how many of the model wait. "memory" is the
    process's share of what is resident. A server that is not stublet tells only its models.

    Exit status: 0, or 1 when the server cannot be reached.
    """
    try:
        with connect(url) as client:
            if watch:
                signal.signal(signal.SIGINT, _leave)
            if watch and not wants_json:
                _watch(client, interval)
                return
            while True:
                document, listing = fetch(client)
                print(as_json(document) if wants_json else _plain_or_rich(listing), flush=True)
                if not watch:
                    return
                time.sleep(interval)
    except ClientError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _leave(_signum: int, _frame: object) -> NoReturn:
    """Ctrl-C: at once, wherever the program is; there is nothing to lose but the cursor, which is hidden while the screen is watched."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), _SHOW_CURSOR)
    os._exit(EXIT_OK)


def _plain_or_rich(listing: Listing) -> str:
    if not sys.stdout.isatty():
        return "\n".join([listing.title, *plain_lines(listing.columns, listing.rows), *listing.notes])
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(_view(listing, console.width))
    return captured.get().rstrip("\n")


def _view(listing: Listing, width: int, complaint: Optional[str] = None) -> Any:
    from rich.console import Group
    from rich.text import Text

    title = Text(listing.title, style="bold")
    title.highlight_words(["NOT READY"], "red")
    notes = [Text(note, style="red") for note in listing.notes]
    told = [Text(complaint, style="red")] if complaint else []
    return Group(title, rich_table(listing.columns, listing.rows, width), *notes, *told)


def _watch(client: HttpClient, interval: float) -> None:
    """Once it has been reached, a server that is away for a while is waited for."""
    _, listing = fetch(client)
    if not sys.stdout.isatty():
        while True:
            print(_plain_or_rich(listing), end="\n\n", flush=True)
            time.sleep(interval)
            with suppress(ClientError):
                _, listing = fetch(client)
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        live.update(_view(listing, live.console.width), refresh=True)
        while True:
            time.sleep(interval)
            complaint = None
            try:
                _, listing = fetch(client)
            except ClientError as error:
                complaint = f"error: {error}"
            live.update(_view(listing, live.console.width, complaint), refresh=True)
