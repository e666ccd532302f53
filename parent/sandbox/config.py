"""The sandbox that a model's ``parameters``, or the server's ``--sandbox``, ask for: limits for each of its instances, and another user."""

from __future__ import annotations

import grp
import os
import pwd
import re
import resource
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ..byte_size import parse_size
from .cgroups import Limits

_MOST = (1 << 63) - 1
_MOST_CORES = 4096

_BYTES = 'a number of bytes, or one with a unit, as in "512MiB" or "2GiB"'
_NUMBER = "a number"


class User(NamedTuple):
    """Whom a stub runs as."""

    uid: int
    gid: int
    groups: List[int]
    name: str
    home: str

    @property
    def variables(self) -> Dict[str, str]:
        """Of its environment."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}


class Sandbox(NamedTuple):
    """``rlimits`` by the names of ``resource``, each the soft limit and the hard one."""

    rlimits: Mapping[str, int] = {}
    no_new_privs: bool = False
    user: Optional[User] = None
    cgroup: Limits = Limits()

    def settings(self, cgroup: str) -> Dict[str, Any]:
        """As a stub takes it.

        Args:
            cgroup: the directory of its cgroup, "" for that of the server.
        """
        user = self.user and [self.user.uid, self.user.gid, self.user.groups]
        wanted = {"cgroup": cgroup, "rlimits": dict(self.rlimits), "user": user, "no_new_privs": self.no_new_privs}
        return {key: value for key, value in wanted.items() if value}


NO_SANDBOX = Sandbox()


def _bytes(text: str) -> int:
    return _within(parse_size(text))


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise ValueError(text)
    return _within(int(text))


def _within(value: int) -> int:
    if value > _MOST:
        raise ValueError(value)
    return value


_RLIMITS: Dict[str, Tuple[str, Callable[[str], int], str]] = {
    "rlimit_as": ("RLIMIT_AS", _bytes, _BYTES),
    "rlimit_core": ("RLIMIT_CORE", _bytes, _BYTES),
    "rlimit_cpu": ("RLIMIT_CPU", _number, "a number of seconds"),
    "rlimit_data": ("RLIMIT_DATA", _bytes, _BYTES),
    "rlimit_fsize": ("RLIMIT_FSIZE", _bytes, _BYTES),
    "rlimit_memlock": ("RLIMIT_MEMLOCK", _bytes, _BYTES),
    "rlimit_nofile": ("RLIMIT_NOFILE", _number, _NUMBER),
    "rlimit_nproc": ("RLIMIT_NPROC", _number, _NUMBER),
    "rlimit_stack": ("RLIMIT_STACK", _bytes, _BYTES),
}
NAMES = (*_RLIMITS, "no_new_privs", "run_as_user", "cgroup_memory_max", "cgroup_cpu_max")
"""The parameters."""


def parse_defaults(settings: List[str]) -> Dict[str, str]:
    """What ``KEY=VALUE`` say, each checked; the last one of a name counts.

    Raises:
        ValueError: one is not of that form, there is no such parameter, or it cannot have that value.
    """
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in NAMES:
            raise ValueError(f"'{setting}' is not <parameter>=<value>; the parameters are {', '.join(NAMES)}")
        found[key] = value
    _Reader(found, "").read()
    return found


def sandbox_of(config: Any, defaults: Mapping[str, str]) -> Sandbox:
    """What a model's configuration asks for.

    Args:
        defaults: what counts for a parameter that the model has not.

    Raises:
        ValueError: a parameter is not what it must be, or this server cannot grant it.
    """
    own = {name: config.parameters[name].string_value for name in NAMES if name in config.parameters}
    return _Reader({**defaults, **own}, f" of model '{config.name}'").read()


def check_sandbox(config: Any, _name: str) -> None:
    """Checks the parameters of a model.

    Raises:
        ValueError: as ``sandbox_of``.
    """
    sandbox_of(config, {})


class _Reader:
    def __init__(self, texts: Mapping[str, str], whose: str) -> None:
        self._texts = texts
        self._whose = whose

    def read(self) -> Sandbox:
        rlimits = {}
        for key, (name, convert, wanted) in _RLIMITS.items():
            value = self._value(key, convert, wanted)
            if value is not None:
                rlimits[name] = self._permitted(key, name, value)
        memory = self._value("cgroup_memory_max", _bytes, _BYTES) or 0
        cores = self._value("cgroup_cpu_max", _cores, 'a number of cores above 0, as in "1.5"') or 0.0
        no_new_privs = self._value("no_new_privs", {"yes": True, "no": False}.__getitem__, '"yes" or "no"') or False
        return Sandbox(rlimits, no_new_privs, self._user(), Limits(memory, cores))

    def _value(self, key: str, convert: Callable[[str], Any], wanted: str) -> Any:
        text = self._texts.get(key)
        if text is None:
            return None
        try:
            return convert(text)
        except (ValueError, KeyError):
            raise ValueError(f"parameter '{key}'{self._whose} must be {wanted}, not '{text}'") from None

    def _permitted(self, key: str, name: str, value: int) -> int:
        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY and value > hard and os.geteuid() != 0:
            raise ValueError(f"parameter '{key}'{self._whose} cannot be {value}: the server's own hard limit is {hard}")
        return value

    def _user(self) -> Optional[User]:
        text = self._texts.get("run_as_user")
        if text is None:
            return None
        name, colon, group = text.partition(":")
        try:
            if not name or (colon and not group):
                raise KeyError
            found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
            gid = found.pw_gid if not group else (grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)).gr_gid
        except (KeyError, ValueError, OverflowError):  # no such user, what is no name, and a number that is none of a user
            raise ValueError(
                f"parameter 'run_as_user'{self._whose} must be a user, or <user>:<group>, by name or number, that this system has, not '{text}'"
            ) from None
        if os.geteuid() != 0:
            raise ValueError(
                f"parameter 'run_as_user'{self._whose} cannot be '{text}': only a server that runs as root can change the user"
            )
        groups = [gid] if group else os.getgrouplist(found.pw_name, gid)
        return User(found.pw_uid, gid, groups, found.pw_name, found.pw_dir)


def _cores(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) or not 0.01 <= float(text) <= _MOST_CORES:
        raise ValueError(text)
    return float(text)
