"""``stublet dump``: what every thread of a server and its stubs is doing."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any, Optional

import click

from ..supervision.dump import address_of
from ..supervision.process_state import catches
from .client import connection_options
from .commands import EXIT_FAILED
from .http_client import ClientError
from .ps_report import INSTANCES

_READ_BYTES = 1 << 16


class _NoAnswer(Exception):
    """The text is for the user."""


@click.command()
@click.argument("url", default="localhost:8000")
@click.option("--pid", type=click.IntRange(min=1), metavar="PID", help="Of the server, instead of a URL: for one that does not answer.")
@connection_options(seconds=10)
def dump(url: str, pid: Optional[int], connect: Any) -> None:
    """Prints the stacks of the server at URL (localhost:8000): of its threads and tasks, and of every stub.

    \b
    Examples:
      stublet dump localhost:8000
      stublet dump --pid 812

    The server and this command run on the same machine, or in the same container, and as the same user, unless this one is root. A stub
    tells its stacks also while native code holds its interpreter; of one that is stopped, or does not answer within 3 seconds, it says so. A
    server whose own loop is stuck is sent SIGUSR1, which has it write the stacks of its threads to its standard error.

    Exit status: 0, or 1 when there is no answer.
    """
    try:
        with connect(url) as client:
            seconds = client.seconds
            server = int(client.get(INSTANCES).json()["server"]["pid"]) if pid is None else pid
        click.echo(ask(server, seconds), nl=False)
    except ClientError as error:
        _fail(f"{error}; --pid asks a server that does not answer over HTTP")
    except (KeyError, TypeError, ValueError):
        _fail(f"the server at {url} is not stublet")
    except _NoAnswer as error:
        _fail(str(error))


def _fail(text: str) -> None:
    click.echo(f"error: {text}", err=True)
    sys.exit(EXIT_FAILED)


def ask(pid: int, seconds: float) -> str:
    """The stacks of the server of that pid.

    Raises:
        _NoAnswer: there is none within ``seconds``, or it may not be told.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(address_of(pid))
            pieces = []
            while True:
                piece = connection.recv(_READ_BYTES)
                if not piece:
                    break
                pieces.append(piece)
        except socket.timeout:
            raise _NoAnswer(f"the server (pid {pid}) did not answer within {seconds:g} s{_signalled(pid)}") from None
        except OSError as error:
            raise _NoAnswer(f"no stublet server with pid {pid} on this machine, or in this container: {error.strerror}") from None
    if not pieces:
        raise _NoAnswer(f"the server (pid {pid}) tells its stacks only to its own user and to root")
    return b"".join(pieces).decode("utf-8", "replace")


def _signalled(pid: int) -> str:
    """SIGUSR1 ends a process that does not expect it."""
    if not catches(pid, signal.SIGUSR1):
        return ""
    os.kill(pid, signal.SIGUSR1)
    return "; it was sent SIGUSR1, and writes the stacks of its threads to its standard error"
