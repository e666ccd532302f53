"""The command line's options of gRPC."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Callable

import click

from ..grpc.options import COMPRESSION_LEVELS, GrpcOptions

_DEFAULTS = GrpcOptions()
_RESTRICTED = "restricted_protocols"
_MILLISECONDS = click.IntRange(min=0, max=2**31 - 1)
_HELP = {
    "address": "Address to listen on; that of HTTP if it is not given.",
    "port": "0 takes a free one.",
    "header_forward_pattern": "Headers whose whole name matches become parameters of their request.",
    "restricted_protocols": "These groups of calls need the header triton-grpc-protocol-KEY; for the groups see --http-restricted-api.",
    "infer_response_compression_level": "How responses are compressed.",
    "use_ssl": "Serve TLS, with --grpc-server-cert and --grpc-server-key.",
    "use_ssl_mutual": "Serve TLS, and ask clients for a certificate that --grpc-root-cert vouches for.",
    "server_cert": "PEM file with the certificate of the server.",
    "server_key": "PEM file with its private key.",
    "root_cert": "PEM file with the certificates that vouch for clients.",
    "keepalive_time": "Milliseconds without traffic after which a connection is checked.",
    "keepalive_timeout": "Milliseconds that such a check may take.",
    "keepalive_permit_without_calls": "Check connections without calls, too.",
    "http2_max_pings_without_data": "So many checks without data in between.",
    "http2_min_recv_ping_interval_without_data": "Milliseconds that clients' checks without data have to be apart.",
    "http2_max_ping_strikes": "So many checks too early before a connection is closed; 0 for any number.",
    "max_connection_age": "Milliseconds after which a connection is closed; 0 for never.",
    "max_connection_age_grace": "Milliseconds that its calls have then; 0 for any time.",
    "max_connections": "Most connections at a time; one more is closed. 0 for as many as the limit of open files permits.",
    "max_connection_idle": "Milliseconds without a call after which a connection is closed; 0 for never.",
    "max_calls": "Most calls at a time, streams among them; one more fails with UNAVAILABLE. 0 for any number.",
}


def grpc_options(function: Any) -> Any:
    """Adds the options to a command, whose arguments of their names are those of ``read``."""
    for field in reversed(fields(GrpcOptions)):
        function = _option(field.name)(function)
    return click.option("--allow-grpc", type=click.BOOL, default=True, show_default=True, help="Serve gRPC.")(function)


def read(arguments: Any) -> GrpcOptions:
    """The options from a command's arguments, which are taken out of them."""
    values = {field.name: arguments.pop(_parameter(field.name)) for field in fields(GrpcOptions)}
    return GrpcOptions(**{**values, _RESTRICTED: list(values[_RESTRICTED])})


def _parameter(name: str) -> str:
    return "reuse_grpc_port" if name == "reuse_port" else "grpc_" + name


def _option(name: str) -> Callable[[Any], Any]:
    if name == _RESTRICTED:
        form = "PROTOCOL,...:KEY=VALUE"
        return click.option("--grpc-restricted-protocol", _parameter(name), multiple=True, metavar=form, help=_HELP[name])
    default = getattr(_DEFAULTS, name)
    kind: Any = click.STRING
    if name == "port":
        kind = click.IntRange(0, 65535)
    elif name == "infer_response_compression_level":
        kind = click.Choice(COMPRESSION_LEVELS)
    elif isinstance(default, bool):
        kind = click.BOOL
    elif isinstance(default, int):
        kind = _MILLISECONDS
    elif name not in ("address", "header_forward_pattern"):
        kind = click.Path(dir_okay=False)
    parameter = _parameter(name)
    help_text = _HELP.get(name, "Other servers may listen on the same port, and share what comes.")
    return click.option(
        "--" + parameter.replace("_", "-"), parameter, type=kind, default=default, show_default=default != "", help=help_text
    )
