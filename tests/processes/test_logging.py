"""Models that log much, from everywhere, at every moment (spec 1.10): no line is lost, and nobody waits for the log."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Iterator, List

import pytest
from http_wire import infer, request, tensor
from model_repository import copy_model
from scripted import scripted
from server_process import ServerProcess, serving, until

LINES = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose log is a file: what reaches it is what counts."""
    root = tmp_path_factory.mktemp("logging")
    everywhere = "pb_utils.Logger.log_info('said in {0}'); logging.getLogger('x').error('logged in {0}')"
    scripted(root / "models", "plain", initialize=everywhere.format("initialize"), finalize=everywhere.format("finalize"))
    with serving(root, root / "models") as server:
        for what in ("said", "logged"):
            until(lambda w=what: f"{w} in initialize" in server.log)  # type: ignore[misc]
        yield server
        server.stop()
        for what in ("said", "logged"):
            assert server.log.count(f"{what} in finalize") == 1


def say(server: ServerProcess, code: str) -> str:
    with server.wire() as wire:
        answer = wire.ask(infer("plain", {"inputs": [tensor("CODE", "BYTES", [1], [code])]}))
        assert answer.status == 200, answer
        outputs = {output["name"]: output for output in answer.json()["outputs"]}
        return outputs["RESULT"]["data"][0]  # type: ignore[no-any-return]


def numbers(server: ServerProcess, mark: str, since: int, count: int) -> List[int]:
    """The numbers that follow ``mark`` in the log, in its order, once there are so many lines with it."""
    until(lambda: server.log[since:].count(mark) >= count, 60, f"{count} lines with {mark!r} in the log")
    return [int(number) for number in re.findall(re.escape(mark) + r"(\d+)", server.log[since:])]


def test_none_of_many_lines_is_lost(server: ServerProcess) -> None:
    """Nor does ``execute`` wait until they are all written."""
    since = len(server.log)
    took = float(
        say(
            server,
            f"started = time.monotonic()\nfor i in range({LINES}): pb_utils.Logger.log_info(f'line {{i}}')\nresult = time.monotonic() - started",
        )
    )
    assert numbers(server, "line ", since, LINES) == list(range(LINES))
    assert took < 15


def test_the_model_serves_while_its_lines_are_written(server: ServerProcess) -> None:
    since = len(server.log)
    started = time.monotonic()
    say(server, "in_thread(lambda: [pb_utils.Logger.log_info(f'meanwhile {i}') for i in range(30_000)])")
    for number in range(20):
        assert say(server, f"result = {number}") == str(number)
    assert time.monotonic() - started < 15
    assert numbers(server, "meanwhile ", since, 30_000) == list(range(30_000))


def test_lines_of_many_threads(server: ServerProcess) -> None:
    """Each thread's own are in order, and none is there twice."""
    since = len(server.log)
    say(server, """
def work(number):
    for i in range(500): pb_utils.Logger.log_warn(f'thread {number * 1000 + i}')
with ThreadPoolExecutor(16) as pool: list(pool.map(work, range(16)))
""")  # fmt: skip
    found = numbers(server, "thread ", since, 8000)
    assert len(found) == 8000
    assert max(Counter(found).values()) == 1
    for number in range(16):
        assert [n % 1000 for n in found if n // 1000 == number] == list(range(500))


def test_long_lines(server: ServerProcess) -> None:
    """Longer than a message of the control socket, and many of them."""
    since = len(server.log)
    say(server, "for i in range(50): pb_utils.Logger.log_error(f'long {i} ' + 'x' * 200_000)")
    assert numbers(server, "long ", since, 50) == list(range(50))
    until(lambda: server.log[since:].count("x" * 200_000) == 50)


@pytest.mark.parametrize("text", ["one\ntwo", "", "\0", "a\udcffb", "日本 🎉", "%s %d {}"])
def test_any_text(server: ServerProcess, text: str) -> None:
    since = len(server.log)
    say(server, f"pb_utils.Logger.log_info('<' + {text!r} + '>')")
    expected = "<" + text.replace("\udcff", "\\udcff").replace("\n", "\n  ") + ">"
    until(lambda: expected in server.log[since:])


def test_lines_before_a_sudden_end(tmp_path: Path) -> None:
    """What was said before the process ended is in the log."""
    scripted(tmp_path / "models", "plain")
    with serving(tmp_path, tmp_path / "models") as server:
        with server.wire() as wire:
            code = "for i in range(200): pb_utils.Logger.log_info(f'last {i}')\nos._exit(3)"
            assert wire.ask(infer("plain", {"inputs": [tensor("CODE", "BYTES", [1], [code])]})).status == 503
        assert numbers(server, "last ", 0, 200) == list(range(200))


def test_the_log_is_asked_to_hurry(server: ServerProcess) -> None:
    """Lines and calls travel in different ways; what was logged before a question to the server is there before its answer."""
    since = len(server.log)
    code = "\n".join(f"pb_utils.Logger.log_info('before {i}'); pb_utils.is_model_ready('plain')" for i in range(20))
    say(server, code)
    assert numbers(server, "before ", since, 20) == list(range(20))


def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    """The server goes on, and says on standard error, once, that its log is lost."""
    copy_model(tmp_path / "models", "add_sub")
    with serving(tmp_path, tmp_path / "models", "--log-file", "/dev/full", "--log-verbose", "1") as server:
        with server.wire() as wire:
            for _ in range(20):
                assert wire.ask(request("GET", "/v2/nothing")).status == 404
        server.stop()
        text = "error: the log cannot be written to '/dev/full': No space left on device; its lines are lost until it can\n"
        assert server.log == text
