"""A server under load over gRPC, alone or side by side with another.

Small requests come from h2load, which is written in C: a client in Python takes longer over a request than the servers do. Large ones
come from tritonclient, as its users have it, and from a client that sends the same bytes again and again and looks at none that come
back, so that what is left is the server and the connection.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cases import add_sub, identity_fp32
from .errors import BenchmarkError
from .report import Result, Sample, save, show
from .serve import LOAD_COLUMNS
from .servers import STUBLET_GRPC_COMMAND, Server, Target, distinct, parse_command
from .startup import MODELS
from .wire import InferRequest

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_16M = 16 << 20
# Latencies in seconds of the requests of one run, how long it took, and the CPU seconds of the client.
Run = tuple[Sequence[float], float, float]


def _message(request: InferRequest) -> Any:
    """The ``ModelInferRequest`` of the tensors that the request has over HTTP."""
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferRequest(model_name=request.model)
    start = request.header_length
    for tensor in json.loads(request.body[:start])["inputs"]:
        end = start + tensor["parameters"]["binary_data_size"]
        message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        message.raw_input_contents.append(request.body[start:end])
        start = end
    return message


def _check(server: Server, request: InferRequest) -> None:
    """Compares one reply with the right one, byte for byte."""
    from tritonclient.grpc import service_pb2

    with _channel(server) as call:
        reply = service_pb2.ModelInferResponse.FromString(call(_message(request).SerializeToString()))
    found = {output.name: data for output, data in zip(reply.outputs, reply.raw_output_contents, strict=True)}
    if found != {name: tensor.raw for name, tensor in request.expected.items()}:
        raise BenchmarkError(f"{server.name}: {request.model} gave something else back")


@contextmanager
def _channel(server: Server) -> Iterator[Callable[[bytes], bytes]]:
    import grpc

    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}", options=_UNLIMITED) as channel:
        yield channel.unary_unary(_METHOD)


def _h2load(server: Server, request: InferRequest, connections: int, seconds: float) -> Run:
    """One request in flight on each of several connections. Raises BenchmarkError if a reply was no reply."""
    message = _message(request).SerializeToString()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        body, log = Path(directory, "body"), Path(directory, "log")
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
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
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return [int(microseconds) / 1e6 for _, _, microseconds in rows], seconds, cpu


def require_h2load() -> str:
    """The path of h2load; BenchmarkError with the package's name where there is none."""
    path = shutil.which("h2load")
    if path is None:
        raise BenchmarkError(
            "the load generator 'h2load' is missing; install 'nghttp2-client' (Debian, Ubuntu: apt-get install nghttp2-client)"
        )
    return path


def _raw(server: Server, request: InferRequest, _connections: int, seconds: float) -> Run:
    """The same bytes again and again."""
    message = _message(request).SerializeToString()
    with _channel(server) as call:
        return _repeat(lambda: call(message), seconds)


def _tritonclient(server: Server, request: InferRequest, _connections: int, seconds: float) -> Run:
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


def _repeat(ask: Callable[[], object], seconds: float) -> Run:
    latencies = []
    cpu = time.process_time()
    began = now = time.perf_counter()
    while now < began + seconds:
        ask()
        ended = time.perf_counter()
        latencies.append(ended - now)
        now = ended
    return latencies, now - began, time.process_time() - cpu


@dataclass(frozen=True, slots=True)
class Case:
    """A request under load; `load` takes (server, request, connections, seconds)."""

    name: str
    make: Callable[[], InferRequest]
    load: Callable[[Server, InferRequest, int, float], Run]
    connections: int = 1
    large: int = 0

    def measure(self, server: Server, request: InferRequest, seconds: float) -> Sample:
        before = server.cpu()
        latencies, took, cpu = self.load(server, request, self.connections, seconds)
        after = server.cpu()
        p50, p99 = np.percentile(latencies, [50, 99])
        count = len(latencies)
        sample: Sample = {"requests_per_s": count / took, "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "client_us": cpu / count * 1e6}
        if self.large:
            # Counted once, though as many bytes come back.
            sample["gb_per_s"] = self.large / statistics.median(latencies) / 1e9
        if before is not None and after is not None:
            parent, stubs = after.since(before)
            sample["parent_us"] = parent / count * 1e6
            sample["stub_us"] = stubs / count * 1e6
        return sample


def _large() -> InferRequest:
    return identity_fp32(_16M)


CASES: Sequence[Case] = (
    *(Case(f"small-{count}", add_sub, _h2load, connections=count) for count in (1, 4, 16, 64)),
    Case("large-16M", _large, _tritonclient, large=_16M),
    Case("large-16M-raw", _large, _raw, large=_16M),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--command", metavar="CMD", help="start this server, with {repo}, {port} and {grpc_port} filled in (stublet)")
    parser.add_argument("--against-command", metavar="CMD", help="start this one to compare with (none)")
    parser.add_argument("--seconds", type=float, help="for each case, server and round (2)")
    parser.add_argument("--rounds", type=int, help="how often each server gets its turn (7)")
    parser.add_argument("--quick", action="store_true", help="1 second, 1 round: does it work?")
    parser.add_argument("--only", metavar="CASE[,CASE]", default="", help=f"of {', '.join(case.name for case in CASES)}")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/grpc.json"))


def run(arguments: argparse.Namespace) -> None:
    seconds = arguments.seconds or (1.0 if arguments.quick else 2.0)
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    names = [case.name for case in CASES]
    chosen = arguments.only.split(",") if arguments.only else names
    if unknown := set(chosen) - set(names):
        raise BenchmarkError(f"no case '{unknown.pop()}'; there are {', '.join(names)}")
    require_h2load()
    targets = [Target(parse_command(arguments.command) if arguments.command else STUBLET_GRPC_COMMAND)]
    if arguments.against_command:
        targets.append(Target(parse_command(arguments.against_command)))
    with ExitStack() as stack:
        servers = [stack.enter_context(target.serving(MODELS)) for target in targets]
        sides = dict(zip(distinct([server.name for server in servers]), servers, strict=True))
        results = [_run_case(sides, case, seconds, rounds) for case in CASES if case.name in chosen]
    show(f"Load over gRPC, medians of {rounds} x {seconds:g} s", results, LOAD_COLUMNS, spread="p50_ms")
    save(arguments.output, {"seconds": seconds, "rounds": rounds}, results)


def _run_case(sides: Mapping[str, Server], case: Case, seconds: float, rounds: int) -> Result:
    print(f"{case.name} ...", file=sys.stderr)
    request = case.make()
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for server in sides.values():
        _check(server, request)
        case.measure(server, request, min(seconds, 1.0))
    for _ in range(rounds):
        for name, server in sides.items():
            samples[name].append(case.measure(server, request, seconds))
    return Result(case.name, samples)
