"""``InferParameter``s: their types, and what Triton says of wrong ones (spec 6.7)."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from ..client_memory import RegionSlice
from ..errors import InvalidArgument
from ..parameters import EXPECTS, MAX_UNSIGNED, RESERVED_PREFIX, RequestParameters

EMPTY_FINAL = "triton_enable_empty_final_response"

_FIELDS = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
}
_CUSTOM_FIELDS = ("int64_param", "bool_param", "string_param", "double_param")


def read_parameters(given: Mapping[str, Any]) -> RequestParameters:
    """Those of a request, but for ``EMPTY_FINAL``.

    Raises:
        InvalidArgument: in Triton's words.
    """
    parameters = RequestParameters()
    for key, parameter in given.items():
        if key == EMPTY_FINAL:
            continue
        if key.startswith(RESERVED_PREFIX):
            raise InvalidArgument(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with 'triton_' "
                f"are allowed: {EMPTY_FINAL}"
            )
        kind = parameter.WhichOneof("parameter_choice")
        if key in EXPECTS:
            if kind not in _FIELDS[key]:
                raise InvalidArgument(f"invalid value type for '{key}' parameter, expected {' or '.join(_FIELDS[key])}.")
        elif kind not in _CUSTOM_FIELDS:
            raise InvalidArgument(f"invalid value type for '{key}' parameter, expected int64_param, bool_param, or string_param.")
        value = getattr(parameter, kind)
        if type(value) is int and key in EXPECTS and key != "sequence_id" and value < 0:
            raise InvalidArgument(f"invalid value for '{key}', expected value >= 0.")
        parameters.put(key, value & MAX_UNSIGNED if key == "sequence_id" and type(value) is int else value)
    return parameters


def wants_empty_final(given: Mapping[str, Any]) -> bool:
    """Whether a final response without outputs is to be sent.

    Raises:
        InvalidArgument: it is not said with a bool.
    """
    if EMPTY_FINAL not in given:
        return False
    parameter = given[EMPTY_FINAL]
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise InvalidArgument(f"invalid value type for '{EMPTY_FINAL}' parameter, expected bool_param.")
    return bool(parameter.bool_param)


def classes_of(given: Mapping[str, Any]) -> int:
    """Into how many classes an output is to be made; 0 leaves it as it is.

    Raises:
        InvalidArgument: it is not said with an int64 above 0.
    """
    if "classification" not in given:
        return 0
    parameter = given["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidArgument("invalid value type for 'classification' parameter, expected int64_param")
    if parameter.int64_param <= 0:
        raise InvalidArgument("invalid value for 'classification' parameter, expected >= 0")
    return int(parameter.int64_param)


def region_slice(given: Mapping[str, Any], tensor: str) -> Optional[RegionSlice]:
    """Where in shared memory of the client's a tensor lies, if it does.

    Raises:
        InvalidArgument: the parameters that say so have wrong types, or not all are there.
    """
    if "shared_memory_region" not in given:
        for key in ("shared_memory_offset", "shared_memory_byte_size"):
            if key in given:
                raise InvalidArgument(f"'{key}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor}'")
        return None
    region = given["shared_memory_region"]
    if region.WhichOneof("parameter_choice") != "string_param":
        raise InvalidArgument(f"invalid value type for 'shared_memory_region' parameter for tensor '{tensor}', expected string_param.")
    if "shared_memory_byte_size" not in given:
        raise InvalidArgument(
            f"'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor '{tensor}'"
        )
    offset = _location(given, "shared_memory_offset", tensor) if "shared_memory_offset" in given else 0
    return RegionSlice(region.string_param, offset, _location(given, "shared_memory_byte_size", tensor))


def _location(given: Mapping[str, Any], key: str, tensor: str) -> int:
    parameter = given[key]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidArgument(f"invalid value type for '{key}' parameter for tensor '{tensor}', expected int64_param.")
    return int(parameter.int64_param) & MAX_UNSIGNED
