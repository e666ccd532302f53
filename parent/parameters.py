"""The parameters of a request, whatever protocol they came by: what they may be, and how a message carries them (spec 6.4, 6.7).

A front end checks the types that its wire format tells apart and complains in its own words; ``EXPECTS`` says which parameter has to be
what. What passes is ``put`` into a ``RequestParameters``.
"""

from __future__ import annotations

import json
import math
from enum import Enum
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import msgspec

Value = Union[bool, int, float, str]
Extras = Tuple[Any, ...]
"""The extras of a request message: ``()``, or (id, requested outputs, parameters, correlation id, flags, timeout), and, of a request that is
traced, its trace."""

_NOTHING: Extras = ("", None, "{}", 0, 0, 0)

RESERVED_PREFIX = "triton_"
MAX_UNSIGNED = 2**64 - 1
_SEQUENCE_START, _SEQUENCE_END = 1, 2


class Expected(Enum):
    """What a parameter that has a meaning has to be. UNSIGNED is at most ``MAX_UNSIGNED``."""

    BOOL = "bool"
    UNSIGNED = "unsigned integer"
    UNSIGNED_OR_STRING = "unsigned integer or string"


EXPECTS: Mapping[str, Expected] = {
    "sequence_id": Expected.UNSIGNED_OR_STRING,
    "sequence_start": Expected.BOOL,
    "sequence_end": Expected.BOOL,
    "priority": Expected.UNSIGNED,
    "timeout": Expected.UNSIGNED,
}
"""The parameters that have a meaning; all others are handed to the model as they are."""


class RequestParameters:
    """The parameters of one request.

    ``sequence_id`` 0 or "" is none. ``priority`` 0 is the model's default. ``timeout`` in microseconds, 0 for the model's default.
    ``custom`` are those for the model.
    """

    __slots__ = ("custom", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout")

    def __init__(self) -> None:
        self.sequence_id: Union[int, str] = 0
        self.sequence_start = False
        self.sequence_end = False
        self.priority = 0
        self.timeout = 0
        self.custom: Dict[str, Value] = {}

    def put(self, key: str, value: Value) -> None:
        """Takes a parameter whose type is that of ``EXPECTS``, if it is one of those. The last one of a name counts."""
        if key in EXPECTS:
            setattr(self, key, value)
        else:
            self.custom[key] = value

    @property
    def flags(self) -> int:
        """START and END of a sequence, as a model sees them."""
        return (_SEQUENCE_START if self.sequence_start else 0) | (_SEQUENCE_END if self.sequence_end else 0)

    def extras(self, request_id: str = "", output_indices: Optional[Tuple[int, ...]] = None) -> Extras:
        """As a message has them, empty when there is nothing to say.

        Args:
            output_indices: the requested outputs, as ``validation.output_indices`` has them.
        """
        flags = self.flags
        if not (request_id or output_indices is not None or self.custom or self.sequence_id or flags or self.timeout):
            return ()
        return request_id, output_indices, _as_json(self.custom), self.sequence_id, flags, self.timeout


def with_custom(extras: Extras, more: Mapping[str, Value]) -> Extras:
    """Extras with more parameters for the model, which replace those of the same names."""
    request_id, indices, text, sequence_id, flags, timeout = extras or _NOTHING
    return request_id, indices, _as_json({**json.loads(text), **more}), sequence_id, flags, timeout


def merged(text: str, more: str) -> str:
    """The parameters of two responses that become one, each as JSON text or ""; the later ones replace those of the same names."""
    return _as_json({**json.loads(text), **json.loads(more)}) if text and more else text or more


def with_trace(extras: Extras, trace: Tuple[int, int, str]) -> Extras:
    """Extras with the trace that the request belongs to."""
    return (*(extras or _NOTHING), trace)


def _as_json(parameters: Dict[str, Value]) -> str:
    if any(type(value) is float and not math.isfinite(value) for value in parameters.values()):
        # There is no such number in JSON; a model's json.loads reads Python's spelling of it.
        return json.dumps(parameters, separators=(",", ":"), ensure_ascii=False)
    return msgspec.json.encode(parameters).decode()
