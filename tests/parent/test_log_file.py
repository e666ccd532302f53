"""A log on a disk that is full, and then is not."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path
from typing import Iterator

import pytest
from stublet.parent.log import Formatter
from stublet.parent.log_file import LogFile
from stublet.parent.options import LogOptions


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def log(path: Path) -> Iterator[logging.Logger]:
    yield from logging_to(str(path))


def logging_to(path: str) -> Iterator[logging.Logger]:
    logger = logging.Logger("of its own")
    handler = LogFile(path)
    handler.setFormatter(Formatter(LogOptions(format="json")))
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_lines_are_appended(log: logging.Logger, path: Path) -> None:
    path.write_text("what was there\n")
    log.info("déjà %d\n\udcff", 5)
    before, line = path.read_text().splitlines()
    assert before == "what was there" and "\\udcff" in line


def test_a_disk_that_fills_up(log: logging.Logger, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log.info("first %s", "." * 10_000)  # standard error is a file, too
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, hard))
    try:
        for number in range(5):
            log.info("lost %d", number, exc_info=ValueError("with it"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.info("second")
    log.info("third")
    first, torn, *rest = path.read_text().splitlines()
    assert len(torn) == 30 and torn.startswith('{"time"')
    assert [json.loads(line)["message"] for line in (first, *rest)] == [
        "first " + "." * 10_000,
        "5 lines of the log were lost",
        "second",
        "third",
    ]
    assert json.loads(rest[0])["level"] == "WARNING" and "exception" not in json.loads(rest[0])
    assert capfd.readouterr().err == (f"error: the log cannot be written to '{path}': File too large; its lines are lost until it can\n")


def test_a_disk_that_is_full(capfd: pytest.CaptureFixture[str]) -> None:
    for log in logging_to("/dev/full"):
        for _ in range(3):
            log.info("lost")
    assert capfd.readouterr().err.count("No space left on device") == 1


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogFile(str(tmp_path / "nowhere" / "log.txt"))
