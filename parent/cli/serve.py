"""``stublet serve``: tritonserver's options, with its spellings (spec 6.13)."""

from __future__ import annotations

import logging
import sys
from typing import Any, List, Optional, Sequence, Tuple

import click

from ..metrics.options import MetricsOptions
from ..options import LOG_FORMATS, MODEL_CONTROL_MODES, BackendOptions, LogOptions, OptionError, ServerOptions, TlsOptions
from . import grpc_flags, limit_flags, memory_flags, placement_flags, queue_flags, trace_flags
from .ignored_options import ignored_options, ignored_text
from .sections import SectionedCommand, section

logger = logging.getLogger(__name__)

_BOOL = click.BOOL


class _BackendConfig(click.ParamType):
    name = "backend,key=value"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Tuple[str, str, str]:
        backend, comma, setting = str(value).partition(",")
        key, equals, text = setting.partition("=")
        if not comma or not equals or not key:
            self.fail(f"'{value}' is not of the form <backend>,<key>=<value>", param, ctx)
        return backend, key, text


_repository_options = section(
    "Models and server",
    click.argument("repositories", nargs=-1, type=click.Path(), metavar="[MODEL_REPOSITORY]..."),
    click.option(
        "--model-repository", "--model-store", "more_repositories", multiple=True, type=click.Path(),
        help="A directory of models; may be given several times, or as an argument.",
    ),
    click.option(
        "--model-control-mode", type=click.Choice(MODEL_CONTROL_MODES), default="none", show_default=True,
        help="none: every model is loaded at the start. poll: models follow what is in the repositories. explicit: those of --load-model are loaded; others come and go by request.",
    ),
    click.option(
        "--repository-poll-secs", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), default=15.0, show_default=True,
        help="With --model-control-mode=poll, seconds between two looks at the repositories.",
    ),
    click.option(
        "--model-config-name", default="", metavar="NAME", help="Where a model has configs/NAME.pbtxt, that is its configuration.",
    ),
    click.option(
        "--model-load-retry-count", type=click.IntRange(min=0), default=0, show_default=True, help="How often a model that does not load is tried again.",
    ),
    click.option(
        "--load-model", "load_models", multiple=True, metavar="NAME",
        help="With --model-control-mode=explicit, a model to load at the start; may be given several times. * loads all.",
    ),
    click.option(
        "--backend-directory", default="", metavar="PATH", help="Where Python-based backends are: directories with a model.py for many models.",
    ),
    click.option(
        "--disable-auto-complete-config", is_flag=True, help="Models' auto_complete_config is not run, and configurations must be complete.",
    ),
    click.option("--strict-model-config", type=_BOOL, default=False, help="Deprecated: true is --disable-auto-complete-config."),
    click.option(
        "--exit-on-error", type=_BOOL, default=True, show_default=True,
        help="End with status 1 when a model does not load; otherwise serve the others.",
    ),
    click.option(
        "--strict-readiness", type=_BOOL, default=True, show_default=True, help="Ready means that every model is; otherwise that the server is.",
    ),
    click.option(
        "--exit-timeout-secs", metavar="SECONDS", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Bound on an orderly end, in seconds.",
    ),
    click.option(
        "--backend-config", type=_BackendConfig(), multiple=True, metavar="python,KEY=VALUE",
        help="shm-default-byte-size, shm-growth-byte-size (bytes; default 1048576 each); gpu-ipc-segment-byte-size, gpu-ipc-limit-byte-size (bytes of device memory that an instance exports; default 67108864 and 1073741824, and with a limit of 0 tensors on GPUs go through host memory); auto-complete-timeout-seconds (default 300); stub-timeout-seconds is checked and, as in Triton, has no effect.",
    ),
    click.option(
        "--allow-client-shm", type=_BOOL, default=False, show_default=True,
        help="Clients may register their shared memory, and name it in requests instead of sending tensors.",
    ),
    click.option("--id", "server_id", default="triton", show_default=True, help="Name in the server's metadata."),
)  # fmt: skip

