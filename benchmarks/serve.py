"""A server under load over HTTP, its start-up and its memory, alone or side by side with another.

Without options it starts stublet on the benchmark models. With --against or --against-command,
both servers are measured in turn, round by round: what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from .cases import LOAD_CASES, LoadCase, identity_fp32
from .errors import BenchmarkError
from .load import require_wrk
from .regions import RegionCase
from .report import Column, Result, Sample, save, show
from .servers import STUBLET_COMMAND, Server, Target, distinct, parse_command, parse_url
from .startup import MODELS, measure_bare, measure_start, ten_models

_START = "start"
_CASES = (*LOAD_CASES, *(RegionCase(f"shm-{size}M", partial(identity_fp32, size << 20), large=True) for size in (1, 16)))
LOAD_COLUMNS = (
    Column("requests_per_s", "requests/s", ".0f"),
    Column("p50_ms", "p50 ms", ".3f"),
    Column("p99_ms", "p99 ms", ".3f"),
    Column("gb_per_s", "GB/s"),
    Column("parent_us", "parent us", ".1f"),
    Column("stub_us", "stub us", ".1f"),
    Column("client_us", "client us", ".1f"),
)
_START_COLUMNS = (
    Column("ready_s", "ready s"),
    Column("processes", "processes", ".0f"),
    Column("parent_pss_mib", "parent PSS MiB", ".1f"),
    Column("stub_pss_mib", "PSS MiB each", ".1f"),
    Column("stub_private_mib", "private MiB each", ".1f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("the server (default: stublet, started on benchmarks/models)")
    own.add_argument("--command", metavar="CMD", help="start this one, {repo} and {port} filled in")
    own.add_argument("--url", help="measure one that runs and serves benchmarks/models")
    own.add_argument("--pid", type=int, help="its process; default: whoever listens there")
    other = parser.add_argument_group("the server to compare with (default: none)")
    other.add_argument("--against-command", metavar="CMD", help="as --command")
    other.add_argument("--against", metavar="URL", help="as --url")
    other.add_argument("--against-pid", type=int, metavar="PID", help="as --pid")
    parser.add_argument(
        "--port",
        type=int,
        default=0,
        help="of the first server started here, the second takes the next; default: free ones",
    )
    parser.add_argument("--seconds", type=int, help="of load per case, server and round (2)")
    parser.add_argument("--rounds", type=int, help="how often each server gets its turn (7)")
    parser.add_argument("--quick", action="store_true", help="1 second, 1 round: does it work?")
    parser.add_argument(
        "--only",
        metavar="CASE[,CASE]",
        default="",
        help=f"of {', '.join(_case_names())}; or a group of these, as 'small'",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serve.json"))


def run(arguments: argparse.Namespace) -> None:
    seconds = arguments.seconds or (1 if arguments.quick else 2)
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    chosen = _choose(arguments.only)
    targets = _targets(arguments)
    cases = [case for case in _CASES if case.name in chosen]
    if any(not case.large for case in cases):
        require_wrk()
    load = _run_load(targets, cases, seconds, rounds) if cases else []
    start = []
    if _START in chosen:
        startable = [target for target in targets if target.startable]
        if len(startable) < len(targets):
            print("start: only for servers that a command starts", file=sys.stderr)
        if startable:
            start = _run_start(startable, rounds)
    if not load and not start:
        raise BenchmarkError("nothing was measured")
    if load:
        title = f"Load over HTTP, medians of {rounds} x {seconds} s; cores: parent + stub + client"
        show(title, load, LOAD_COLUMNS, spread="requests_per_s")
    if start:
        title = f"Start to ready with ten models, then idle memory, medians of {rounds} starts"
        show(title, start, _START_COLUMNS, spread="ready_s")
    save(arguments.output, {"seconds": seconds, "rounds": rounds}, [*load, *start])


def _case_names() -> list[str]:
    return [*(case.name for case in _CASES), _START]


def _choose(only: str) -> set[str]:
    names = _case_names()
    chosen: set[str] = set()
    for word in filter(None, only.split(",")):
        matching = {name for name in names if name == word or name.startswith(word + "-")}
        if not matching:
            raise BenchmarkError(f"no case '{word}'; there are {', '.join(names)}")
        chosen |= matching
    return chosen or set(names)


def _targets(arguments: argparse.Namespace) -> list[Target]:
    """Stublet or what stands in for it, then what it is compared with, if anything."""
    sides = [
        _target(arguments.url, arguments.command, arguments.pid, arguments.port),
        _target(
            arguments.against,
            arguments.against_command,
            arguments.against_pid,
            arguments.port + 1 if arguments.port else 0,
        ),
    ]
    own = sides[0] or Target(STUBLET_COMMAND, port=arguments.port)
    return [own, sides[1]] if sides[1] else [own]


def _target(url: str | None, command: str | None, pid: int | None, port: int) -> Target | None:
    if url and command:
        raise BenchmarkError("a server is either running (a URL) or to be started (a command)")
    if command:
        return Target(parse_command(command), port=port)
    if url:
        host, url_port = parse_url(url)
        return Target(host=host, port=url_port, pid=pid)
    return None


def _run_load(targets: Sequence[Target], cases: Sequence[LoadCase], seconds: int, rounds: int) -> list[Result]:
    with ExitStack() as stack:
        servers = [stack.enter_context(target.serving(MODELS)) for target in targets]
        return [_run_case(servers, case, seconds, rounds) for case in cases]


def _run_case(servers: Sequence[Server], case: LoadCase, seconds: int, rounds: int) -> Result:
    print(f"{case.name} ...", file=sys.stderr)
    names = distinct([server.name for server in servers])
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with case.prepared(servers) as request:
        for server in servers:
            # Unmeasured: memory that is touched and threads that are started for the first time.
            case.measure(server, request, 1)
        for _ in range(rounds):
            for name, server in zip(names, servers, strict=True):
                samples[name].append(case.measure(server, request, seconds))
    return Result(case.name, samples)


def _run_start(targets: Sequence[Target], rounds: int) -> list[Result]:
    print(f"{_START} ...", file=sys.stderr)
    with ten_models() as repository:
        # Unmeasured: the page cache and compiled bytecode.
        names = distinct([measure_start(target, repository)[0] for target in targets])
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, target in zip(names, targets, strict=True):
                samples[name].append(measure_start(target, repository)[1])
    return [
        Result("start-10", samples),
        Result("import numpy, 1 process", {"python": [measure_bare(1)]}),
        Result("import numpy, 10 processes", {"python": [measure_bare(10)]}),
    ]
