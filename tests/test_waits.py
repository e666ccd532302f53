"""Every wait has a bound, or a reason why it needs none."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("shm", "stub", "parent")

WITHOUT_ARGUMENTS = {"wait", "join", "result", "acquire", "get", "communicate", "getresponse", "wait_for_termination"}
"""Without an argument, these wait for ever; with one, it is the time, or ``blocking=False``."""

WITHOUT_A_SECOND = {"wait_for"}
ALWAYS = {"recv", "recvmsg", "recvfrom", "recv_into", "accept", "sendall"}
"""On sockets, whose time-out, if there is one, is set elsewhere."""

IDLE = "a thread whose work is to wait for work; it is a daemon, or is told to end"
LOOP = "the server's own loop, in this process, which is stuck only if all is lost; what it does has bounds of its own"
EVENT = "a task's wait for the end of the server, or of its client: whoever it waits for is told by a disconnection or a signal"
TASKS = "tasks of the server's own that were cancelled, or whose every step has a bound"
DONE = "is done already: asked for in its callback, or after a look"
OWN = "a lock that nobody else has seen yet"

GPU = "the GPU, which a model waits for in the time of its execute"

EXCEPTIONS = {
    "parent/cli/dump.py: connection.recv(_READ_BYTES)": "the socket has a time-out",
    "parent/cli/ps.py: captured.get()": DONE,
    "parent/core.py: asyncio.wait(self._kept)": TASKS,
    "parent/grpc/service.py: asyncio.run_coroutine_threadsafe(call(), self._loop).result()": LOOP,
    "parent/grpc/threaded.py: answer.result()": DONE,
    "parent/http/generate.py: self._arrived.wait()": EVENT,
    "parent/http/protocol.py: encoding.result()": DONE,
    "parent/http/server.py: asyncio.wait([self._watch])": TASKS,
    "parent/model_control.py: asyncio.wait(self._tasks)": TASKS,
    "parent/model_control.py: asyncio.wait([arrival])": "the load of another model, which may take as long as its initialize",
    "parent/output_memory.py: made.result()": DONE,
    "parent/run.py: self._stop.wait()": EVENT,
    "parent/run.py: asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)": EVENT,
    "parent/run.py: start.result()": DONE,
    "parent/server.py: self._thread.join()": LOOP,
    "parent/server.py: asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()": LOOP,
    "parent/server.py: asyncio.run_coroutine_threadsafe(self._start(), self.loop).result()": LOOP,
    "parent/server.py: asyncio.run_coroutine_threadsafe(self._core.stop(self._options.exit_timeout_secs), self.loop).result()": LOOP,
    "parent/server.py: sleeper.acquire()": OWN,
    "parent/server.py: arrived.get()": "the caller's own task, which it may cancel; a stub that ends is an outcome",
    "parent/tracing/file.py: self._records.get()": IDLE,
    "stub/cuda/devices.py: driver.wait_for(device.event)": GPU,
    "stub/cuda/memory.py: driver.wait_for(event)": GPU,
    "stub/cuda/releases.py: self._work.get()": IDLE,
    "stub/inbox.py: self._asleep.acquire()": OWN,
    "stub/inbox.py: self._needed.acquire()": IDLE,
    "stub/server_link.py: answer.get()": "what a model asks may be another model's load; the stub ends with the server",
    "stub/server_link.py: events.poll(None)": IDLE,
    "shm/control.py: self._socket.recvmsg(_DATAGRAM_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)": (
        "the socket does not block, but for a stub's that has not been told yet what to load, and the fork server's, which end with the server"
    ),
}


def unbounded(tree: ast.AST) -> Iterator[str]:
    """The calls in it that may wait for ever, as text."""
    bounded = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.wait_for" and len(node.args) + len(node.keywords) == 2
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or id(node) in bounded:
            continue
        text, name = ast.unparse(node), node.func.attr
        arguments = [ast.unparse(one) for one in node.args] + [f"{one.arg}={ast.unparse(one.value)}" for one in node.keywords]
        if text.startswith("asyncio.wait("):
            waits = not any(one.startswith("timeout=") for one in arguments)
        elif name == "poll":
            waits = text != "select.poll()" and arguments in ([], ["None"])
        elif name == "waitpid":
            waits = "os.WNOHANG" not in arguments
        else:
            waits = (
                name in ALWAYS
                or (name in WITHOUT_ARGUMENTS and arguments in ([], ["True"], ["None"], ["timeout=None"]))
                or (name in WITHOUT_A_SECOND and len(arguments) < 2)
            )
        if waits:
            yield text


def found() -> Iterator[str]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for text in unbounded(ast.parse(path.read_text())):
                yield f"{path.relative_to(ROOT)}: {text}"


def test_every_wait_has_a_bound() -> None:
    waits = set(found())
    assert not sorted(waits - set(EXCEPTIONS)), "without a bound, and without a reason"
    assert not sorted(set(EXCEPTIONS) - waits), "these are not there any more"


@pytest.mark.parametrize(
    "code, waits",
    [
        ("event.wait()", True),
        ("event.wait(1)", False),
        ("event.wait(timeout=None)", True),
        ("thread.join()", True),
        ("', '.join(names)", False),
        ("lock.acquire()", True),
        ("lock.acquire(True)", True),
        ("lock.acquire(blocking=False)", False),
        ("lock.acquire(timeout=3)", False),
        ("queue.get()", True),
        ("names.get(name)", False),
        ("future.result()", True),
        ("poller.poll()", True),
        ("poller.poll(None)", True),
        ("poller.poll(5)", False),
        ("select.poll()", False),
        ("sock.recv(100)", True),
        ("os.waitpid(-1, 0)", True),
        ("os.waitpid(-1, os.WNOHANG)", False),
        ("condition.wait_for(is_there)", True),
        ("condition.wait_for(is_there, 3)", False),
        ("asyncio.wait_for(event.wait(), 3)", False),
        ("asyncio.wait_for(event.wait(), timeout=3)", False),
        ("asyncio.wait(tasks)", True),
        ("asyncio.wait(tasks, timeout=3)", False),
    ],
)
def test_what_counts_as_a_wait(code: str, waits: bool) -> None:
    assert bool(list(unbounded(ast.parse(code)))) is waits
