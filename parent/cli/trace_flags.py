"""The command line's options of traces."""

from __future__ import annotations

from typing import Any

import click

from ..options import OptionError
from ..tracing.options import TraceOptions

FORMER = {
    "trace_file": "triton,file",
    "trace_level": "level",
    "trace_rate": "rate",
    "trace_count": "count",
    "trace_log_frequency": "triton,log-frequency",
}
"""Options that Triton has for those who used it before ``--trace-config``, which goes before them."""


def trace_options(function: Any) -> Any:
    """Adds the options to a command, whose arguments of their names are those of ``read``."""
    for name in FORMER:
        function = click.option("--" + name.replace("_", "-"), name, multiple=True, hidden=True)(function)
    return click.option(
        "--trace-config",
        multiple=True,
        metavar="[MODE,]KEY=VALUE",
        help="mode (triton or opentelemetry), level (OFF, TIMESTAMPS or TENSORS), rate, count; triton,file; triton,log-frequency; "
        "opentelemetry,url; opentelemetry,resource (key=value); opentelemetry,bsp_max_queue_size, bsp_schedule_delay, "
        "bsp_max_export_batch_size.",
    )(function)


def read(arguments: Any) -> TraceOptions:
    """The options from a command's arguments, which are taken out of them.

    Raises:
        OptionError: what is wrong.
    """
    options = TraceOptions()
    former = [f"{key}={value}" for name, key in FORMER.items() for value in arguments.pop(name)]
    try:
        options.read(former)
        options.read(arguments.pop("trace_config"))
    except ValueError as error:
        raise OptionError(f"--trace-config: {error}") from error
    return options
