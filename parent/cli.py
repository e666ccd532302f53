"""The command ``stublet``. Flags have tritonserver's spellings (spec 6.13)."""

from __future__ import annotations

import sys
from typing import Any, Callable, List, Optional, Tuple

import click

from .options import BackendOptions, OptionError, ServerOptions

EXIT_OK, EXIT_FAILED = 0, 1  # 2, for wrong arguments, is click's

_BOOL = click.BOOL


class _BackendConfig(click.ParamType):
    name = "backend,key=value"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Tuple[str, str, str]:
        backend, comma, setting = str(value).partition(",")
        key, equals, text = setting.partition("=")
        if not comma or not equals or not key:
            self.fail(f"'{value}' is not of the form <backend>,<key>=<value>", param, ctx)
        return backend, key, text


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .version import TRITON_VERSION, stublet_version

        click.echo(f"stublet {stublet_version()} (behaves as Triton {TRITON_VERSION}; Python {sys.version.split()[0]})")
        ctx.exit(EXIT_OK)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print versions and exit.")
def cli() -> None:
    """Serves models written for Triton Inference Server's Python backend, without Triton."""


def _group(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_repository_options = _group(
    click.argument("repositories", nargs=-1, type=click.Path(), metavar="[MODEL_REPOSITORY]..."),
    click.option(
        "--model-repository", "--model-store", "more_repositories", multiple=True, type=click.Path(),
        help="A directory of models; may be given several times, or as an argument.",
    ),
    click.option(
        "--model-control-mode", type=click.Choice(["none", "poll", "explicit"]), default="none", show_default=True,
        help="none: every model is loaded at the start. explicit: those of --load-model are; others come and go by request. poll is not in this version.",
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
        "--exit-timeout-secs", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Bound on an orderly end, in seconds.",
    ),
    click.option(
        "--backend-config", type=_BackendConfig(), multiple=True, metavar="python,KEY=VALUE",
        help="shm-default-byte-size, shm-growth-byte-size (bytes; default 1048576 each); auto-complete-timeout-seconds (default 300); stub-timeout-seconds is checked and, as in Triton, has no effect.",
    ),
    click.option("--id", "server_id", default="triton", show_default=True, help="Name in the server's metadata."),
)  # fmt: skip

_http_options = _group(
    click.option("--allow-http", type=_BOOL, default=True, show_default=True, help="Serve HTTP."),
    click.option("--http-address", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every interface."),
    click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."),
    click.option(
        "--http-max-input-size", type=click.IntRange(min=1), default=64 << 20, show_default=True,
        help="Most bytes of JSON in a request; binary tensors are not limited by it.",
    ),
    click.option("--allow-grpc", type=_BOOL, default=False, show_default=True, help="gRPC is not in this version."),
    click.option("--allow-metrics", type=_BOOL, default=True, show_default=True, help="Serve metrics, for Prometheus, at /metrics."),
    click.option("--metrics-address", default="", metavar="TEXT", help="Address for metrics; that of HTTP if it is not given."),
    click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True, help="0 takes a free one."),
)  # fmt: skip

_log_options = _group(
    click.option("--log-verbose", type=int, default=0, show_default=True, help="1 or more logs verbose messages too."),
    click.option("--log-info", type=_BOOL, default=True, show_default=True, help="Log messages of level info."),
    click.option("--log-warning", type=_BOOL, default=True, show_default=True, help="Log messages of level warning."),
    click.option("--log-error", type=_BOOL, default=True, show_default=True, help="Log messages of level error."),
    click.option("--log-format", type=click.Choice(["default", "ISO8601"]), default="default", show_default=True, help="Form of a line."),
    click.option("--log-file", type=click.Path(dir_okay=False), help="Log to this file instead of standard error."),
)


@cli.command()
@_repository_options
@_http_options
@_log_options
def serve(
    repositories: Tuple[str, ...],
    more_repositories: Tuple[str, ...],
    model_control_mode: str,
    load_models: Tuple[str, ...],
    backend_directory: str,
    disable_auto_complete_config: bool,
    strict_model_config: bool,
    exit_on_error: bool,
    strict_readiness: bool,
    exit_timeout_secs: float,
    backend_config: List[Tuple[str, str, str]],
    server_id: str,
    allow_http: bool,
    http_address: str,
    http_port: int,
    http_max_input_size: int,
    allow_grpc: bool,
    allow_metrics: bool,
    metrics_address: str,
    metrics_port: int,
    log_verbose: int,
    log_info: bool,
    log_warning: bool,
    log_error: bool,
    log_format: str,
    log_file: Optional[str],
) -> None:
    """Serves the models of one or more repositories until Ctrl-C or SIGTERM.

    \b
    Example:
      stublet serve examples/models
      curl localhost:8000/v2/health/ready -i

    Exit status: 0 after an orderly end, 1 when a model does not load (see --exit-on-error) or a port is taken, 2 for wrong arguments.
    """
    if not repositories and not more_repositories:
        raise click.UsageError("name a model repository, for instance: stublet serve examples/models")
    if allow_grpc:
        raise click.UsageError("gRPC is not in this version; leave --allow-grpc out, or false")
    try:
        backend = BackendOptions.parse([(key, text) for name, key, text in backend_config if name in ("python", "")])
        options = ServerOptions(
            model_repositories=[*repositories, *more_repositories],
            model_control_mode=model_control_mode,
            load_models=list(load_models),
            backend_directory=backend_directory,
            auto_complete_config=not (disable_auto_complete_config or strict_model_config),
            allow_http=allow_http,
            http_address=http_address,
            http_port=http_port,
            http_max_input_size=http_max_input_size,
            allow_metrics=allow_metrics,
            metrics_address=metrics_address,
            metrics_port=metrics_port,
            server_id=server_id,
            exit_on_error=exit_on_error,
            exit_timeout_secs=exit_timeout_secs,
            strict_readiness=strict_readiness,
            backend=backend,
        )
        options.check()
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    from .fork_server import ForkServer

    fork_server = ForkServer.start()
    from . import log, run

    try:
        log.set_up(verbose=log_verbose, info=log_info, warning=log_warning, error=log_error, iso8601=log_format == "ISO8601", file=log_file)
    except OSError as error:
        fork_server.stop()
        raise click.UsageError(f"--log-file: {error}") from error
    sys.exit(run.run(options, fork_server))


def main() -> None:
    """Entry point of the command."""
    cli(prog_name="stublet")
