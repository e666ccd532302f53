"""``pb_utils.Logger`` (spec 1.10), and ``logging`` on its way to the same log."""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any, Callable, Iterator, List, Tuple

import pytest
from stublet.stub.host import host
from stublet.stub.logger import ForwardingHandler, Logger

HERE = os.path.basename(__file__)
Lines = List[Tuple[Any, ...]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What reaches the server's log."""
    found: Lines = []
    monkeypatch.setattr(host, "log", lambda *line: found.append(line))
    return found


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_every_level_with_the_callers_file_and_line(lines: Lines) -> None:
    first = here()
    Logger.log_info("1")
    Logger.log_warn("2")
    Logger.log_error("3")
    Logger.log_verbose("4")
    Logger.log("5")
    Logger.log("6", Logger.VERBOSE)
    Logger.log("7", level=Logger.WARNING)
    levels = ["INFO", "WARNING", "ERROR", "VERBOSE", "INFO", "VERBOSE", "WARNING"]
    assert lines == [(level, HERE, first + i, str(i)) for i, level in enumerate(levels, start=1)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: Logger.log_info(None),  # type: ignore[arg-type]
        lambda: Logger.log_error(5),  # type: ignore[arg-type]
        lambda: Logger.log(None),  # type: ignore[arg-type]
        lambda: Logger.log("x", None),  # type: ignore[arg-type]
        lambda: Logger.log("x", 1),  # type: ignore[arg-type]
        lambda: Logger.log("x", "INFO"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_type_errors(lines: Lines, call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"^Logger: "):
        call()
    assert not lines


def test_outside_a_server_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Logger.log_warn("careful")
    assert capsys.readouterr().err == f"WARNING {HERE}:{here() - 1}] careful\n"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger, handler = logging.getLogger("stublet-test"), ForwardingHandler()
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(1)
    yield logger
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    "number, level",
    [(5, "VERBOSE"), (logging.DEBUG, "VERBOSE"), (logging.INFO, "INFO"), (25, "INFO"), (logging.WARNING, "WARNING"), (logging.ERROR, "ERROR"),
     (logging.CRITICAL, "ERROR")],
)  # fmt: skip
def test_logging_goes_to_the_same_log(lines: Lines, logger: logging.Logger, number: int, level: str) -> None:
    logger.log(number, "%s of %d", "one", 2)
    assert lines == [(level, HERE, here() - 1, "one of 2")]


def test_a_traceback_is_part_of_the_line(lines: Lines, logger: logging.Logger) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    ((level, _, _, text, trace),) = lines
    assert (level, text) == ("ERROR", "failed")
    assert trace.startswith("Traceback") and trace.endswith("ValueError: wrong")


def test_a_record_that_cannot_be_formatted_does_not_stop_the_model(lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    for text, argument in (("%d", "not a number"), ("%s", "next")):
        ForwardingHandler().handle(logging.LogRecord("model", logging.INFO, __file__, 7, text, (argument,), None))
    assert lines == [("INFO", HERE, 7, "next")]
    assert "--- Logging error ---" in capsys.readouterr().err
