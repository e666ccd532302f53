"""Log settings as clients see and change them (spec 6.10)."""

from __future__ import annotations

import logging
from typing import Any, Dict, Iterator, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent import log
from stublet.parent.errors import InvalidArgument, ServerError, Unsupported
from stublet.parent.log_settings import LogSettings
from stublet.parent.options import LogOptions

DEFAULTS = {
    "log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0, "log_format": "default",
}  # fmt: skip


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """That of the log belongs to the process."""
    before = log.root.level
    yield
    log.root.setLevel(before)


def settings() -> LogSettings:
    return LogSettings(LogOptions(), lambda _: None)


def test_what_they_are() -> None:
    assert list(settings().as_dict().items()) == list(DEFAULTS.items())
    options = LogOptions("x.log", False, False, False, 3, "ISO8601")
    assert list(LogSettings(options, lambda _: None).as_dict().values()) == ["x.log", False, False, False, 3, "ISO8601"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"log_info": False, "log_verbose_level": 2},
        {"log_warning": False, "log_error": False, "log_format": "ISO8601"},
        {"log_format": "json"},
    ],
)
def test_changes(changes: Dict[str, Any]) -> None:
    changed = settings()
    changed.update(changes)
    assert changed.as_dict() == {**DEFAULTS, **changes}


def test_null_changes_nothing() -> None:
    unchanged = settings()
    unchanged.update(dict.fromkeys(DEFAULTS))
    assert unchanged.as_dict() == DEFAULTS


def test_verbosity_is_told_and_effective() -> None:
    told: List[bool] = []
    changed = LogSettings(LogOptions(), told.append)
    for number in (1, 0, 7):
        changed.update({"log_verbose_level": number})
        assert log.models.isEnabledFor(log.VERBOSE) == (number > 0)
    assert told == [True, False, True]
    assert log.models.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    "key, value, text",
    [
        ("log_file", "x", "log file location can not be updated through network protocol"),
        ("log_file", "", "log file location can not be updated through network protocol"),
        ("log_format", "fancy", "invalid argument for --log_format, got: fancy"),
        ("log_format", 5, "Invalid value for 'log_format': expected a string"),
        *[("log_info", value, "Invalid value for 'log_info': expected a boolean") for value in (1, 0, "true", [], 0.0)],
        ("log_error", "yes", "Invalid value for 'log_error': expected a boolean"),
        ("log_warning", {}, "Invalid value for 'log_warning': expected a boolean"),
        *[
            ("log_verbose_level", value, "Invalid value for 'log_verbose_level': expected an unsigned integer")
            for value in (True, -1, 2**32, 1.5, "1", [1])
        ],
        (
            "log_colour", True,
            "'log_colour' is no log setting; those are log_file, log_info, log_warning, log_error, log_verbose_level, log_format",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(key: str, value: Any, text: str) -> None:
    unchanged = settings()
    with pytest.raises(Unsupported if key == "log_file" else InvalidArgument) as caught:
        unchanged.update({"log_info": False, "log_verbose_level": 1, key: value, "log_warning": False} | {key: value})
    assert str(caught.value) == text
    assert unchanged.as_dict() == DEFAULTS


@given(
    changes=st.dictionaries(st.sampled_from([*DEFAULTS, "x"]), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none()))
)
def test_any_change_is_made_or_refused(changes: Dict[str, Any]) -> None:
    changed = settings()
    try:
        changed.update(changes)
    except ServerError as error:
        assert str(error) and changed.as_dict() == DEFAULTS
    else:
        assert changed.as_dict() == {**DEFAULTS, **{key: value for key, value in changes.items() if value is not None}}
