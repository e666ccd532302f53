"""Members of a request's JSON document, by type; what is wrong with one is told in Triton's words."""

from __future__ import annotations

from typing import Any, Dict

from ..errors import InvalidArgument
from ..parameters import EXPECTS, MAX_UNSIGNED, RESERVED_PREFIX, Expected, RequestParameters

_INT64 = range(-(2**63), 2**63)


def not_a(kind: str) -> str:
    """What Triton says of a value of another type than was expected."""
    return "attempt to access JSON non-array as array" if kind == "array" else f"attempt to access JSON non-{kind} as {kind}"


def check_size(nbytes: int, limit: int) -> None:
    """Checks the length of a document, as far as it is known, against what the server takes.

    Raises:
        InvalidArgument: it is longer.
    """
    if nbytes > limit:
        raise InvalidArgument(
            f"request JSON size of {nbytes} bytes exceeds the maximum allowed input size of {limit} bytes. "
            "Use --http-max-input-size to increase the limit."
        )


def member(document: Any, key: str, kind: type, kind_name: str, default: Any = ...) -> Any:
    """A member of a JSON object, of that kind.

    Raises:
        InvalidArgument: it is of another kind, or not there and there is no default.
    """
    value = document.get(key, default) if isinstance(document, dict) else default
    if value is ...:
        raise InvalidArgument(f"Unable to parse '{key}': attempt to access non-existing object member '{key}'")
    if not isinstance(value, kind):
        raise InvalidArgument(f"Unable to parse '{key}': {not_a(kind_name)}")
    return value


def parameters_of(document: Any) -> Dict[str, Any]:
    """The object ``parameters``, empty when there is none.

    Raises:
        InvalidArgument: not an object.
    """
    return member(document, "parameters", dict, "object", {})  # type: ignore[no-any-return]


def unsigned(document: Dict[str, Any], key: str, doing: str = "parse") -> int:
    """A member that is an integer from 0 to ``MAX_UNSIGNED``; ``doing`` is what an error says was to be done with it.

    Raises:
        InvalidArgument: it is something else.
    """
    value = document[key]
    if type(value) is not int or not 0 <= value <= MAX_UNSIGNED:
        raise InvalidArgument(f"Unable to {doing} '{key}': {not_a('unsigned-integer')}")
    return value


def boolean(document: Dict[str, Any], key: str) -> bool:
    """A member that is a boolean.

    Raises:
        InvalidArgument: it is something else.
    """
    value = document[key]
    if type(value) is not bool:
        raise InvalidArgument(f"Unable to parse '{key}': {not_a('boolean')}")
    return value


def put_parameter(parameters: RequestParameters, document: Dict[str, Any], key: str) -> None:
    """Takes a member as a parameter of a request.

    Raises:
        InvalidArgument: its type is not that of the parameter, or its name is reserved.
    """
    expected = EXPECTS.get(key)
    if expected is Expected.BOOL:
        parameters.put(key, boolean(document, key))
    elif expected is Expected.UNSIGNED_OR_STRING and isinstance(document[key], str):
        parameters.put(key, document[key])
    elif expected is not None:
        parameters.put(key, unsigned(document, key))
    elif key.startswith(RESERVED_PREFIX):
        raise InvalidArgument("parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.")
    else:
        put_custom_parameter(parameters, key, document[key])


def put_custom_parameter(parameters: RequestParameters, key: str, value: Any) -> None:
    """Takes a parameter for the model, whatever its name.

    Raises:
        InvalidArgument: its type is not one that a parameter can have.
    """
    if not is_parameter(value):
        raise InvalidArgument(f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'.")
    if type(value) is int and value not in _INT64:
        value = _as_double(key, value)
    parameters.custom[key] = value


def is_parameter(value: Any) -> bool:
    """Whether a value has a type that a parameter can have."""
    return isinstance(value, (bool, int, float, str))


def _as_double(key: str, value: int) -> float:
    """As JSON has them: a number is what a double can hold."""
    try:
        return float(value)
    except OverflowError:
        raise InvalidArgument(f"parameter '{key}' is out of the range of a double") from None
