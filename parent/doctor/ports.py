"""Checks of the ports that a server listens on by default."""

from __future__ import annotations

import socket
from typing import Iterator, Mapping

from .finding import Finding, failure, ok

DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}


def port_checks(address: str, ports: Mapping[str, int]) -> Iterator[Finding]:
    """Whether each port can be had, by having it for a moment.

    Args:
        ports: by the name of the front end, as in ``--http-port``.
    """
    for name, port in ports.items():
        yield check_port(address, name, port)


def check_port(address: str, name: str, port: int) -> Finding:
    """One of them."""
    what = f"{name} port"
    try:
        with socket.create_server((address, port)):
            return ok(what, f"{address}:{port} is free")
    except OSError as error:
        return failure(
            what, f"{address}:{port}: {error.strerror or error}", f"end what listens there (ss -ltnp), or serve with --{name}-port"
        )
