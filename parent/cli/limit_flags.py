"""The command line's options of what clients may take, and of what they are told."""

from __future__ import annotations

from typing import Any, Dict

import click

from ..http.limits import HttpLimits
from .sections import section

_DEFAULTS = HttpLimits()
_SECONDS = click.FloatRange(min=0, min_open=True)

limit_options = section(
    "Clients",
    click.option(
        "--http-max-connections", type=click.IntRange(min=0), default=_DEFAULTS.max_connections, show_default=True, metavar="N",
        help="Most connections at a time; one more gets 503 and is closed. 0 for as many as the limit of open files permits.",
    ),
    click.option(
        "--http-client-timeout", type=_SECONDS, default=_DEFAULTS.client_timeout, show_default=True, metavar="SECONDS",
        help="A client is cut off when the head of its request takes longer, or when for so long it sends, or takes, less than 1 KiB/s.",
    ),
    click.option(
        "--http-idle-timeout", type=_SECONDS, default=_DEFAULTS.idle_timeout, show_default=True, metavar="SECONDS",
        help="A connection is closed when for so long it has no request.",
    ),
    click.option(
        "--expose-tracebacks", is_flag=True,
        help="Clients are told tracebacks, and names of files, of errors in models. Otherwise they are in the log only.",
    ),
)  # fmt: skip
"""Adds the options to a command, whose arguments of their names are those of ``read``."""


def read(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """What the options are to ``ServerOptions``, from a command's arguments, which are taken out of them."""
    limits = HttpLimits(arguments.pop("http_max_connections"), arguments.pop("http_client_timeout"), arguments.pop("http_idle_timeout"))
    return {"http_limits": limits, "expose_tracebacks": arguments.pop("expose_tracebacks")}
