"""A server under load over gRPC, alone or side by side with another.

Small requests come from h2load, which is written in C: a client in Python takes longer over a request than the servers do. Large ones
come from tritonclient, as its users have it, and from clients that send the same bytes again and again and look at none that come back,
so that what is left is the server and the connection: grpcio's in Python, and h2load. With --perf-analyzer they come from that one too.
Where tensors are in system shared memory, requests are small again.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .cases import add_sub, identity_fp32
from .errors import BenchmarkError
from .load import LoadRun
from .perf_analyzer import require_perf_analyzer, run_perf_analyzer
from .regions import RegionRequest, by_region
from .report import Result, Sample, save, show
from .serve import LOAD_COLUMNS
from .servers import STUBLET_GRPC_COMMAND, Server, Target, distinct, parse_command
from .startup import MODELS
from .wire import InferRequest

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_MIB = 1 << 20
_LARGE = 16 * _MIB
# Parameters of tensors that only HTTP has: over gRPC all of them are binary.
_OF_HTTP = ("binary_data", "binary_data_size")
# Bytes before each message of gRPC: whether it is compressed, and its length.
_PREFIX = 5


def _message(request: InferRequest) -> Any:
    """The ``ModelInferRequest`` of the tensors that the request has over HTTP."""
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferRequest(model_name=request.model)
    start = request.header_length
    for tensor in request.header["inputs"]:
        given = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        _set_parameters(given, tensor["parameters"])
        if size := tensor["parameters"].get("binary_data_size"):
            message.raw_input_contents.append(request.body[start : start + size])
            start += size
    if isinstance(request, RegionRequest):
        for tensor in request.header["outputs"]:
            _set_parameters(message.outputs.add(name=tensor["name"]), tensor["parameters"])
    return message


def _set_parameters(tensor: Any, parameters: Mapping[str, str | int]) -> None:
    for name, value in parameters.items():
        if name not in _OF_HTTP:
            setattr(tensor.parameters[name], "string_param" if isinstance(value, str) else "int64_param", value)


def _check(server: Server, request: InferRequest) -> None:
    """Compares one reply with the right one, byte for byte."""
    from tritonclient.grpc import service_pb2

    if isinstance(request, RegionRequest):
        request.clear()
    with _channel(server) as call:
        reply = service_pb2.ModelInferResponse.FromString(call(_message(request).SerializeToString()))
    if isinstance(request, RegionRequest):
        request.check_memory()
        return
    found = {output.name: data for output, data in zip(reply.outputs, reply.raw_output_contents, strict=True)}
    if found != {name: tensor.raw for name, tensor in request.expected.items()}:
        raise BenchmarkError(f"{server.name}: {request.model} gave something else back")


@contextmanager
def _channel(server: Server) -> Iterator[Callable[[bytes], bytes]]:
    import grpc

    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}", options=_UNLIMITED) as channel:
        yield channel.unary_unary(_METHOD)


def _h2load(server: Server, request: InferRequest, connections: int, seconds: float) -> LoadRun:
    """One request in flight on each of several connections. Raises BenchmarkError if a reply was no reply, or if they were too short."""
    message = _message(request).SerializeToString()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        body, log = Path(directory, "body"), Path(directory, "log")
        body.write_bytes(b"\0" + len(message).to_bytes(_PREFIX - 1, "big") + message)
        command = [
            require_h2load(), "--clients", str(connections), "--max-concurrent-streams", "1", "--duration", f"{seconds:g}",
            "--header", "te: trailers", "--header", "content-type: application/grpc", "--data", str(body), "--log-file", str(log),
            f"http://{server.host}:{server.grpc_port}{_METHOD}",
        ]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if finished.returncode:
            raise BenchmarkError(f"h2load failed: {finished.stderr.strip() or finished.stdout.strip()}")
        rows = [line.split() for line in log.read_text().splitlines()]
    if not rows or any(status != "200" for _, status, _ in rows):
        raise BenchmarkError(f"{server.name}: not every one of {len(rows)} requests was answered")
    data = re.search(r"\((\d+)\) data$", finished.stdout, re.MULTILINE)
    # An error of gRPC's has status 200, too, and no message.
    if data is None or int(data[1]) < len(rows) * (_PREFIX + request.reply_bytes):
        raise BenchmarkError(f"{server.name}: replies are shorter than the tensors they should carry")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return LoadRun.of([int(microseconds) / 1e6 for _, _, microseconds in rows], seconds, cpu)


def require_h2load() -> str:
    """The path of h2load; BenchmarkError with the package's name where there is none."""
    path = shutil.which("h2load")
    if path is None:
        raise BenchmarkError(
            "the load generator 'h2load' is missing; install 'nghttp2-client' (Debian, Ubuntu: apt-get install nghttp2-client)"
        )
    return path


