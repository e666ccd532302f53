"""The control inputs of sequences (spec 5.4): START, END, READY and CORRID, as bytes."""

from __future__ import annotations

import struct
from typing import Dict, Sequence, Tuple, Union

import numpy as np

from ...shm.dtype import BYTES
from ..errors import InvalidArgument
from .config import END, START, Control

_ID_RANGES = {"UINT64": ("<Q", 0, 64), "INT64": ("<q", 1, 64), "UINT32": ("<I", 0, 32), "INT32": ("<i", 1, 32)}
"""By data type: its format, whether it has a sign, its bits."""


class Controls:
    """Args:
    controls: those of the model.
    model: its name.
    """

    def __init__(self, controls: Sequence[Control], model: str) -> None:
        self._controls = controls
        self._model = model
        self._corrid = next((control for control in controls if control.kind == "CORRID"), None)
        self._known: Dict[Tuple[int, bool], Tuple[bytes, ...]] = {}

    def check(self, sequence: Union[int, str]) -> None:
        """Checks that a sequence's id can be told to the model.

        Raises:
            InvalidArgument: it does not fit the data type that the configuration says.
        """
        if self._corrid is not None:
            self._id(sequence)

    def values(self, sequence: Union[int, str], flags: int, ready: bool = True) -> Sequence[bytes]:
        """Each control tensor, in the order of the configuration, for a request with these flags.

        Args:
            ready: False in a row of the batch that has no request.
        """
        key = flags & (START | END), ready
        known = self._known.get(key)
        if known is None:
            states = {"START": bool(flags & START), "END": bool(flags & END), "READY": ready}
            known = tuple([b"" if one.kind == "CORRID" else _value(one, states[one.kind]) for one in self._controls])
            self._known[key] = known
        if self._corrid is None:
            return known
        corrid = self._id(sequence)
        return [corrid if one is self._corrid else value for one, value in zip(self._controls, known)]

    def _id(self, sequence: Union[int, str]) -> bytes:
        assert self._corrid is not None
        dtype = self._corrid.dtype
        if dtype is BYTES:
            text = str(sequence or "").encode()
            return struct.pack("<I", len(text)) + text
        form, signed, bits = _ID_RANGES[dtype.name]
        if isinstance(sequence, int):
            # Clients send negative ids as what they are without a sign.
            number = sequence - 2**64 if signed and sequence >= 2**63 else sequence
            if -(2 ** (bits - 1)) * signed <= number < 2 ** (bits - signed):
                return struct.pack(form, number)
        raise InvalidArgument(
            f"the correlation ID of a request to model '{self._model}' must be a number that its control input '{self._corrid.name}' of type "
            f"{self._corrid.dtype.config_name} can hold, not '{sequence}'"
        )


def _value(control: Control, true: bool) -> bytes:
    assert control.dtype.numpy is not None
    return np.array(control.values[int(true)], control.dtype.numpy).tobytes()
