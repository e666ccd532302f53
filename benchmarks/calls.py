"""What a model pays for the calls that it makes while it executes, alone or side by side with another server.

The models time themselves and answer with the figure, so that neither HTTP nor the client is part of it. Responses of a decoupled
model are timed where they are sent and where they arrive.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .client import HttpClient
from .errors import BenchmarkError
from .report import Column, Result, Sample, save, show
from .servers import STUBLET_GRPC_COMMAND, Server, Target, distinct, parse_command
from .streams import Ask, embedded_stream, grpc_stream
from .wire import HEADER_LENGTH, InferRequest, WireTensor, build_request

MODELS = Path(__file__).with_name("calling_models")
_16M = (16 << 20) // 4
_EMBEDDED_STREAM, _GRPC_STREAM = "stream", "stream-grpc"
_RESPONSES = 1000
_LINE = b"benchmark line "
# A server that logs on its own time may be behind the model by this much.
_LOGGED_WITHIN = 10.0
_COLUMNS = (
    Column("call_us", "us per call", ".2f"),
    Column("gb_per_s", "GB/s"),
    Column("blocked_ms", "all of them, ms", ".1f"),
    Column("lost", "lines lost", ".0f"),
    Column("parent_us", "parent us", ".1f"),
    Column("stub_us", "stub us", ".1f"),
)
_STREAM_COLUMNS = (
    Column("responses_per_s", "responses/s", ".0f"),
    Column("first_ms", "first ms", ".3f"),
    Column("send_us", "us per send", ".1f"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model that makes `count` calls within one request; `inputs` are its others."""

    name: str
    model: str
    count: int
    inputs: Mapping[str, int] = field(default_factory=dict)
    large: bool = False
    logs: bool = False

    def request(self) -> InferRequest:
        inputs = {"COUNT": self.count, **self.inputs}
        tensors = {name: WireTensor("INT32", (1,), value.to_bytes(4, "little")) for name, value in inputs.items()}
        return build_request(self.model, tensors, {"NANOSECONDS": WireTensor("INT64", (1,), bytes(8))})

    def measure(self, server: Server, client: HttpClient, seconds: float) -> Sample:
        """One turn: the request again and again. Raises BenchmarkError if an answer is an error."""
        request = self.request()
        taken: list[int] = []
        lost = 0
        before = server.cpu()
        deadline = time.perf_counter() + seconds
        while not taken or time.perf_counter() < deadline:
            logged = server.log.stat().st_size if server.log else 0
            taken.append(_ask(client, request))
            if self.logs and server.log:
                lost += self.count - _lines_since(server.log, logged, self.count)
        after = server.cpu()
        nanoseconds = statistics.median(taken) / self.count
        sample: Sample = {"call_us": nanoseconds / 1e3}
        if self.large:
            # Counted once a call, though as many bytes come back.
            sample["gb_per_s"] = 4 * self.inputs["ELEMENTS"] / nanoseconds
        if self.logs:
            sample["blocked_ms"] = nanoseconds * self.count / 1e6
            sample["lost"] = lost
        if before is not None and after is not None:
            parent, stubs = after.since(before)
            calls = len(taken) * self.count
            sample["parent_us"] = parent / calls * 1e6
            sample["stub_us"] = stubs / calls * 1e6
        return sample


