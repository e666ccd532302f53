"""The round trip from parent to stub and back without a network, next to what any must cost.

The embedded server and a bare eventfd ping-pong between two Python processes take turns in one run;
their ratio holds where the absolute times, which are mostly wake-ups of idle cores, do not. Then
the time that a model needs to get at a large input and at a small one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from .errors import BenchmarkError
from .pingpong import Peer, peer
from .processes import cpu_seconds, descendants
from .report import Column, Result, Sample, save, show
from .startup import MODELS

_SIZES = {"64 MiB": 64 << 20, "64 bytes": 64}
_COLUMNS = (
    Column("p50_us", "p50 us", ".1f"),
    Column("p99_us", "p99 us", ".1f"),
    Column("calls_per_s", "calls/s", ".0f"),
    Column("near_cpu_us", "parent CPU us", ".1f"),
    Column("far_cpu_us", "stub CPU us", ".1f"),
)
_INPUT_COLUMNS = (Column("as_numpy_us", "get input, as_numpy us", ".2f"),)


class Embedded(Protocol):
    """What is used of `stublet.parent.Server`."""

    def infer(self, model: str, inputs: Mapping[str, np.ndarray], /) -> Mapping[str, np.ndarray]: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, help="for each side and round (1)")
    parser.add_argument("--rounds", type=int, help="how often each side gets its turn (7)")
    parser.add_argument("--quick", action="store_true", help="0.2 seconds, 1 round: does it work?")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/roundtrip.json"))


def run(arguments: argparse.Namespace) -> None:
    # Here, because the other commands can drive any server, without stublet installed.
    from stublet.parent import Server

    seconds = arguments.seconds or (0.2 if arguments.quick else 1.0)
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    with peer() as far, Server(str(MODELS)) as server:
        trips = _round_trips(server, far, seconds, rounds)
        inputs = _input_cost(server, seconds, rounds)
    heading = f"medians of {rounds} rounds of {seconds:g} s"
    show(f"Round trip within one machine, {heading}", [trips], _COLUMNS, spread="p50_us")
    show(f"An input in the model, {heading}", [inputs], _INPUT_COLUMNS, spread="as_numpy_us")
    save(arguments.output, {"seconds": seconds, "rounds": rounds}, [trips, inputs])


def _round_trips(server: Embedded, far: Peer, seconds: float, rounds: int) -> Result:
    print("round trip ...", file=sys.stderr)
    left, right = np.random.default_rng(1).random((2, 4), dtype=np.float32)
    tensors = {"INPUT0": left, "INPUT1": right}

    def infer() -> None:
        server.infer("add_sub", tensors)

    outputs = server.infer("add_sub", tensors)
    if not (np.array_equal(outputs["OUTPUT0"], left + right) and np.array_equal(outputs["OUTPUT1"], left - right)):
        raise BenchmarkError(f"add_sub answered wrongly: {outputs}")
    stubs = [pid for pid in descendants(os.getpid()) if pid != far.pid]
    sides: dict[str, tuple[Callable[[], None], list[int]]] = {
        "stublet": (infer, stubs),
        "eventfd": (far.round_trip, [far.pid]),
    }
    for call, pids in sides.values():
        _repeat(call, pids, seconds)
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (call, pids) in sides.items():
            samples[name].append(_repeat(call, pids, seconds))
    return Result("add_sub", samples)


def _repeat(call: Callable[[], None], far: list[int], seconds: float) -> Sample:
    """Calls one after another; `far` are the processes at the other end."""
    taken: list[int] = []
    far_cpu, near_cpu = sum(map(cpu_seconds, far)), time.process_time()
    began = now = time.perf_counter_ns()
    deadline = began + int(seconds * 1e9)
    while now < deadline:
        call()
        ended = time.perf_counter_ns()
        taken.append(ended - now)
        now = ended
    near_cpu = time.process_time() - near_cpu
    far_cpu = sum(map(cpu_seconds, far)) - far_cpu
    p50, p99 = np.percentile(taken, [50, 99]) / 1e3
    return {
        "p50_us": float(p50),
        "p99_us": float(p99),
        "calls_per_s": len(taken) / (now - began) * 1e9,
        "near_cpu_us": near_cpu / len(taken) * 1e6,
        "far_cpu_us": far_cpu / len(taken) * 1e6,
    }


def _input_cost(server: Embedded, seconds: float, rounds: int) -> Result:
    """Both inputs are of the same requests, so that the caches are as cold for the one as for the other."""
    print("input ...", file=sys.stderr)
    inputs = {f"INPUT{i}": np.ones(size // 4, dtype=np.float32) for i, size in enumerate(_SIZES.values())}
    server.infer("as_numpy_cost", inputs)
    samples: dict[str, list[Sample]] = {name: [] for name in _SIZES}
    for _ in range(rounds):
        taken = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(taken) < 2:
            taken.append(server.infer("as_numpy_cost", inputs)["NANOSECONDS"])
        for name, nanoseconds in zip(_SIZES, np.median(taken, axis=0), strict=True):
            samples[name].append({"as_numpy_us": float(nanoseconds) / 1e3})
    return Result("as_numpy_cost", samples)
