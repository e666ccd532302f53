"""Groups of endpoints that need a header (``--http-restricted-api``, ``--grpc-restricted-protocol``; spec 6.1, 6.2)."""

from __future__ import annotations

import hmac
from typing import Dict, NamedTuple, Sequence, Union

from .options import OptionError

APIS = ("health", "metadata", "inference", "shared-memory", "model-config", "model-repository", "statistics", "trace", "logging")
"""The groups, by the names that the option has for them."""


class Restriction(NamedTuple):
    """The header that is asked for, and the value it has to have."""

    key: str
    value: bytes

    @property
    def header(self) -> bytes:
        """The name of the header in lower case."""
        return self.key.lower().encode()

    def admits(self, value: Union[str, bytes]) -> bool:
        """Whether that is the right value; how long this takes does not tell how much of it is."""
        return hmac.compare_digest(value.encode() if isinstance(value, str) else value, self.value)


def parse_restrictions(option: str, settings: Sequence[str]) -> Dict[str, Restriction]:
    """Restrictions by group, from texts ``<api>,<api>...:<key>=<value>``.

    Args:
        option: what they were given as, for errors; its last word is what one is called.

    Raises:
        OptionError: not of that form, an unknown group, or one that is there twice.
    """
    restrictions: Dict[str, Restriction] = {}
    what = "restricted " + option.rpartition("-")[2]
    for text in settings:
        names, colon, setting = text.partition(":")
        key, equals, value = setting.partition("=")
        if not (names and colon and key and equals and value):
            raise OptionError(f"{option} option format is '<config name>:<setting>=<value>'. Got {text}")
        for name in names.split(","):
            if name not in APIS:
                raise OptionError(f"unknown {what} '{name}'; known are {', '.join(APIS)}")
            if name in restrictions:
                raise OptionError(f"{what} '{name}' can not be specified in multiple config groups")
            restrictions[name] = Restriction(key, value.encode())
    return restrictions
