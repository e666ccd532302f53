"""The command line's options of shared memory."""

from __future__ import annotations

from typing import Any, Dict, Optional

import click

from ..byte_size import parse_size, size
from ..memory_limits import LEAST_LIMIT, MemoryOptions
from .sections import section


class _Bytes(click.ParamType):
    name = "bytes"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> int:
        try:
            nbytes = value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if 0 < nbytes < LEAST_LIMIT:
            self.fail(f"{value} is less than {size(LEAST_LIMIT)}", param, ctx)
        return nbytes


_DEFAULTS = MemoryOptions()

memory_options = section(
    "Shared memory",
    click.option(
        "--max-inflight-bytes", type=_Bytes(), default=_DEFAULTS.max_inflight_bytes, metavar="SIZE",
        help="Most shared memory for the inputs of all requests at a time, as in 4GiB; one that does not fit gets 503 before its tensors are read. Default: half of the memory of the machine or container.",
    ),
    click.option(
        "--shm-limit-per-instance", type=_Bytes(), default=_DEFAULTS.limit_per_instance, metavar="SIZE",
        help="Most shared memory for the outputs of an instance of a model without the parameter shm_limit. Default: half of the memory.",
    ),
    click.option(
        "--shm-idle-secs", type=click.FloatRange(min=0, min_open=True), default=_DEFAULTS.idle_secs, show_default=True, metavar="SECONDS",
        help="Shared memory that is in no use for so long goes back to the system, and device memory to the GPU.",
    ),
)  # fmt: skip
"""Adds the options to a command, whose arguments of their names are those of ``read``."""


def read(arguments: Dict[str, Any]) -> MemoryOptions:
    """What the options are, from a command's arguments, which are taken out of them."""
    return MemoryOptions(arguments.pop("max_inflight_bytes"), arguments.pop("shm_limit_per_instance"), arguments.pop("shm_idle_secs"))
