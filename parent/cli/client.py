"""The options of the commands that talk to a server."""

from __future__ import annotations

from functools import wraps
from typing import Any, Callable, Dict, Optional, Tuple

import click

from .http_client import HttpClient


class _Header(click.ParamType):
    name = "NAME: VALUE"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Tuple[str, str]:
        name, colon, text = str(value).partition(":")
        if not colon or not name.strip():
            self.fail(f"'{value}' is not of the form 'name: value'", param, ctx)
        return name.strip(), text.strip()


def connection_options(seconds: float) -> Callable[[Any], Any]:
    """Adds the options; the command gets ``connect``, which makes a client of a URL.

    Args:
        seconds: how long an answer is waited for by default.
    """

    def decorate(function: Any) -> Any:
        @click.option("--header", "headers", type=_Header(), multiple=True, metavar="'NAME: VALUE'", help="A header for every request.")
        @click.option(
            "--timeout", type=click.FloatRange(min=0, min_open=True), default=seconds, show_default=True, metavar="SECONDS",
            help="How long to wait for an answer.",
        )  # fmt: skip
        @wraps(function)
        def command(headers: Tuple[Tuple[str, str], ...], timeout: float, **arguments: Any) -> Any:
            named: Dict[str, str] = dict(headers)
            return function(**arguments, connect=lambda url: HttpClient(url, timeout, named))

        return command

    return decorate