_http_options = section(
    "HTTP and metrics",
    click.option("--allow-http", type=_BOOL, default=True, show_default=True, help="Serve HTTP."),
    click.option("--http-address", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every interface."),
    click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."),
    click.option(
        "--http-max-input-size", type=click.IntRange(min=1), default=64 << 20, show_default=True,
        help="Most bytes of JSON in a request; binary tensors are not limited by it.",
    ),
    click.option(
        "--http-header-forward-pattern", default="", metavar="REGEX",
        help="Headers whose whole name matches become parameters of their request.",
    ),
    click.option(
        "--http-restricted-api", "http_restricted_apis", multiple=True, metavar="API,...:HEADER=VALUE",
        help="These groups of endpoints need that header: health, metadata, inference, shared-memory, model-config, model-repository, statistics, trace, logging.",
    ),
    click.option("--http-use-ssl", type=_BOOL, default=False, show_default=True, help="Encrypt HTTP; needs the two files that follow."),
    click.option("--http-server-cert", default="", metavar="PATH", help="The server's certificate, and those that it rests on, in PEM."),
    click.option("--http-server-key", default="", metavar="PATH", help="The key of the server's certificate, in PEM."),
    click.option("--http-root-cert", default="", metavar="PATH", help="Who signs the certificates of clients, in PEM."),
    click.option(
        "--http-use-ssl-mutual", type=_BOOL, default=False, show_default=True, help="Encrypt HTTP, for clients that have a certificate.",
    ),
    click.option("--allow-metrics", type=_BOOL, default=True, show_default=True, help="Serve metrics, for Prometheus, at /metrics."),
    click.option("--metrics-address", default="", metavar="TEXT", help="Address for metrics; that of HTTP if it is not given."),
    click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True, help="0 takes a free one."),
    click.option(
        "--metrics-interval-ms", type=click.FloatRange(min=1), default=2000.0, show_default=True,
        help="How often the metrics of processors, memory and GPUs are taken, in ms.",
    ),
    click.option(
        "--metrics-config", multiple=True, metavar="KEY=VALUE",
        help="counter_latencies, histogram_latencies, summary_latencies (true or false), summary_quantiles (quantile:error,...).",
    ),
    click.option("--allow-cpu-metrics", type=_BOOL, default=True, show_default=True, help="Metrics of processors and memory."),
    click.option("--allow-gpu-metrics", type=_BOOL, default=True, show_default=True, help="Metrics of GPUs, if there are any."),
)  # fmt: skip

_log_options = section(
    "Log",
    click.option("--log-verbose", type=click.IntRange(min=0), default=0, show_default=True, help="1 or more logs verbose messages too."),
    click.option("--log-info", type=_BOOL, default=True, show_default=True, help="Log messages of level info."),
    click.option("--log-warning", type=_BOOL, default=True, show_default=True, help="Log messages of level warning."),
    click.option("--log-error", type=_BOOL, default=True, show_default=True, help="Log messages of level error."),
    click.option("--log-format", type=click.Choice(LOG_FORMATS), default="default", show_default=True, help="Form of a line."),
    click.option("--log-file", type=click.Path(dir_okay=False), help="Log to this file instead of standard error."),
)


def _metrics(options: MetricsOptions, settings: Sequence[str]) -> MetricsOptions:
    try:
        options.read(settings)
    except ValueError as error:
        raise OptionError(f"--metrics-config: {error}") from error
    return options


