"""The load cases: which request, from how many connections, and how one run of each is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from .client import verify
from .load import run_socket, run_wrk
from .report import Sample
from .servers import Server
from .wire import InferRequest, WireTensor, build_request, bytes_tensor

_MIB = 1 << 20
_STRINGS = 1000
_STRING_BYTES = 100


@dataclass(frozen=True, slots=True)
class LoadCase:
    """A request under load. `make` is called when the case runs: bodies are up to 64 MiB."""

    name: str
    make: Callable[[], InferRequest]
    connections: int = 1
    large: bool = False

    @contextmanager
    def prepared(self, servers: Sequence[Server]) -> Iterator[InferRequest]:
        """The request, which every server has answered right. Raises BenchmarkError if one has not."""
        request = self.make()
        for server in servers:
            verify(server.host, server.port, request)
        yield request

    def measure(self, server: Server, request: InferRequest, seconds: int) -> Sample:
        """One run of load. Raises BenchmarkError if any answer was not right."""
        before = server.cpu()
        if self.large:
            run = run_socket(server.host, server.port, request, seconds)
        else:
            run = run_wrk(server.host, server.port, request, self.connections, seconds)
        after = server.cpu()
        sample: Sample = {
            "requests_per_s": run.requests / run.seconds,
            "p50_ms": run.p50 * 1e3,
            "p99_ms": run.p99 * 1e3,
            "client_us": run.cpu / run.requests * 1e6,
            "client_cores": run.cpu / run.seconds,
        }
        if self.large:
            # An identity: as many bytes of tensor come back as go in.
            sample["gb_per_s"] = request.output_bytes * run.requests / run.seconds / 1e9
        if before is not None and after is not None:
            parent, stubs = after.since(before)
            sample["parent_us"] = parent / run.requests * 1e6
            sample["stub_us"] = stubs / run.requests * 1e6
            sample["parent_cores"] = parent / run.seconds
            sample["stub_cores"] = stubs / run.seconds
        return sample


def _fp32(values: np.ndarray) -> WireTensor:
    return WireTensor("FP32", values.shape, values.astype("<f4").tobytes())


def add_sub(model: str = "add_sub") -> InferRequest:
    """Two FP32[4] in, their sum and difference out."""
    left, right = np.random.default_rng(1).random((2, 4), dtype=np.float32)
    return build_request(
        model,
        {"INPUT0": _fp32(left), "INPUT1": _fp32(right)},
        {"OUTPUT0": _fp32(left + right), "OUTPUT1": _fp32(left - right)},
    )


def identity_fp32(size: int, model: str = "identity_fp32") -> InferRequest:
    """`size` bytes of FP32 in and out."""
    tensor = _fp32(np.random.default_rng(2).random(size // 4, dtype=np.float32))
    return build_request(model, {"INPUT0": tensor}, {"OUTPUT0": tensor})


def ensemble(size: int) -> InferRequest:
    """The same of an ensemble of three such models, one after the other."""
    return identity_fp32(size, "ensemble_fp32")


def identity_batch() -> InferRequest:
    """One FP32[1, 4] in and out, of a model with dynamic batching."""
    tensor = _fp32(np.random.default_rng(4).random((1, 4), dtype=np.float32))
    return build_request("identity_batch", {"INPUT0": tensor}, {"OUTPUT0": tensor})


def product(model: str) -> InferRequest:
    """One image, FP32[1, 3, 64, 64], in; of the product with the weights of a model with dynamic batching, FP32[1, 16], out. All are small
    integers, so that no order of adding them up makes a difference."""
    weights = np.random.default_rng(0).integers(-4, 5, (256, 16)).astype(np.float32)
    image = np.random.default_rng(5).integers(0, 8, (1, 3, 64, 64)).astype(np.float32)
    return build_request(model, {"INPUT0": _fp32(image)}, {"OUTPUT0": _fp32(image.reshape(1, 256, 48).sum(axis=2) @ weights)})


def identity_bytes(varying: bool) -> InferRequest:
    """1,000 strings in and out: of 100 bytes each, or of 0 to 200 with a mean of exactly 100."""
    random = np.random.default_rng(3)
    lengths = np.full(_STRINGS, _STRING_BYTES)
    if varying:
        half = random.integers(0, 2 * _STRING_BYTES, _STRINGS // 2, endpoint=True)
        lengths = random.permutation(np.concatenate([half, 2 * _STRING_BYTES - half]))
    tensor = bytes_tensor([random.bytes(int(length)) for length in lengths])
    return build_request("identity_bytes", {"INPUT0": tensor}, {"OUTPUT0": tensor})


LOAD_CASES: Sequence[LoadCase] = (
    *(LoadCase(f"small-{count}", add_sub, connections=count) for count in (1, 4, 16, 64)),
    *(LoadCase(f"large-{size}M", partial(identity_fp32, size * _MIB), large=True) for size in (1, 16, 64)),
    *(LoadCase(f"batch-{count}", identity_batch, connections=count) for count in (16, 64)),
    *(
        LoadCase(f"batch-{how}", partial(product, f"product_{how.replace('-', '_')}"), connections=64)
        for how in ("by-hand", "concatenated")
    ),
    *(LoadCase(f"ensemble-small-{count}", partial(ensemble, 16), connections=count) for count in (1, 4)),
    LoadCase("ensemble-large-16M", partial(ensemble, 16 * _MIB), large=True),
    LoadCase("bytes-equal", partial(identity_bytes, varying=False)),
    LoadCase("bytes-varying", partial(identity_bytes, varying=True)),
)
