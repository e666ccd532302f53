"""The forms of a line of the log, and that no text can break one."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stublet.parent import log
from stublet.parent.options import LogOptions

HEADS = {
    "default": re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ [^\]]+\] "),
    "ISO8601": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [IWE] \d+ [^\]]+\] "),
}


def line(form: str, text: str, level: int = logging.INFO, **extra: Any) -> str:
    record = logging.LogRecord("stublet", level, "/x/model.py", 12, "%s", (text,), None)
    record.__dict__.update(extra)
    return log.Formatter(LogOptions(format=form)).format(record)


@pytest.mark.parametrize("form", HEADS)
@pytest.mark.parametrize("level, letter", [(log.VERBOSE, "I"), (logging.INFO, "I"), (logging.WARNING, "W"), (logging.ERROR, "E")])
def test_a_line_of_text(form: str, level: int, letter: str) -> None:
    written = line(form, "text", level)
    head = HEADS[form].match(written)
    assert head and written[head.end() :] == "text"
    assert letter in head[0] and "model.py:12]" in head[0]


def test_a_line_of_json() -> None:
    facts = {**log.facts("m", 3, "m_0_1"), "request_id": "42", "exception": "Traceback ...\nValueError"}
    written = json.loads(line("json", "text", logging.ERROR, about=facts, stub_pid=812))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", written.pop("time"))
    assert list(written.items()) == [
        ("level", "ERROR"), ("model", "m"), ("version", "3"), ("instance", "m_0_1"), ("request_id", "42"), ("pid", 812),
        ("where", "model.py:12"), ("message", "text"), ("exception", "Traceback ...\nValueError"),
    ]  # fmt: skip


def test_json_has_only_what_is_known() -> None:
    assert set(json.loads(line("json", "text"))) == {"time", "level", "pid", "where", "message"}
    assert json.loads(line("json", "text", about=log.facts("m")))["model"] == "m"
    assert json.loads(line("json", "text", log.VERBOSE))["level"] == "VERBOSE"


@pytest.mark.parametrize("form", ["default", "ISO8601", "json"])
def test_an_exception(form: str) -> None:
    try:
        raise ValueError("odd\nvalue")
    except ValueError:
        error = sys.exc_info()
    written = line(form, "it failed", exc_info=error)
    if form == "json":
        assert "\n" not in written
        found = json.loads(written)
        assert found["message"] == "it failed"
        assert found["exception"].startswith("Traceback") and found["exception"].endswith("ValueError: odd\nvalue")
    else:
        first, second, *rest = written.split("\n")
        assert first.endswith("] it failed") and second == "  Traceback (most recent call last):"
        assert rest[-2:] == ["  ValueError: odd", "  value"]


@given(text=st.text())
@example(text="\nE1122 10:38:48.123456 812 forged.py:1] as if")
@example(text="a\r\nb\rc\n\n")
def test_no_text_passes_for_another_line(text: str) -> None:
    for form, head in HEADS.items():
        first, *rest = re.split(r"[\r\n]", line(form, text))
        assert head.match(first) and all(more.startswith("  ") for more in rest)
    written = line("json", text)
    assert "\n" not in written and "\r" not in written
    assert json.loads(written)["message"] == text


class Speaker:
    pid: Optional[int] = 812
    facts = log.facts("m", 1, "m_0_0")


def test_what_a_stub_says(caplog: pytest.LogCaptureFixture) -> None:
    say = log.stub_logger(Speaker())
    with caplog.at_level(logging.INFO, "stublet"):
        say(logging.INFO, "model.py", 7, "plain")
        say(logging.ERROR, "model.py", 8, "worse", "Traceback", "id 5, id 6")
        say(logging.INFO, "stdout", 0, "printed %d")
        say(log.VERBOSE, "model.py", 9, "wordy")
    options = LogOptions()
    formatter = log.Formatter(options)
    lines: List[str] = [formatter.format(record).split("812 ", 1)[1] for record in caplog.records]
    assert lines == ["m_0_0 model.py:7] plain", "m_0_0 model.py:8] worse\n  Traceback", "m_0_0 stdout] printed %d"]
    options.format = "json"
    found: Dict[str, Any] = json.loads(formatter.format(caplog.records[1]))
    assert (found["instance"], found["pid"], found["request_id"], found["exception"]) == ("m_0_0", 812, "id 5, id 6", "Traceback")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_text_can_be_written(tmp_path: Path, encoding: str) -> None:
    """Whatever the terminal's encoding is, and to a file too."""
    file = tmp_path / "log.txt"
    code = (
        "import sys; from stublet.parent import log; from stublet.parent.options import LogOptions\n"
        "for file in ('', sys.argv[1]):\n"
        "    log.set_up(LogOptions(file=file, format='json')); log.models.error('déjà \\udcff 日本')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, env={"PYTHONIOENCODING": encoding}, timeout=60)
    for written in (done.stderr, file.read_bytes()):
        (only,) = written.decode().splitlines()
        assert json.loads(only)["message"] == "déjà \udcff 日本"


def test_what_libraries_say_of_every_bad_request(tmp_path: Path) -> None:
    """Clients can make them say it as often as they like; the server's own lines are not touched by that."""
    file = tmp_path / "log.txt"
    code = (
        "import logging, sys; from stublet.parent import log; from stublet.parent.options import LogOptions\n"
        "log.set_up(LogOptions(file=sys.argv[1]))\n"
        "for _ in range(100_000): logging.getLogger('uvicorn.error').warning('x' * 1000)\n"
        "log.root.info('our own')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=60)
    *_, last = file.read_text().splitlines()
    assert last.endswith("our own")
    assert 1 << 20 < file.stat().st_size < 32 << 20
    assert "messages of libraries were left out before)" in file.read_text()