@click.command(cls=SectionedCommand)
@_repository_options
@queue_flags.queue_options
@limit_flags.limit_options
@memory_flags.memory_options
@placement_flags.placement_options
@_http_options
@section("gRPC", grpc_flags.grpc_options)
@_log_options
@section("Traces", trace_flags.trace_options)
@ignored_options
def serve(
    repositories: Tuple[str, ...],
    more_repositories: Tuple[str, ...],
    model_control_mode: str,
    repository_poll_secs: float,
    model_config_name: str,
    model_load_retry_count: int,
    load_models: Tuple[str, ...],
    backend_directory: str,
    disable_auto_complete_config: bool,
    strict_model_config: bool,
    exit_on_error: bool,
    strict_readiness: bool,
    exit_timeout_secs: float,
    backend_config: List[Tuple[str, str, str]],
    server_id: str,
    allow_client_shm: bool,
    allow_http: bool,
    http_address: str,
    http_port: int,
    http_max_input_size: int,
    http_header_forward_pattern: str,
    http_restricted_apis: Tuple[str, ...],
    http_use_ssl: bool,
    http_server_cert: str,
    http_server_key: str,
    http_root_cert: str,
    http_use_ssl_mutual: bool,
    allow_metrics: bool,
    metrics_address: str,
    metrics_port: int,
    metrics_interval_ms: float,
    metrics_config: Tuple[str, ...],
    allow_cpu_metrics: bool,
    allow_gpu_metrics: bool,
    log_verbose: int,
    log_info: bool,
    log_warning: bool,
    log_error: bool,
    log_format: str,
    log_file: Optional[str],
    allow_grpc: bool,
    **others: Any,
) -> None:
    """Serves the models of one or more repositories until Ctrl-C or SIGTERM.

    \b
    Example:
      stublet serve examples/models
      curl localhost:8000/v2/health/ready -i

    Exit status: 0 after an orderly end, 1 when a model does not load (see --exit-on-error) or a port is taken, 2 for wrong arguments,
    130 or 143 after a second Ctrl-C or SIGTERM, which ends everything at once.

    All other options of tritonserver are accepted; the log names those that were given, and that they have no effect here.
    """
    if not repositories and not more_repositories:
        raise click.UsageError("name a model repository, for instance: stublet serve examples/models")
    try:
        backend = BackendOptions.parse([(key, text) for name, key, text in backend_config if name in ("python", "")])
        options = ServerOptions(
            model_repositories=[*repositories, *more_repositories],
            model_control_mode=model_control_mode,
            repository_poll_secs=repository_poll_secs,
            model_config_name=model_config_name,
            model_load_retry_count=model_load_retry_count,
            load_models=list(load_models),
            backend_directory=backend_directory,
            auto_complete_config=not (disable_auto_complete_config or strict_model_config),
            allow_http=allow_http,
            http_address=http_address,
            http_port=http_port,
            http_max_input_size=http_max_input_size,
            http_header_forward_pattern=http_header_forward_pattern,
            http_restricted_apis=list(http_restricted_apis),
            http_tls=TlsOptions(http_use_ssl, http_server_cert, http_server_key, http_root_cert, http_use_ssl_mutual),
            allow_grpc=allow_grpc,
            grpc=grpc_flags.read(others),
            allow_metrics=allow_metrics,
            metrics_address=metrics_address,
            metrics_port=metrics_port,
            metrics=_metrics(MetricsOptions(metrics_interval_ms, allow_cpu_metrics, allow_gpu_metrics), metrics_config),
            server_id=server_id,
            allow_client_shm=allow_client_shm,
            exit_on_error=exit_on_error,
            exit_timeout_secs=exit_timeout_secs,
            strict_readiness=strict_readiness,
            shared_memory=memory_flags.read(others),
            backend=backend,
            **placement_flags.read(others),
            **queue_flags.read(others),
            **limit_flags.read(others),
            trace=trace_flags.read(others),
            log=LogOptions(log_file or "", log_info, log_warning, log_error, log_verbose, log_format),
        )
        options.check()
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    from ..fork_server import ForkServer

    fork_server = ForkServer.start()
    from .. import log, run

    try:
        log.set_up(options.log)
    except OSError as error:
        fork_server.stop()
        raise click.UsageError(f"--log-file: {error}") from error
    ignored = ignored_text(click.get_current_context())
    if ignored:
        logger.warning("%s", ignored)
    sys.exit(run.run(options, fork_server))
