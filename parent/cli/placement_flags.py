"""The command line's options of where instances run, of what they share, and of what they may do."""

from __future__ import annotations

from typing import Any, Dict

import click

from ..sandbox.config import NAMES
from ..scheduling.rate_limits import MODES
from .sections import section

placement_options = section(
    "Placement",
    click.option(
        "--host-policy", "host_policies", multiple=True, metavar="POLICY,KEY=VALUE",
        help="cpu-cores (0-3,8) or numa-node (a number): the cores for instances of that policy: the host_policy of their group, else cpu or model, as their kind.",
    ),
    click.option(
        "--rate-limit", type=click.Choice(MODES), default="off", show_default=True,
        help="execution_count: an instance executes when it gets the resources that its group's rate_limiter names.",
    ),
    click.option(
        "--rate-limit-resource", "rate_limit_resources", multiple=True, metavar="NAME:COUNT[:DEVICE]",
        help="How much there is of a resource; otherwise as much as the instance needs that needs most of it.",
    ),
    click.option(
        "--sandbox", multiple=True, metavar="KEY=VALUE",
        help="For the instances of models without a parameter of that name: " + ", ".join(NAMES) + ".",
    ),
)  # fmt: skip
"""Adds the options to a command, whose arguments of their names are those of ``read``."""


def read(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """What the options are to ``ServerOptions``, from a command's arguments, which are taken out of them."""
    return {
        "rate_limit": arguments.pop("rate_limit"),
        "rate_limit_resources": list(arguments.pop("rate_limit_resources")),
        "host_policies": list(arguments.pop("host_policies")),
        "sandbox": list(arguments.pop("sandbox")),
    }
