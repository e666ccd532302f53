"""perf_analyzer, the load generator of Triton's users, in C++: what it sees of a server over gRPC.

It keeps the tensors of every request until it ends, and what that costs lies between its requests: so a run is one of so many requests and
not of so many seconds, and the rate is worked out from the latencies.
"""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import BenchmarkError
from .load import LoadRun
from .servers import Server
from .wire import InferRequest

_REQUESTS = 40
_ENDS_WITHIN = 120
# Columns of its export, in microseconds: together the mean latency.
_PARTS = (
    "Client Send",
    "Network+Server Send/Recv",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
    "Client Recv",
)


def require_perf_analyzer(command: str) -> str:
    """The path of the executable; BenchmarkError where there is none."""
    path = shutil.which(command)
    if path is None:
        raise BenchmarkError(f"there is no perf_analyzer at '{command}' (PyPI: perf-analyzer)")
    return path


def run_perf_analyzer(path: str, server: Server, request: InferRequest, connections: int) -> LoadRun:
    """Requests for the same model with tensors of the same shapes, `connections` at a time. Raises BenchmarkError if it fails."""
    shapes = [f"{tensor['name']}:{','.join(map(str, tensor['shape']))}" for tensor in request.header["inputs"]]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        export = Path(directory, "export.csv")
        command = [
            path, "-i", "grpc", "-u", f"{server.host}:{server.grpc_port}", "-m", request.model, *(f"--shape={shape}" for shape in shapes),
            "--concurrency-range", str(connections), "--request-count", str(_REQUESTS), "-f", str(export),
        ]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_ENDS_WITHIN)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if finished.returncode:
            raise BenchmarkError(f"perf_analyzer failed: {finished.stderr.strip() or finished.stdout.strip()}")
        with export.open(newline="") as file:
            (row,) = csv.DictReader(file)
    mean = sum(float(row[part]) for part in _PARTS) / 1e6
    return LoadRun(
        requests=_REQUESTS,
        seconds=_REQUESTS * mean / connections,
        p50=float(row["p50 latency"]) / 1e6,
        p99=float(row["p99 latency"]) / 1e6,
        cpu=after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
    )
