"""Headers of a request that become parameters of it, for the model to see (``--http-header-forward-pattern``, spec 6.4)."""

from __future__ import annotations

import re
from typing import Dict, Sequence, Tuple

from .errors import InvalidArgument
from .options import OptionError
from .parameters import EXPECTS, RESERVED_PREFIX

_RESERVED = {*EXPECTS, "binary_data_output"}


class HeaderForwarding:
    """Forwards the headers whose whole name matches ``pattern``, in either case; none if it is empty.

    Args:
        option: what the pattern was given as, for errors.

    Raises (constructor):
        OptionError: not a regular expression.
    """

    def __init__(self, pattern: str, option: str) -> None:
        try:
            self._pattern = re.compile(pattern, re.IGNORECASE) if pattern else None
        except re.error as error:
            raise OptionError(f"{option}: '{pattern}' is not a regular expression: {error}") from error

    def __bool__(self) -> bool:
        return self._pattern is not None

    def parameters(self, headers: Sequence[Tuple[bytes, bytes]], reserved: bool = True) -> Dict[str, str]:
        """The headers that become parameters, by name.

        Args:
            reserved: whether some names mean something to the server, and so cannot be forwarded.

        Raises:
            InvalidArgument: a header with such a name.
        """
        if self._pattern is None:
            return {}
        found = {}
        for raw_name, value in headers:
            name = raw_name.decode("latin-1")
            if self._pattern.fullmatch(name):
                if reserved and (name.lower() in _RESERVED or name.lower().startswith(RESERVED_PREFIX)):
                    raise InvalidArgument(f"header '{name}' is reserved for Triton usage and cannot be forwarded.")
                found[name] = _text(value)
        return found


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
