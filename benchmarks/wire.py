"""Requests and replies of the KServe v2 protocol over HTTP, with the binary tensor extension.

A request is built once and sent many times, so a load generator spends nothing on encoding; what a
reply must contain is known beforehand, byte for byte, so checking needs no decoding of tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import BenchmarkError

HEADER_LENGTH = "Inference-Header-Content-Length"
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor in its wire form: little-endian, row-major, BYTES with a length before each item."""

    datatype: str
    shape: tuple[int, ...]
    raw: bytes


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request as it goes over the wire, and the outputs that must come back."""

    model: str
    header_length: int
    body: bytes
    expected: Mapping[str, WireTensor]

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @property
    def header(self) -> dict[str, Any]:
        """The JSON before the binary tensors."""
        header: dict[str, Any] = json.loads(self.body[: self.header_length])
        return header

    @property
    def output_bytes(self) -> int:
        """Bytes of the tensors that come back."""
        return sum(len(tensor.raw) for tensor in self.expected.values())

    @property
    def reply_bytes(self) -> int:
        """Bytes of tensors in a right reply; a whole reply is longer than that."""
        return self.output_bytes

    def check(self, status: int, headers: Mapping[str, str], body: memoryview) -> None:
        """Compares a reply with what is expected.

        `headers` has lower-case names. Raises BenchmarkError at the first difference.
        """
        _check_binary(self, status, headers, body)


def build_request(model: str, inputs: Mapping[str, WireTensor], expected: Mapping[str, WireTensor]) -> InferRequest:
    """Binary tensors in, binary tensors out."""
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(tensor.shape),
                    "datatype": tensor.datatype,
                    "parameters": {"binary_data_size": len(tensor.raw)},
                }
                for name, tensor in inputs.items()
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in expected],
        },
        separators=(",", ":"),
    ).encode()
    body = b"".join([header, *(tensor.raw for tensor in inputs.values())])
    return InferRequest(model, len(header), body, expected)


def bytes_tensor(items: Sequence[bytes]) -> WireTensor:
    """A one-dimensional BYTES tensor."""
    raw = b"".join(struct.pack("<I", len(item)) + item for item in items)
    return WireTensor("BYTES", (len(items),), raw)


def _check_binary(request: InferRequest, status: int, headers: Mapping[str, str], body: memoryview) -> None:
    if status != 200:
        raise BenchmarkError(f"{request.model}: HTTP {status}: {bytes(body[:500])!r}")
    length = headers.get(HEADER_LENGTH.lower())
    if length is None:
        raise BenchmarkError(f"{request.model}: the reply has no {HEADER_LENGTH}: not binary")
    position = int(length)
    found: set[str] = set()
    for output in json.loads(bytes(body[:position]))["outputs"]:
        name = output["name"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            raise BenchmarkError(f"{request.model}: output '{name}' came back as JSON, not binary")
        got = WireTensor(output["datatype"], tuple(output["shape"]), b"")
        want = request.expected.get(name)
        if want is None:
            raise BenchmarkError(f"{request.model}: output '{name}' was not asked for")
        if (got.datatype, got.shape) != (want.datatype, want.shape):
            raise BenchmarkError(
                f"{request.model}: output '{name}' is {got.datatype}{list(got.shape)}, not {want.datatype}{list(want.shape)}"
            )
        if not same_bytes(body[position : position + size], want.raw):
            raise BenchmarkError(f"{request.model}: output '{name}' has wrong contents")
        position += size
        found.add(name)
    missing = request.expected.keys() - found
    if missing or position != len(body):
        raise BenchmarkError(f"{request.model}: missing outputs {sorted(missing)}, {len(body) - position} bytes too many")


def same_bytes(view: memoryview, raw: bytes) -> bool:
    """Whether they are the same bytes."""
    # In pieces: comparing a memoryview goes byte by byte, and a copy of it whole touches new pages.
    return len(view) == len(raw) and all(
        bytes(view[start : start + _PIECE]) == raw[start : start + _PIECE] for start in range(0, len(raw), _PIECE)
    )