def _raw(server: Server, request: InferRequest, _connections: int, seconds: float) -> LoadRun:
    """The same bytes again and again."""
    message = _message(request).SerializeToString()
    with _channel(server) as call:
        return _repeat(lambda: call(message), seconds)


def _tritonclient(server: Server, request: InferRequest, _connections: int, seconds: float) -> LoadRun:
    """A request made, and an array taken out of the reply, as users do it."""
    from tritonclient import grpc as client

    message = _message(request)
    (tensor,) = message.inputs
    (output,) = request.expected
    array = np.frombuffer(message.raw_input_contents[0], np.float32)
    with client.InferenceServerClient(f"{server.host}:{server.grpc_port}") as connection:

        def ask() -> None:
            given = client.InferInput(tensor.name, array.shape, tensor.datatype)
            given.set_data_from_numpy(array)
            connection.infer(request.model, [given]).as_numpy(output)

        return _repeat(ask, seconds)


def _repeat(ask: Callable[[], object], seconds: float) -> LoadRun:
    latencies = []
    cpu = time.process_time()
    began = now = time.perf_counter()
    while now < began + seconds:
        ask()
        ended = time.perf_counter()
        latencies.append(ended - now)
        now = ended
    return LoadRun.of(latencies, now - began, time.process_time() - cpu)


@dataclass(frozen=True, slots=True)
class Case:
    """A request under load; `load` takes (server, request, connections, seconds)."""

    name: str
    make: Callable[[], InferRequest]
    load: Callable[[Server, InferRequest, int, float], LoadRun]
    connections: int = 1
    large: bool = False

    @contextmanager
    def prepared(self, _servers: Sequence[Server]) -> Iterator[InferRequest]:
        """The request, for as long as it lasts."""
        yield self.make()

    def measure(self, server: Server, request: InferRequest, seconds: float) -> Sample:
        before = server.cpu()
        run = self.load(server, request, self.connections, seconds)
        after = server.cpu()
        sample: Sample = {
            "requests_per_s": run.requests / run.seconds,
            "p50_ms": run.p50 * 1e3,
            "p99_ms": run.p99 * 1e3,
            "client_us": run.cpu / run.requests * 1e6,
        }
        if self.large:
            # Counted once, though as many bytes come back.
            sample["gb_per_s"] = request.output_bytes * run.requests / run.seconds / 1e9
        if before is not None and after is not None:
            parent, stubs = after.since(before)
            sample["parent_us"] = parent / run.requests * 1e6
            sample["stub_us"] = stubs / run.requests * 1e6
        return sample


class RegionCase(Case):
    """A case whose request has one input and one output of the same size, by way of a region."""

    @contextmanager
    def prepared(self, servers: Sequence[Server]) -> Iterator[InferRequest]:
        with by_region(self.make(), servers) as request:
            yield request


_large = partial(identity_fp32, _LARGE)

