"""``--log-format json``: one object a line, with what it is about; and settings that change while the server runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from http_wire import infer, tensor
from scripted import Scripted, scripted
from server_process import ServerProcess, serving, until
from stublet.parent import Server, log

Line = Dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("json")
    scripted(root / "models", "plain", initialize="print('begins')")
    scripted(root / "models", "bad", initialize="raise ValueError('odd')")
    with serving(root, root / "models", "--log-format=json", "--log-verbose=1", "--exit-on-error=false", tracebacks=True) as server:
        yield server
        server.stop(tracebacks=True)
        for line in server.log.splitlines():
            json.loads(line)


def lines(server: ServerProcess, **fields: Any) -> List[Line]:
    """Those with these fields, once there are any."""

    def found() -> List[Line]:
        read = map(json.loads, server.log.rpartition("\n")[0].splitlines())
        return [line for line in read if fields.items() <= line.items()]

    return until(found, 10, f"a line with {fields}")


def run(server: ServerProcess, code: str, request_id: str = "") -> int:
    with server.wire() as wire:
        return wire.ask(infer("plain", {"id": request_id, "inputs": [tensor("CODE", "BYTES", [1], [code])]})).status


@pytest.mark.parametrize(
    "code, message, level, where",
    [
        ("print('printed \"this\"')", 'printed "this"', "INFO", "stdout"),
        ("print('complained', file=sys.stderr)", "complained", "WARNING", "stderr"),
        ("pb_utils.Logger.log_info('two\\nlines')", "two\nlines", "INFO", "told:1"),
        ("pb_utils.Logger.log_warn('déjà 日本')", "déjà 日本", "WARNING", "told:1"),
        ("pb_utils.Logger.log_verbose('wordy')", "wordy", "VERBOSE", "told:1"),
        ("logging.error('erred %d', 5)", "erred 5", "ERROR", "told:1"),
    ],
)
def test_what_a_model_says(server: ServerProcess, code: str, message: str, level: str, where: str) -> None:
    assert run(server, code) == 200
    (line,) = lines(server, message=message)
    line.pop("time")
    pid = server.stubs()["plain_0_0"]
    assert line == {
        "level": level, "model": "plain", "version": "1", "instance": "plain_0_0", "pid": pid, "where": where, "message": message,
    }  # fmt: skip


def test_a_request_that_failed(server: ServerProcess) -> None:
    assert run(server, "raise KeyError('gone')", "request 7") == 500
    (line,) = lines(server, request_id="request 7")
    assert (line["level"], line["model"], line["instance"]) == ("ERROR", "plain", "plain_0_0")
    assert line["message"] == "Failed to process the request(s) for model 'plain_0_0', message: KeyError: 'gone'"
    assert line["exception"].startswith("Traceback (most recent call last):\n") and line["exception"].endswith("KeyError: 'gone'\n")


def test_an_exception_that_a_model_logs(server: ServerProcess) -> None:
    assert run(server, "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('caught')") == 200
    (line,) = lines(server, message="caught")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_what_the_server_says_of_models(server: ServerProcess) -> None:
    (loaded,) = lines(server, message="successfully loaded 'plain' version 1")
    assert (loaded["model"], loaded["version"], loaded["pid"]) == ("plain", "1", server.pid)
    (line,) = [line for line in lines(server, instance="bad_0_0", level="ERROR") if "exception" in line]
    assert line["message"] == "model 'bad', instance 'bad_0_0' did not load" and "ValueError: odd" in line["exception"]
    (printed,) = lines(server, message="begins")
    assert printed["instance"] == "plain_0_0"


def test_verbosity_changes_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For what the next request says too, without a word to the stub."""
    scripted(tmp_path, "plain")
    before = log.root.level
    try:
        with Server(tmp_path) as server:
            model = Scripted(server, "plain")

            async def update(level: int) -> None:
                server.core.log_settings.update({"log_verbose_level": level})

            for number, level in enumerate((0, 1, 0, 2, 0)):
                assert server.loop is not None
                asyncio.run_coroutine_threadsafe(update(level), server.loop).result(30)
                model.say(f"pb_utils.Logger.log_verbose('verbose {number}'); pb_utils.Logger.log_info('info {number}')")
                until(lambda number=number: f"info {number}" in caplog.text)
            assert [number for number in range(5) if f"verbose {number}" in caplog.text] == [1, 3]
    finally:
        log.root.setLevel(before)
