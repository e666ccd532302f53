"""What can be set, with tritonserver's defaults except where a safer one is told (``http_address``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Sequence, Tuple


class OptionError(Exception):
    """An option has a value that it cannot have."""


@dataclass(slots=True)
class BackendOptions:
    """``--backend-config=python,<key>=<value>`` (spec 2.12). Sizes in bytes. ``stub_timeout_seconds`` is checked and, as in Triton, has
    no effect: a slow ``initialize`` is waited for."""

    shm_default_byte_size: int = 1 << 20
    shm_growth_byte_size: int = 1 << 20
    stub_timeout_seconds: int = 30

    @classmethod
    def parse(cls, settings: Sequence[Tuple[str, str]]) -> BackendOptions:
        """Reads (key, value) pairs; keys of Triton's that mean nothing here are accepted.

        Raises:
            OptionError: an unknown key, or a value out of range, in Triton's words.
        """
        options = cls()
        for key, text in settings:
            if key in _MEANINGLESS_HERE:
                continue
            if key not in _MINIMUM:
                raise OptionError(f"--backend-config=python,{key}={text}: unknown key; known are {', '.join(sorted(_MINIMUM))}")
            try:
                value = int(text)
            except ValueError:
                raise OptionError(f"--backend-config=python,{key}={text}: the value is not an integer (stol)") from None
            least, complaint = _MINIMUM[key]
            if value < least:
                raise OptionError(f"{key} {complaint}")
            setattr(options, key.replace("-", "_"), value)
        return options


_MINIMUM: Dict[str, Tuple[int, str]] = {
    "shm-default-byte-size": (1 << 20, "can't be smaller than 1 MiB"),
    "shm-growth-byte-size": (1, "can't be smaller than or equal to zero."),
    "stub-timeout-seconds": (1, "can't be smaller than or equal to zero."),
}
_MEANINGLESS_HERE = {"shm-region-prefix-name", "thread-pool-size", "shm_message_queue_size", "default-max-batch-size"}


@dataclass(slots=True)
class ServerOptions:
    """Everything a server is started with. ``exit_timeout_secs`` bounds the whole of an orderly end."""

    model_repositories: List[str] = field(default_factory=list)
    allow_http: bool = True
    http_address: str = "127.0.0.1"
    http_port: int = 8000
    http_max_input_size: int = 64 << 20
    server_id: str = "triton"
    exit_on_error: bool = True
    exit_timeout_secs: float = 30
    strict_readiness: bool = True
    backend: BackendOptions = field(default_factory=BackendOptions)