CASES: Sequence[Case] = (
    Case("exec", "exec_cost", 100, {"ELEMENTS": 4, "KEPT": 0}),
    Case("exec-16M", "exec_cost", 10, {"ELEMENTS": _16M, "KEPT": 0}, large=True),
    Case("exec-16M-kept", "exec_cost", 10, {"ELEMENTS": _16M, "KEPT": 1}, large=True),
    Case("async-exec-16", "async_exec_cost", 160, {"ELEMENTS": 4}),
    Case("is-cancelled", "is_cancelled_cost", 10_000),
    Case("log-10k", "log_info_cost", 10_000, logs=True),
    Case("log-100k", "log_info_cost", 100_000, logs=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command = "with {repo} and {port} filled in, and {grpc_port} for the streams"
    parser.add_argument("--command", metavar="CMD", help=f"start this server, {command} (stublet)")
    parser.add_argument("--against-command", metavar="CMD", help="start this one to compare with (none)")
    parser.add_argument("--seconds", type=float, help="for each case, server and round (1)")
    parser.add_argument("--rounds", type=int, help="how often each server gets its turn (7)")
    parser.add_argument("--quick", action="store_true", help="0.2 seconds, 1 round: does it work?")
    parser.add_argument("--only", metavar="CASE[,CASE]", default="", help=f"of {', '.join(_case_names())}")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/calls.json"))


def run(arguments: argparse.Namespace) -> None:
    seconds = arguments.seconds or (0.2 if arguments.quick else 1.0)
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    chosen = arguments.only.split(",") if arguments.only else _case_names()
    if unknown := set(chosen) - set(_case_names()):
        raise BenchmarkError(f"no case '{unknown.pop()}'; there are {', '.join(_case_names())}")
    targets = [Target(parse_command(arguments.command) if arguments.command else STUBLET_GRPC_COMMAND)]
    if arguments.against_command:
        targets.append(Target(parse_command(arguments.against_command)))
    with ExitStack() as stack:
        servers = [stack.enter_context(target.serving(MODELS)) for target in targets]
        names = distinct([server.name for server in servers])
        sides = dict(zip(names, servers, strict=True))
        calls = [_run_case(sides, case, seconds, rounds) for case in CASES if case.name in chosen]
        # Only this package's own server is there without a network.
        embedded = None if arguments.command else names[0]
        streams = [
            _run_streams(case, sides, embedded if case == _EMBEDDED_STREAM else None, seconds, rounds)
            for case in (_EMBEDDED_STREAM, _GRPC_STREAM)
            if case in chosen
        ]
    heading = f"medians of {rounds} x {seconds:g} s"
    if calls:
        show(f"Calls of a model, {heading}", calls, _COLUMNS, spread="call_us")
    if streams:
        show(f"{_RESPONSES} responses to one request, {heading}", streams, _STREAM_COLUMNS, spread="responses_per_s")
    save(arguments.output, {"seconds": seconds, "rounds": rounds}, [*calls, *streams])


def _case_names() -> list[str]:
    return [*(case.name for case in CASES), _EMBEDDED_STREAM, _GRPC_STREAM]


def _run_case(sides: Mapping[str, Server], case: Case, seconds: float, rounds: int) -> Result:
    print(f"{case.name} ...", file=sys.stderr)
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    with ExitStack() as stack:
        clients = {name: stack.enter_context(HttpClient(server.host, server.port)) for name, server in sides.items()}
        # Round 0 goes unmeasured: memory that is touched and threads that are started for the first time.
        for number in range(rounds + 1):
            for name, server in sides.items():
                sample = case.measure(server, clients[name], seconds)
                if number:
                    samples[name].append(sample)
    return Result(case.name, samples)


def _ask(client: HttpClient, request: InferRequest) -> int:
    """What the model answers: nanoseconds."""
    status, headers, body = client.infer(request)
    if status != 200:
        raise BenchmarkError(f"{request.model}: HTTP {status}: {bytes(body[:500])!r}")
    return int.from_bytes(body[int(headers[HEADER_LENGTH.lower()]) :], "little")


def _lines_since(log: Path, start: int, expected: int) -> int:
    """The model's lines in what was logged after the first `start` bytes; waits for those that are expected."""
    deadline = time.monotonic() + _LOGGED_WITHIN
    while True:
        with log.open("rb") as file:
            file.seek(start)
            found = file.read().count(_LINE)
        if found >= expected or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _run_streams(case: str, sides: Mapping[str, Server], embedded: str | None, seconds: float, rounds: int) -> Result:
    """`embedded`: the side that is asked in this process; the others are asked over gRPC."""
    print(f"{case} ...", file=sys.stderr)
    with ExitStack() as stack:
        asks = {
            name: stack.enter_context(embedded_stream(MODELS) if name == embedded else _grpc_stream(case, server))
            for name, server in sides.items()
        }
        samples: dict[str, list[Sample]] = {name: [] for name in asks}
        for number in range(rounds + 1):
            for name, ask in asks.items():
                sample = _measure_stream(ask, seconds)
                if number:
                    samples[name].append(sample)
    return Result(case, samples)


def _grpc_stream(case: str, server: Server) -> AbstractContextManager[Ask]:
    if server.grpc_port is None:
        raise BenchmarkError(f"the case '{case}' needs a command with {{grpc_port}} for {server.name}")
    return grpc_stream(server.host, server.grpc_port)


def _measure_stream(ask: Ask, seconds: float) -> Sample:
    first: list[int] = []
    whole: list[int] = []
    sent: list[int] = []
    deadline = time.perf_counter() + seconds
    while not whole or time.perf_counter() < deadline:
        began = time.perf_counter_ns()
        *arrivals, (ended, last) = ask(_RESPONSES)
        if [int(outputs["INDEX"][0]) for _, outputs in arrivals] != list(range(_RESPONSES)):
            raise BenchmarkError(f"the stream brought something else than the responses 0 to {_RESPONSES - 1} in their order")
        first.append(arrivals[0][0] - began)
        whole.append(ended - began)
        sent.append(int(last["NANOSECONDS"][0]))
    return {
        "responses_per_s": _RESPONSES / statistics.median(whole) * 1e9,
        "first_ms": statistics.median(first) / 1e6,
        "send_us": statistics.median(sent) / _RESPONSES / 1e3,
    }