CASES: Sequence[Case] = (
    *(Case(f"small-{count}", add_sub, _h2load, connections=count) for count in (1, 4, 16, 64)),
    Case("large-16M", _large, _tritonclient, large=True),
    Case("large-16M-raw", _large, _raw, large=True),
    *(Case(f"large-16M-h2load-{count}", _large, _h2load, connections=count, large=True) for count in (1, 4)),
    *(RegionCase(f"shm-{size}M", partial(identity_fp32, size * _MIB), _h2load, large=True) for size in (1, 16)),
)
_PERF_ANALYZER_CASES = {f"large-16M-perf-{count}": count for count in (1, 4)}


def _perf_analyzer_cases(command: str) -> Iterator[Case]:
    path = require_perf_analyzer(command)

    def load(server: Server, request: InferRequest, connections: int, _seconds: float) -> LoadRun:
        return run_perf_analyzer(path, server, request, connections)

    for name, count in _PERF_ANALYZER_CASES.items():
        yield Case(name, _large, load, connections=count, large=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--command", metavar="CMD", help="start this server, with {repo}, {port} and {grpc_port} filled in (stublet)")
    parser.add_argument("--against-command", metavar="CMD", help="start this one to compare with (none)")
    parser.add_argument("--seconds", type=float, help="for each case, server and round (2)")
    parser.add_argument("--rounds", type=int, help="how often each server gets its turn (7)")
    parser.add_argument("--quick", action="store_true", help="1 second, 1 round: does it work?")
    parser.add_argument("--only", metavar="CASE[,CASE]", default="", help=f"of {', '.join(_case_names())}")
    parser.add_argument("--perf-analyzer", metavar="PATH", help=f"the executable, for {' and '.join(_PERF_ANALYZER_CASES)}")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/grpc.json"))


def run(arguments: argparse.Namespace) -> None:
    seconds = arguments.seconds or (1.0 if arguments.quick else 2.0)
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    chosen = arguments.only.split(",") if arguments.only else _case_names()
    if unknown := set(chosen) - set(_case_names()):
        raise BenchmarkError(f"no case '{unknown.pop()}'; there are {', '.join(_case_names())}")
    cases = [*CASES, *(_perf_analyzer_cases(arguments.perf_analyzer) if arguments.perf_analyzer else ())]
    cases = [case for case in cases if case.name in chosen]
    if any(case.load is _h2load for case in cases):
        require_h2load()
    if left_out := [name for name in chosen if name in _PERF_ANALYZER_CASES and not arguments.perf_analyzer]:
        print(f"{', '.join(left_out)}: only with --perf-analyzer", file=sys.stderr)
    if not cases:
        raise BenchmarkError("nothing was measured")
    targets = [Target(parse_command(arguments.command) if arguments.command else STUBLET_GRPC_COMMAND)]
    if arguments.against_command:
        targets.append(Target(parse_command(arguments.against_command)))
    with ExitStack() as stack:
        servers = [stack.enter_context(target.serving(MODELS)) for target in targets]
        sides = dict(zip(distinct([server.name for server in servers]), servers, strict=True))
        results = [_run_case(sides, case, seconds, rounds) for case in cases]
    show(f"Load over gRPC, medians of {rounds} x {seconds:g} s", results, LOAD_COLUMNS, spread="p50_ms")
    save(arguments.output, {"seconds": seconds, "rounds": rounds}, results)


def _case_names() -> list[str]:
    return [*(case.name for case in CASES), *_PERF_ANALYZER_CASES]


def _run_case(sides: Mapping[str, Server], case: Case, seconds: float, rounds: int) -> Result:
    print(f"{case.name} ...", file=sys.stderr)
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    with case.prepared(list(sides.values())) as request:
        for server in sides.values():
            _check(server, request)
            # Unmeasured: memory that is touched and threads that are started for the first time.
            case.measure(server, request, min(seconds, 1.0))
        for _ in range(rounds):
            for name, server in sides.items():
                samples[name].append(case.measure(server, request, seconds))
                _check(server, request)
    return Result(case.name, samples)
