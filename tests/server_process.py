"""A server as users run it: a process of its own, real sockets, real stubs, and the proof that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, TypeVar

from http_wire import Wire

DEADLINE = 30.0

Value = TypeVar("Value")


def until(condition: Callable[[], Value], seconds: float = DEADLINE, what: str = "the condition") -> Value:
    """The first true value of ``condition``.

    Raises:
        AssertionError: there was none within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} seconds"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def descendants(pid: int) -> List[int]:
    """The processes that ``pid`` started, and theirs."""
    found: List[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def memory_bytes(pid: int) -> int:
    """Resident memory of a process, shared memory included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int) -> int:
    """Memory that is a process's own."""
    match = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10


def assert_no_names_left() -> None:
    """Asserts that none of our names stays in /dev/shm. They are there for the moment between a segment's creation and its unlinking,
    and other test processes make segments all the time."""
    names = set(os.listdir("/dev/shm"))

    def gone() -> bool:
        names.intersection_update(os.listdir("/dev/shm"))
        return not any(name.startswith("stublet") for name in names)

    until(gone, 2, "the end of every name in /dev/shm")


class ServerProcess:
    """``stublet serve`` with these arguments, on free ports, and without gRPC unless ``--grpc-port`` is among them. ``start`` waits until it
    serves, ``stop`` ends it in good order. ``prefix``: a command that becomes the server."""

    def __init__(
        self, directory: Path, repository: Path, *arguments: str, env: Optional[Dict[str, str]] = None, prefix: Sequence[str] = ()
    ) -> None:
        self._out = directory / "stdout.txt"
        self._err = directory / "stderr.txt"
        command = [*prefix, sys.executable, "-m", "stublet.parent", "serve", str(repository), "--http-port", "0"]
        command += ["--metrics-port", "0", *(() if "--grpc-port" in arguments else ("--allow-grpc=false",)), *arguments]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        self.pid = self._process.pid
        self.port = 0
        self.grpc_port = 0
        self.metrics_port = 0
        self._family: List[int] = []
        self._asked_to_end = False

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def log(self) -> str:
        """Standard error so far."""
        return self._err.read_text(errors="replace")

    @property
    def address(self) -> str:
        """``host:port``, as tritonclient wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        """The same for gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def start(self, seconds: float = DEADLINE) -> ServerProcess:
        """Waits until the address is printed, which comes when the models are loaded."""
        try:
            until(lambda: self._process.poll() is not None or self._find_port(), seconds, "the start of the server")
            assert self._process.poll() is None, f"the server ended with {self._process.returncode}:\n{self.log}"
        except AssertionError:
            self._process.kill()
            self._process.wait()
            raise
        self._family = descendants(self.pid)
        return self

    def _find_port(self) -> bool:
        out = self.out
        match = re.search(r"^HTTP +https?://127\.0\.0\.1:(\d+)$", out, re.MULTILINE)
        self.port = int(match[1]) if match else 0
        grpc = re.search(r"^gRPC +127\.0\.0\.1:(\d+)$", out, re.MULTILINE)
        self.grpc_port = int(grpc[1]) if grpc else 0
        last = re.search(r"^metrics +(?:off|http://.+:(\d+)/metrics)\n\Z", out, re.MULTILINE)
        self.metrics_port = int(last[1] or 0) if last else 0
        return last is not None

    def stubs(self) -> Dict[str, int]:
        """Pids of the live instances, by name, as the table says."""
        rows = [line.split() for line in self.out.splitlines() if line.endswith("READY")]
        return {row[2]: int(row[3]) for row in rows}

    def fork_server(self) -> int:
        """Pid of the process that starts the stubs."""
        (pid,) = [int(child) for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return pid

    def wire(self) -> Wire:
        """A new connection."""
        return Wire(self.port)

    def signal(self, signum: int) -> None:
        self._asked_to_end = True
        self._process.send_signal(signum)

    def wait(self, seconds: float = DEADLINE) -> int:
        """The exit status."""
        return self._process.wait(seconds)

    def stop(self, tracebacks: bool = False) -> None:
        """SIGTERM; asserts an orderly end that leaves nothing behind, and a log without tracebacks unless some are to be expected."""
        self._family = sorted({*self._family, *descendants(self.pid)})
        if self._process.poll() is None and not self._asked_to_end:
            self.signal(signal.SIGTERM)
        self.assert_ended(0)
        assert tracebacks or "Traceback" not in self.log, self.log

    def assert_ended(self, *statuses: int) -> None:
        """Asserts that the server ended so, and that nothing of it is left."""
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"the server did not end:\n{self.log}") from None
        assert status in statuses, f"exit status {status}:\n{self.log}"
        until(lambda: not any(map(alive, self._family)), 2, "the end of the server's processes")
        assert_no_names_left()

    def cleanup(self) -> None:
        """For a fixture's end: kills what is left, whatever the test did."""
        left = [*self._family, *descendants(self.pid)]
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def serving(
    directory: Path, repository: Path, *arguments: str, tracebacks: bool = False, prefix: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """For a fixture: a server over ``repository``, its output in ``directory``, ended in good order."""
    server = ServerProcess(directory, repository, *arguments, prefix=prefix)
    try:
        yield server.start()
        server.stop(tracebacks)
    finally:
        server.cleanup()


def run_serve(*arguments: str, env: Optional[Dict[str, str]] = None) -> subprocess.CompletedProcess[str]:
    """A ``stublet serve`` that is expected to end by itself."""
    command: Sequence[Any] = [sys.executable, "-m", "stublet.parent", "serve", "--metrics-port", "0", "--grpc-port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env={**os.environ, **(env or {})})
