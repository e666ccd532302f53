"""From the kill of an idle stub to the next answer, without and with an instance in reserve.

Each round kills the stub of another model, because the second restart of one within a short time is not immediate. The clock starts
with SIGKILL; the first request follows at once and is sent again if it fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cases import add_sub
from .client import HttpClient
from .errors import BenchmarkError
from .report import Column, Result, Sample, save, show
from .servers import STUBLET_COMMAND, Server, Target

MODELS = Path(__file__).with_name("models")
_OK = 200
_WITHIN = 30.0
_COLUMNS = (Column("median_ms", "median ms", ".1f"), Column("worst_ms", "worst ms", ".1f"), Column("failed", "failed requests", ".0f"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, help="kills for each case (20)")
    parser.add_argument("--quick", action="store_true", help="2 rounds: does it work?")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/recovery.json"))


def run(arguments: argparse.Namespace) -> None:
    rounds = arguments.rounds or (2 if arguments.quick else 20)
    taken = {}
    for case, spares in (("restart", 0), ("spare", 1)):
        print(f"{case} ...", file=sys.stderr)
        with _models(rounds, spares) as repository, Target(STUBLET_COMMAND).serving(repository) as server:
            taken[case] = [_recover(server, f"add_sub_{number}", spares) for number in range(rounds)]
    results = [Result(case, {"stublet": [_summary(samples)]}) for case, samples in taken.items()]
    show(f"kill -9 of an idle stub of add_sub to the next answer, {rounds} times", results, _COLUMNS)
    save(arguments.output, {"rounds": rounds}, [Result(case, {"stublet": samples}) for case, samples in taken.items()])


@contextmanager
def _models(count: int, spares: int) -> Iterator[Path]:
    """A temporary repository of copies of add_sub: add_sub_0, add_sub_1, ..."""
    with tempfile.TemporaryDirectory(prefix="benchmark-models-") as folder:
        for number in range(count):
            copy = Path(folder, f"add_sub_{number}")
            shutil.copytree(MODELS / "add_sub", copy, ignore=shutil.ignore_patterns("__pycache__"))
            text = (copy / "config.pbtxt").read_text().replace('"add_sub"', f'"{copy.name}"')
            (copy / "config.pbtxt").write_text(f'{text}\nparameters {{ key: "spares" value {{ string_value: "{spares}" }} }}\n')
        yield Path(folder)


def _recover(server: Server, model: str, spares: int) -> Sample:
    """One round: `recovery_ms`, and how many requests `failed` meanwhile."""
    request = add_sub(model)
    failed = 0
    with HttpClient(server.host, server.port) as client:
        status, _, _ = client.infer(request)
        if status != _OK:
            raise BenchmarkError(f"{model} answers {status} before anything was done to it")
        pid = _settled(server, model, spares)
        killed = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while client.infer(request)[0] != _OK:
            failed += 1
            if time.perf_counter() - killed > _WITHIN:
                raise BenchmarkError(f"{model} did not come back within {_WITHIN:.0f} s")
        return {"recovery_ms": (time.perf_counter() - killed) * 1e3, "failed": failed}


def _settled(server: Server, model: str, spares: int) -> int:
    """The pid of the stub that serves, when as many as there should be are in reserve, of every model."""
    deadline = time.perf_counter() + _WITHIN
    while time.perf_counter() < deadline:
        with urllib.request.urlopen(f"http://{server.host}:{server.port}/v2/stublet/instances") as answer:
            models: Sequence[Any] = json.load(answer)["models"]
        states = [instance["state"] for one in models for instance in one["instances"]]
        if states.count("SPARE") == spares * len(models) and states.count("READY") == len(models):
            (found,) = [one for one in models if one["name"] == model]
            (pid,) = [instance["pid"] for instance in found["instances"] if instance["state"] == "READY"]
            return int(pid)
        time.sleep(0.01)
    raise BenchmarkError(f"the instances of {model} do not become ready")


def _summary(samples: Sequence[Sample]) -> Sample:
    times = [sample["recovery_ms"] for sample in samples]
    return {"median_ms": statistics.median(times), "worst_ms": max(times), "failed": sum(sample["failed"] for sample in samples)}
