"""``pb_utils.TritonError`` (spec 1.8), and how an exception of a model is told."""

from __future__ import annotations

from typing import Any

import pytest
from stublet.stub.error import TritonError, TritonModelException, headline, with_frames

CODES = ["UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED"]


@pytest.mark.parametrize("number, name", list(enumerate(CODES)))
def test_an_error_is_a_message_and_a_code(number: int, name: str) -> None:
    code = getattr(TritonError, name)
    error = TritonError("wrong", code)
    assert (error.message(), error.code(), int(code)) == ("wrong", code, number)
    assert TritonError(message="wrong", code=code).code() is code
    assert repr(error) == f"TritonError('wrong', TritonError.{name})"


def test_an_error_is_internal_by_default_and_no_exception() -> None:
    assert TritonError("wrong").code() is TritonError.INTERNAL
    assert not issubclass(TritonError, BaseException) and issubclass(TritonModelException, Exception)


@pytest.mark.parametrize("arguments", [(), (None,), (5,), ("wrong", None), ("wrong", 1), ("wrong", "INTERNAL")])
def test_an_error_of_wrong_types_is_a_type_error(arguments: Any) -> None:
    with pytest.raises(TypeError, match=r"TritonError|missing 1 required"):
        TritonError(*arguments)


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("wrong"), "ValueError: wrong"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
        (OSError(2, "no"), "FileNotFoundError: [Errno 2] no"),
    ],
)
def test_an_exception_is_told_with_its_frames_innermost_first(error: Exception, line: str) -> None:
    try:
        fail(error)
    except Exception as caught:
        text = with_frames(caught)
        assert headline(caught).startswith(line)
    first, empty, at, inner, outer = text.split("\n")
    assert first.startswith(line) and (empty, at) == ("", "At:")
    assert inner.startswith(f"  {__file__}(") and inner.endswith("): fail")
    assert outer.endswith("): test_an_exception_is_told_with_its_frames_innermost_first")


def test_a_syntax_error_is_told_with_its_line() -> None:
    with pytest.raises(SyntaxError) as raised:
        compile("x = = 1", "model.py", "exec")
    assert with_frames(raised.value) == '  File "model.py", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax'
