"""Starts, finds and stops the servers under test, and reads what their processes use."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchmarkError
from .processes import cpu_seconds, descendants, is_alive, listener

HOST = "127.0.0.1"
_READY_WITHIN = 120.0
_STOPPED_WITHIN = 45.0
_LOG_TAIL = 3000
# How finely start-up is timed; a poll costs about 0.1 ms of the cores that the server starts on.
_POLL = 0.005

# {repo} and {port} are filled in, and {grpc_port} where it occurs. Nothing is switched on that is not loaded.
STUBLET_COMMAND = (
    sys.executable, "-m", "stublet.parent", "serve", "{repo}", "--id", "stublet",
    "--http-port", "{port}", "--allow-grpc=false", "--allow-metrics=false", "--allow-client-shm=true",
)  # fmt: skip
STUBLET_GRPC_COMMAND = (*(part for part in STUBLET_COMMAND if part != "--allow-grpc=false"), "--grpc-port", "{grpc_port}")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    `pid` is None where its process cannot be seen from here, `grpc_port` where its command names none, and `log`, the file
    with its output, where it was not started here.
    """

    name: str
    host: str
    port: int
    pid: int | None
    grpc_port: int | None = None
    log: Path | None = None

    def cpu(self) -> ServerCpu | None:
        """CPU time so far; the difference of two of these is what happened between them."""
        if self.pid is None:
            return None
        return ServerCpu(cpu_seconds(self.pid), {pid: cpu_seconds(pid) for pid in descendants(self.pid)})


@dataclass(frozen=True, slots=True)
class ServerCpu:
    """CPU seconds of the process that listens (parent) and of each of its descendants (stubs)."""

    parent: float
    stubs: dict[int, float]

    def since(self, before: ServerCpu) -> tuple[float, float]:
        """Seconds of the parent and of all stubs since an earlier reading."""
        stubs = sum(value - before.stubs.get(pid, 0.0) for pid, value in self.stubs.items())
        return self.parent - before.parent, stubs


@dataclass(frozen=True, slots=True)
class Target:
    """One side of a comparison: a command that starts a server, or the URL of one that runs."""

    command: tuple[str, ...] = ()
    host: str = HOST
    port: int = 0
    pid: int | None = None

    @property
    def startable(self) -> bool:
        return bool(self.command)

    @contextmanager
    def serving(self, repository: Path) -> Iterator[Server]:
        """The server, ready: started on `repository` and stopped afterwards if it is a command's.

        Raises BenchmarkError if it does not become ready or does not stop.
        """
        if self.startable:
            with self.started(repository) as (server, _):
                yield server
            return
        if not _is_ready(self.host, self.port):
            raise BenchmarkError(f"no server is ready at {self.host}:{self.port}")
        pid = self.pid if self.pid is not None else listener(self.port)
        yield Server(_name_of(self.host, self.port), self.host, self.port, pid)

    @contextmanager
    def started(self, repository: Path) -> Iterator[tuple[Server, float]]:
        """The server and the seconds from its exec until /v2/health/ready said 200."""
        port = self.port or _free_port()
        grpc_port = _free_port() if any("{grpc_port}" in part for part in self.command) else None
        command = [part.format(repo=repository, port=port, grpc_port=grpc_port) for part in self.command]
        with tempfile.NamedTemporaryFile(prefix="benchmark-server-", suffix=".log") as log:
            began = time.perf_counter()
            try:
                # In a session of its own, so that Ctrl-C reaches it only through us, and once.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise BenchmarkError(f"cannot start {command[0]}: {error}") from error
            try:
                _await_ready(process, port, Path(log.name))
                seconds = time.perf_counter() - began
                # A command may be a script around the server: the one that listens is the server.
                pid = listener(port) or process.pid
                yield Server(_name_of(HOST, port), HOST, port, pid, grpc_port, Path(log.name)), seconds
            finally:
                _stop(process, port)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, told apart where both servers are of one kind."""
    if len(set(names)) == len(names):
        return list(names)
    return [f"{name} {letter}" for name, letter in zip(names, "AB", strict=False)]


def parse_url(text: str) -> tuple[str, int]:
    """'http://host:port', 'host:port' or 'host' (port 8000)."""
    address = text.removeprefix("http://").rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon:
        return address, 8000
    if not port.isdigit():
        raise BenchmarkError(f"'{text}' is not HOST:PORT")
    return host, int(port)


def parse_command(text: str) -> tuple[str, ...]:
    """Words of a shell-like command line that holds {repo} and {port}."""
    missing = [part for part in ("{repo}", "{port}") if part not in text]
    if missing:
        raise BenchmarkError(f"the command {text!r} lacks {' and '.join(missing)}")
    return tuple(shlex.split(text))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _is_ready(host: str, port: int) -> bool:
    try:
        return _get(host, port, "/v2/health/ready")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def _name_of(host: str, port: int) -> str:
    """What the server calls itself, for table headings: 'triton 2.51.0'."""
    metadata = json.loads(_get(host, port, "/v2")[1])
    return f"{metadata['name']} {metadata['version']}"


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while not _is_ready(HOST, port):
        status = process.poll()
        if status is not None or time.monotonic() > deadline:
            what = f"ended with status {status}" if status is not None else "did not become ready"
            tail = log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
            raise BenchmarkError(f"the server {what}; end of its output:\n{tail}")
        time.sleep(_POLL)


def _stop(process: subprocess.Popen[bytes], port: int) -> None:
    """SIGTERM, as an operator would; SIGKILL and a warning for what that leaves behind."""
    if process.poll() is not None:
        return
    tree = [process.pid, *descendants(process.pid)]
    server = listener(port)
    _kill(server if server in tree else process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOPPED_WITHIN
    left = tree
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        process.poll()
        left = [pid for pid in tree if is_alive(pid)]
    for pid in left:
        print(f"benchmarks: process {pid} of the server outlived SIGTERM", file=sys.stderr)
        _kill(pid, signal.SIGKILL)
    process.wait()


def _kill(pid: int, signal_number: int) -> None:
    # It may have ended by itself since it was last looked at.
    with suppress(ProcessLookupError):
        os.kill(pid, signal_number)
