"""What it costs to hand a tensor on a GPU from model to model by BLS: in device memory, and through the host.

Beside it, the copy into exported memory next to what the device can copy, and torch.multiprocessing queues. Needs a GPU; the latter
needs torch too, in the interpreter of the benchmark.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchmarkError
from .gpu_claims import judge
from .report import Column, Result, Sample, save, show

MODELS = Path(__file__).with_name("gpu_models")
SIZES = {
    "4 KiB": 4 << 10,
    "64 KiB": 64 << 10,
    "1 MiB": 1 << 20,
    "16 MiB": 16 << 20,
    "64 MiB": 64 << 20,
    "256 MiB": 256 << 20,
    "1 GiB": 1 << 30,
}

_WARM_UP = 3
_MOST_CALLS, _LEAST_CALLS = 200, 5
_BYTES_AT_ONCE = 4 << 30
_EXPORTED = 16 << 30
_TORCH_WITHIN = 300.0
_RESULTS = Path("benchmarks/results")
_COLUMNS = (Column("p50_us", "p50 us", ".1f"), Column("p99_us", "p99 us", ".1f"), Column("gb_per_s", "GB/s", ".1f"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, help="how often each side gets its turn (5)")
    parser.add_argument("--quick", action="store_true", help="1 round, up to 16 MiB: does it work?")
    parser.add_argument("--commit", help="what is measured, where git cannot say")
    parser.add_argument("--output", type=Path, help=f"{_RESULTS}/gpu.json; with --quick, gpu-quick.json beside it")


def run(arguments: argparse.Namespace) -> None:
    # Here, because the other commands can drive any server, without stublet installed.
    from stublet.parent import Server
    from stublet.parent.options import BackendOptions, ServerOptions
    from stublet.parent.placement.gpus import supported_gpus

    if not supported_gpus():
        raise BenchmarkError("there is no GPU on this machine that stublet can use, and without one there is nothing to measure")
    about = _gpu(arguments.commit)
    missing = [key for key, value in about.items() if not value]
    if missing and not arguments.quick:
        raise BenchmarkError(f"it cannot be found out what is measured: neither nvidia-smi nor git says the {' and the '.join(missing)}")
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    sizes = {name: size for name, size in SIZES.items() if not arguments.quick or size <= SIZES["16 MiB"]}
    options = ServerOptions(backend=BackendOptions(gpu_ipc_limit_byte_size=_EXPORTED))
    with Server(str(MODELS), options=options) as server:
        by_size = {name: measure(server, size, rounds) for name, size in sizes.items()}
    handed = [Result(f"bls {name}", {side: found[side] for side in ("device", "host")}) for name, found in by_size.items()]
    staged = [Result(f"stage {name}", {side: found[side] for side in ("copy", "copies")}) for name, found in by_size.items()]
    show(f"A tensor from model to model by BLS, medians of {rounds} rounds", handed, _COLUMNS, spread="p50_us")
    show("The copy that it takes, next to what the device can do", staged, _COLUMNS, spread="p50_us")
    beside: list[Result] = []
    if find_spec("torch") is None:
        print("\ntorch is not installed: nothing is said of its queues", file=sys.stderr)
    else:
        queues = [_torch(list(sizes.values())) for _ in range(rounds)]
        for number, (name, size) in enumerate(sizes.items()):
            samples = [_summary(turns[number], size) for turns in queues]
            beside.append(Result(f"queues {name}", {"device": by_size[name]["device"], "torch": samples}))
        show("Next to queues of torch.multiprocessing", beside, _COLUMNS, spread="p50_us")
    results = [*handed, *staged, *beside]
    claims = judge({result.case: result.medians() for result in results})
    print()
    for claim in claims:
        print(f"{'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.text}: {claim.figure:.2f}")
    output = arguments.output or _RESULTS / ("gpu-quick.json" if arguments.quick else "gpu.json")
    save(output, {"rounds": rounds, **about}, results, claims=[claim._asdict() for claim in claims])


def measure(server: Any, nbytes: int, rounds: int) -> Mapping[str, list[Sample]]:
    """The sides, in turn: "device" and "host", a call of a model that takes the tensor so; "copy", as a tensor is staged; "copies", what the
    device can do.

    Raises:
        BenchmarkError: a tensor did not take the way that it should.
    """
    print(f"{nbytes} bytes ...", file=sys.stderr)
    sides = {"device": "takes", "host": "takes_host", "copy": "copy", "copies": "copies"}
    samples: dict[str, list[Sample]] = {side: [] for side in sides}
    for what in sides.values():
        _ask(server, what, nbytes, _WARM_UP)
    for _ in range(rounds):
        for side, what in sides.items():
            took, on_device = _ask(server, what, nbytes, calls(nbytes))
            if on_device is (side == "host"):
                raise BenchmarkError(f"{nbytes} bytes went through {'device' if on_device else 'host'} memory; the log says why")
            samples[side].append(_summary(took, nbytes))
    return samples


def calls(nbytes: int) -> int:
    """How often in a row a tensor of that size is handed over."""
    return max(_LEAST_CALLS, min(_MOST_CALLS, _BYTES_AT_ONCE // nbytes))


def _ask(server: Any, what: str, nbytes: int, count: int) -> tuple[Sequence[int], bool]:
    inputs = {"WHAT": np.array([what.encode()], object), "NBYTES": np.array([nbytes]), "COUNT": np.array([count])}
    answer = server.infer("hands_over", inputs)
    return answer["NANOSECONDS"].tolist(), bool(answer["ON_DEVICE"][0])


def _summary(took: Sequence[int], nbytes: int) -> Sample:
    p50, p99 = np.percentile(took, [50, 99]) / 1e3
    return {"p50_us": float(p50), "p99_us": float(p99), "gb_per_s": nbytes / float(p50) / 1e3}


def _torch(sizes: Sequence[int]) -> Sequence[Sequence[int]]:
    turns = [f"{nbytes}:{calls(nbytes)}" for nbytes in sizes]
    command = [sys.executable, "-m", f"{__package__}.torch_queues", *turns]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TORCH_WITHIN, check=True)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"queues of torch took more than {_TORCH_WITHIN:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"queues of torch failed: {error.stderr.strip()[-500:]}") from error
    took: Sequence[Sequence[int]] = json.loads(done.stdout)
    return took


def _gpu(commit: str | None) -> dict[str, str]:
    """The device, its driver, and what was measured; empty where nothing says it."""
    return {
        "gpu": _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "commit": commit or _said("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
    }


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=MODELS).stdout.strip()
