"""``stublet doctor``: what there is on this machine, and what to change."""

from __future__ import annotations

import json
import sys
from typing import List, Tuple

import click

from ..doctor.finding import Finding, Level
from ..doctor.machine import machine_checks
from ..doctor.ports import DEFAULT_PORTS, port_checks
from ..doctor.software import software_checks
from .commands import EXIT_FAILED, EXIT_OK

_COLORS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}
_PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("repositories", nargs=-1, type=click.Path(), metavar="[MODEL_REPOSITORY]...")
@click.option("--address", default="127.0.0.1", show_default=True, help="Where the server is to listen.")
@click.option("--http-port", type=_PORT, default=DEFAULT_PORTS["http"], show_default=True, help="Its port for HTTP.")
@click.option("--grpc-port", type=_PORT, default=DEFAULT_PORTS["grpc"], show_default=True, help="Its port for gRPC.")
@click.option("--metrics-port", type=_PORT, default=DEFAULT_PORTS["metrics"], show_default=True, help="Its port for metrics.")
@click.option("--json", "wants_json", is_flag=True, help="Print the findings as JSON.")
def doctor(repositories: Tuple[str, ...], address: str, http_port: int, grpc_port: int, metrics_port: int, wants_json: bool) -> None:
    """Looks at this machine before a server starts on it: cores, memory, shared memory, limits, packages, GPU, ports, and, of the model
    repositories that are named, the configurations and the interpreters of their environments.

    \b
    Example:
      stublet doctor models/

    Exit status: 0, or 1 when something keeps a server, or a model, from working.
    """
    ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
    findings = [*software_checks(repositories), *machine_checks(), *port_checks(address, ports)]
    print(_as_json(findings) if wants_json else "\n".join(_lines(findings)))
    sys.exit(EXIT_FAILED if any(finding.level is Level.FAILURE for finding in findings) else EXIT_OK)


def _as_json(findings: List[Finding]) -> str:
    return json.dumps([{**finding._asdict(), "level": finding.level.value.lower()} for finding in findings], indent=2)


def _lines(findings: List[Finding]) -> List[str]:
    wide = max(len(finding.what) for finding in findings)
    mark = max(len(level.value) for level in Level)
    lines = []
    for level, what, text, advice in findings:
        shown = click.style(level.value.ljust(mark), fg=_COLORS[level]) if sys.stdout.isatty() else level.value.ljust(mark)
        lines.append(f"{shown}  {what.ljust(wide)}  {text}")
        if advice:
            lines.append(f"{' ' * (mark + wide + 4)}{advice}")
    return lines
