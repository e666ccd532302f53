"""The command line's options of requests that wait, and of those that need not be executed."""

from __future__ import annotations

from typing import Any, Dict, Sequence

import click

from ..options import DEFAULT_MAX_QUEUE_SIZE, OptionError
from .sections import section

_LOCAL = "local"
_SIZE = "size"

queue_options = section(
    "Requests",
    click.option(
        "--max-queue-size", type=click.IntRange(min=0), default=DEFAULT_MAX_QUEUE_SIZE, show_default=True, metavar="N",
        help="Most requests that may wait for a model, or for a priority level of it, whose configuration has no max_queue_size; one more gets 503 at once. 0 for any number.",
    ),
    click.option(
        "--cache-config", "cache_settings", multiple=True, metavar="local,size=BYTES",
        help="Makes a response cache of that size for all models that have response_cache { enable: true }.",
    ),
    click.option(
        "--response-cache-byte-size", "former_cache_size", type=click.IntRange(min=1), metavar="BYTES", help="Deprecated: --cache-config=local,size=BYTES.",
    ),
)  # fmt: skip
"""Adds the options to a command, whose arguments of their names are those of ``read``."""


def read(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """What the options are to ``ServerOptions``, from a command's arguments, which are taken out of them.

    Raises:
        OptionError: what is wrong.
    """
    settings, former = arguments.pop("cache_settings"), arguments.pop("former_cache_size")
    if settings and former:
        raise OptionError("--response-cache-byte-size is the former name of --cache-config=local,size=BYTES: give only one of them")
    return {"max_queue_size": arguments.pop("max_queue_size"), "response_cache_byte_size": former or _cache_bytes(settings)}


def _cache_bytes(settings: Sequence[str]) -> int:
    size = 0
    for text in settings:
        cache, comma, setting = text.partition(",")
        key, equals, value = setting.partition("=")
        if not (cache and comma and key and equals and value):
            raise OptionError(f"--cache-config option format is '<cache name>,<setting>=<value>'. Got {text}")
        if cache != _LOCAL:
            raise OptionError(f"--cache-config: unable to find a cache named '{cache}': stublet has '{_LOCAL}'")
        if key != _SIZE:
            raise OptionError(f"--cache-config: '{key}' is no setting of the local cache: it has '{_SIZE}'")
        if not value.isascii() or not value.isdigit() or not int(value):
            raise OptionError("Failed to initialize LocalCache: config didn't contain a valid 'size' field.")
        size = int(value)
    return size
