"""What can be set, with tritonserver's defaults except where a safer one is told (``http_address``)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Sequence, Tuple

from .grpc.options import GrpcOptions
from .http.limits import HttpLimits
from .memory_limits import MemoryOptions
from .metrics.options import MetricsOptions
from .placement.host_policy import HostPolicies
from .sandbox.config import parse_defaults
from .scheduling.rate_limits import MODES, ResourceLimit
from .tracing.options import TraceOptions


class OptionError(Exception):
    """An option has a value that it cannot have."""


@dataclass(slots=True)
class BackendOptions:
    """``--backend-config=python,<key>=<value>`` (spec 2.12). Sizes in bytes. ``stub_timeout_seconds`` is checked and, as in Triton, has
    no effect: a slow ``initialize`` is waited for. ``auto_complete_timeout_seconds`` bounds a model's ``auto_complete_config``, with
    the import of the model. ``gpu_ipc_limit_byte_size`` is of the device memory that an instance exports on each GPU, in segments of at
    least ``gpu_ipc_segment_byte_size``; with 0, tensors go through host memory."""

    shm_default_byte_size: int = 1 << 20
    shm_growth_byte_size: int = 1 << 20
    gpu_ipc_segment_byte_size: int = 64 << 20
    gpu_ipc_limit_byte_size: int = 1 << 30
    stub_timeout_seconds: int = 30
    auto_complete_timeout_seconds: int = 300

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
    "gpu-ipc-segment-byte-size": (1, "can't be smaller than or equal to zero."),
    "gpu-ipc-limit-byte-size": (0, "can't be smaller than zero."),
    "stub-timeout-seconds": (1, "can't be smaller than or equal to zero."),
    "auto-complete-timeout-seconds": (1, "can't be smaller than or equal to zero."),
}
_MEANINGLESS_HERE = {
    "shm-region-prefix-name", "thread-pool-size", "shm_message_queue_size", "default-max-batch-size", "backend-directory",
}  # fmt: skip


LOG_FORMATS = ("default", "ISO8601", "json")


@dataclass(slots=True)
class LogOptions:
    """The log: its ``file``, "" for standard error; which levels it has; its ``format``, one of ``LOG_FORMATS``."""

    file: str = ""
    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    format: str = "default"


@dataclass(slots=True)
class TlsOptions:
    """Encryption of a port: whether to ``use`` it; the PEM files of the server's certificate (with its chain) and key, and of those that
    sign clients' certificates; ``mutual``: a client must show one."""

    use: bool = False
    server_cert: str = ""
    server_key: str = ""
    root_cert: str = ""
    mutual: bool = False


ALL_MODELS = "*"
DEFAULT_MAX_QUEUE_SIZE = 32768
"""Of each model: more than clients keep open, and little enough for the memory that small requests take."""
MODEL_CONTROL_MODES = ("none", "poll", "explicit")


@dataclass(slots=True)
class ServerOptions:
    """Everything a server is started with. ``exit_timeout_secs`` bounds the whole of an orderly end. ``model_control_mode`` is "none"
    (every model is loaded at the start, and stays), "poll" (models follow what is in the repositories, with a look at them every
    ``repository_poll_secs``) or "explicit" (``load_models`` are loaded, and models come and go). ``model_config_name`` names the file in
    a model's ``configs`` that goes before its ``config.pbtxt``. ``model_load_retry_count`` is how often a version that does not load is
    tried again. ``backend_directory`` holds Python-based backends. ``auto_complete_config`` permits models to complete their
    configuration. ``metrics_address`` is, when empty, ``http_address``. ``rate_limit`` is "off" or "execution_count", with which
    ``rate_limit_resources`` count (``<name>:<count>[:<device>]``); ``host_policies`` say on which cores instances run
    (``<policy>,<setting>=<value>``). ``response_cache_byte_size`` is the size of the response cache; 0 for none. ``max_queue_size`` is how
    many requests may wait for a model whose configuration does not say; 0 for any number. ``expose_tracebacks``: clients are told the
    tracebacks of errors in models. ``sandbox`` are parameters (``<name>=<value>``) for the sandbox of models that do not have them."""

    model_repositories: List[str] = field(default_factory=list)
    model_control_mode: str = "none"
    repository_poll_secs: float = 15
    load_models: List[str] = field(default_factory=list)
    model_config_name: str = ""
    model_load_retry_count: int = 0
    backend_directory: str = ""
    auto_complete_config: bool = True
    allow_http: bool = True
    http_address: str = "127.0.0.1"
    http_port: int = 8000
    http_max_input_size: int = 64 << 20
    http_header_forward_pattern: str = ""
    http_restricted_apis: List[str] = field(default_factory=list)
    http_tls: TlsOptions = field(default_factory=TlsOptions)
    http_limits: HttpLimits = field(default_factory=HttpLimits)
    allow_grpc: bool = True
    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    allow_metrics: bool = True
    metrics_address: str = ""
    metrics_port: int = 8002
    server_id: str = "triton"
    allow_client_shm: bool = False
    exit_on_error: bool = True
    exit_timeout_secs: float = 30
    sandbox: List[str] = field(default_factory=list)
    strict_readiness: bool = True
    response_cache_byte_size: int = 0
    max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE
    expose_tracebacks: bool = False
    rate_limit: str = "off"
    rate_limit_resources: List[str] = field(default_factory=list)
    host_policies: List[str] = field(default_factory=list)
    shared_memory: MemoryOptions = field(default_factory=MemoryOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    log: LogOptions = field(default_factory=LogOptions)
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    trace: TraceOptions = field(default_factory=TraceOptions)

    @property
    def explicit(self) -> bool:
        """Whether models may be loaded and unloaded while the server runs."""
        return self.model_control_mode == "explicit"

    def check(self) -> None:
        """Checks what depends on more than one option.

        Raises:
            OptionError: with Triton's text where it has one.
        """
        if self.model_control_mode not in MODEL_CONTROL_MODES:
            raise OptionError(f"--model-control-mode={self.model_control_mode}: the modes are {', '.join(MODEL_CONTROL_MODES)}")
        if self.repository_poll_secs <= 0:
            raise OptionError("--repository-poll-secs must be above 0")
        if os.sep in self.model_config_name:
            raise OptionError(f"--model-config-name: '{self.model_config_name}' must be the name of a file in configs/, without .pbtxt")
        if self.load_models and not self.explicit:
            raise OptionError("Use of '--load-model' requires setting '--model-control-mode=explicit' as well.")
        if ALL_MODELS in self.load_models and len(set(self.load_models)) > 1:
            raise OptionError("Wildcard model name '*' must be the ONLY startup model if specified at all.")
        if self.rate_limit not in MODES:
            raise OptionError(f"--rate-limit={self.rate_limit}: it is one of {', '.join(MODES)}")
        _check_all("--rate-limit-resource", ResourceLimit.parse, self.rate_limit_resources)
        _check_all("--sandbox", parse_defaults, [self.sandbox])
        _check_all("--host-policy", HostPolicies, [self.host_policies])
        if self.backend_directory and not os.path.isdir(self.backend_directory):
            raise OptionError(f"--backend-directory: '{self.backend_directory}' is not a directory")


def _check_all(option: str, read: Callable[[Any], object], values: Iterable[Any]) -> None:
    for value in values:
        try:
            read(value)
        except ValueError as error:
            raise OptionError(f"{option}: {error}") from error
