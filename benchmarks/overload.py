"""What a server does that gets many times as many requests as it can execute, alone or side by side with another server.

The model takes the same time for each request, and its queue holds 50. First it is found out how many requests per second that makes;
then come half as many, ten times as many, and half as many again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from .errors import BenchmarkError
from .open_loop import OpenLoopClient, Outcome
from .report import Column, Result, Sample, save, show
from .servers import STUBLET_COMMAND, Server, Target, distinct, parse_command
from .wire import HEADER_LENGTH, InferRequest, WireTensor, build_request

MODELS = Path(__file__).with_name("overload_models")
_IN_FLIGHT = 16
_EASY = 0.5
_OK, _UNAVAILABLE = 200, 503
# After the overload, a request is as fast as before it when it takes no longer than this many times the 99th percentile then.
_AS_BEFORE = 2.0
_WELL_AGAIN = 20
_COLUMNS = (
    Column("capacity", "capacity /s", ".0f"),
    Column("before_p99_ms", "before: p99 ms", ".1f"),
    Column("offered", "offered /s", ".0f"),
    Column("p50_ms", "accepted: p50 ms", ".1f"),
    Column("p99_ms", "p99 ms", ".1f"),
    Column("max_ms", "max ms", ".1f"),
    Column("held", "of capacity", ".2f"),
    Column("refused", "refused", ".2f"),
    Column("refused_p50_ms", "refused: p50 ms", ".1f"),
    Column("refused_p99_ms", "p99 ms", ".1f"),
    Column("recovery_ms", "recovery ms", ".0f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--command", metavar="CMD", help="start this server, with {repo} and {port} filled in (stublet)")
    parser.add_argument("--against-command", metavar="CMD", help="start this one to compare with (none)")
    parser.add_argument("--seconds", type=float, help="of overload (60)")
    parser.add_argument("--factor", type=float, default=10.0, help="times the capacity (10)")
    parser.add_argument("--cost-ms", type=float, default=4.0, help="that the model takes for a request (4)")
    parser.add_argument("--quick", action="store_true", help="2 seconds: does it work?")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/overload.json"))


def run(arguments: argparse.Namespace) -> None:
    seconds = arguments.seconds or (2.0 if arguments.quick else 60.0)
    targets = [Target(parse_command(arguments.command) if arguments.command else STUBLET_COMMAND)]
    if arguments.against_command:
        targets.append(Target(parse_command(arguments.against_command)))
    taken: list[tuple[str, Sample]] = []
    for target in targets:
        # One after the other: each has the machine, of which the generator takes a part, for itself.
        with target.serving(MODELS) as server:
            print(f"{server.name} ...", file=sys.stderr)
            taken.append((server.name, uvloop.run(_measure(server, arguments.cost_ms, arguments.factor, seconds))))
    names = distinct([name for name, _ in taken])
    result = Result("overload", {name: [sample] for name, (_, sample) in zip(names, taken, strict=True)})
    show(f"{arguments.factor:g} times what can be executed, for {seconds:g} s", [result], _COLUMNS, spread="p99_ms")
    save(arguments.output, {"seconds": seconds, "factor": arguments.factor, "cost_ms": arguments.cost_ms}, [result])


async def _measure(server: Server, cost_ms: float, factor: float, seconds: float) -> Sample:
    aside = max(seconds / 6, 2.0)
    client = OpenLoopClient(server.host, server.port, _message(cost_ms))
    try:
        warm = await client.closed(_IN_FLIGHT, aside / 2)
        capacity = len(_accepted(await client.closed(_IN_FLIGHT, aside))) / aside
        if not warm or not capacity:
            raise BenchmarkError("the server executes nothing")
        easy = capacity * _EASY, aside
        before, during, after = await client.at_rates(easy, (capacity * factor, seconds), easy)
    finally:
        await client.close()
    usual = _ms(_accepted(before), 99)
    return {
        "capacity": capacity,
        "before_p99_ms": usual,
        **_overload(during, capacity),
        "recovery_ms": _recovery(after, usual * _AS_BEFORE),
    }


def _overload(outcomes: Sequence[Outcome], capacity: float) -> Sample:
    accepted = _accepted(outcomes)
    refused = [outcome for outcome in outcomes if outcome.status == _UNAVAILABLE]
    if len(accepted) + len(refused) < len(outcomes):
        raise BenchmarkError(f"other statuses than {_OK} and {_UNAVAILABLE}: {sorted({outcome.status for outcome in outcomes})}")
    seconds = outcomes[-1].due - outcomes[0].due
    sample = {
        "offered": len(outcomes) / seconds,
        "p50_ms": _ms(accepted, 50),
        "p99_ms": _ms(accepted, 99),
        "max_ms": _ms(accepted, 100),
        "held": len(accepted) / seconds / capacity,
        "refused": len(refused) / len(outcomes),
    }
    if refused:
        sample.update(refused_p50_ms=_ms(refused, 50), refused_p99_ms=_ms(refused, 99))
    return sample


def _recovery(after: Sequence[Outcome], limit_ms: float) -> float:
    """Milliseconds from the end of the overload until the first of so many requests in a row was due that were all served in time."""
    in_a_row = 0
    for number, outcome in enumerate(after):
        in_a_row = in_a_row + 1 if outcome.status == _OK and outcome.latency * 1e3 <= limit_ms else 0
        if in_a_row == _WELL_AGAIN:
            return (after[number - in_a_row + 1].due - after[0].due) * 1e3
    raise BenchmarkError(f"it did not recover within {after[-1].due - after[0].due:.1f} s of easy load")


def _accepted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status == _OK]


def _ms(outcomes: Sequence[Outcome], percentile: float) -> float:
    return float(np.percentile([outcome.latency for outcome in outcomes], percentile)) * 1e3


def _message(cost_ms: float) -> bytes:
    cost = WireTensor("INT32", (1, 1), int(cost_ms * 1000).to_bytes(4, "little"))
    request: InferRequest = build_request("fixed_cost", {"COST_US": cost}, {"COST_US": cost})
    head = f"POST {request.path} HTTP/1.1\r\nHost: localhost\r\n{HEADER_LENGTH}: {request.header_length}\r\n"
    return f"{head}Content-Length: {len(request.body)}\r\n\r\n".encode() + request.body
