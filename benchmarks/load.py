"""The two load generators: wrk for many small requests, a blocking socket for few large ones.

A client written in Python costs as much per small request as the server under test and would halve
what two cores can show; wrk, in C, costs a few microseconds. But wrk reads replies in pieces of
8 KiB, which makes it the bottleneck for megabytes, where one large recv_into() costs least.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .client import HttpClient
from .errors import BenchmarkError
from .wire import InferRequest

_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What a load generator saw. Times in seconds; `cpu` is the generator's own."""

    requests: int
    seconds: float
    p50: float
    p99: float
    cpu: float

    @classmethod
    def of(cls, latencies: Sequence[float], seconds: float, cpu: float) -> LoadRun:
        """From the latency of each request."""
        p50, p99 = np.percentile(latencies, [50, 99])
        return cls(len(latencies), seconds, float(p50), float(p99), cpu)


def require_wrk() -> str:
    """The path of wrk; BenchmarkError with the package's name where there is none."""
    path = shutil.which("wrk")
    if path is None:
        raise BenchmarkError("the load generator 'wrk' is missing; install the package 'wrk' (Debian, Ubuntu: apt-get install wrk)")
    return path


def run_wrk(host: str, port: int, request: InferRequest, connections: int, seconds: int) -> LoadRun:
    """Keeps one request in flight on each of `connections` connections for whole `seconds`.

    Raises BenchmarkError if any reply was not a success or was shorter than its tensors: a server
    that refuses is fast, and must not look good for it.
    """
    with tempfile.NamedTemporaryFile(prefix="benchmark-body-") as body:
        body.write(request.body)
        body.flush()
        # One thread: it can saturate any of these servers, and leaves them the other cores.
        command = [
            require_wrk(), "--threads", "1", "--connections", str(connections),
            "--duration", f"{seconds}s", "--timeout", "30s", "--script", str(_SCRIPT),
            f"http://{host}:{port}{request.path}", "--", body.name, str(request.header_length),
        ]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode != 0:
        raise BenchmarkError(f"wrk failed: {finished.stderr.strip() or finished.stdout.strip()}")
    figures = json.loads(finished.stdout.splitlines()[-1])
    where = f"{request.model} at {connections} connections"
    if figures["refused"] or figures["failed"]:
        raise BenchmarkError(
            f"{where}: {figures['refused']} replies with an error status, {figures['failed']} requests failed, of {figures['requests']}"
        )
    if not figures["requests"]:
        raise BenchmarkError(f"{where}: not one reply within {seconds} s")
    if figures["bytes"] < figures["requests"] * request.reply_bytes:
        raise BenchmarkError(f"{where}: replies are shorter than the tensors they should carry")
    return LoadRun(
        requests=figures["requests"],
        seconds=figures["microseconds"] / 1e6,
        p50=figures["p50_us"] / 1e6,
        p99=figures["p99_us"] / 1e6,
        cpu=after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
    )


def run_socket(host: str, port: int, request: InferRequest, seconds: int) -> LoadRun:
    """Keeps one request in flight on one connection for `seconds`.

    Every reply must have status 200 and the first one's length; the last is compared in full.
    Raises BenchmarkError if not.
    """
    latencies: list[int] = []
    with HttpClient(host, port) as client:
        cpu = time.process_time()
        now = time.perf_counter_ns()
        deadline = now + seconds * 1_000_000_000
        length = None
        while now < deadline:
            reply = client.infer(request)
            ended = time.perf_counter_ns()
            latencies.append(ended - now)
            now = ended
            status, _, body = reply
            length = len(body) if length is None else length
            if status != 200 or len(body) != length:
                break
        cpu = time.process_time() - cpu
        request.check(*reply)
    return LoadRun.of([nanoseconds / 1e9 for nanoseconds in latencies], sum(latencies) / 1e9, cpu)
