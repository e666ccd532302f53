"""A command with many options: its help shows them in sections."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Tuple

import click

Decorator = Callable[[Any], Any]

_SECTION = "stublet_section"
_PARAMETERS = "__click_params__"
_OTHER = "Other"
_COLUMN = 36
_WORDS = {"INTEGER RANGE": "N", "FLOAT RANGE": "N", "BOOLEAN": "BOOL"}
_RANGE = re.compile(r"; [\d.]*[<=]*x[<>]=?[\d.e+]+(?=\])")


def section(title: str, *options: Decorator) -> Decorator:
    """Adds options to a command, under a title."""

    def decorate(function: Any) -> Any:
        before = set(map(id, getattr(function, _PARAMETERS, ())))
        for option in reversed(options):
            function = option(function)
        for parameter in getattr(function, _PARAMETERS):
            if id(parameter) not in before:
                setattr(parameter, _SECTION, title)
        return function

    return decorate


class SectionedCommand(click.Command):
    """Its help has a section for each title, in the order of the options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: Dict[str, List[Tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, _SECTION, _OTHER), []).append(_plain(*record))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=_COLUMN)


def _plain(names: str, text: str) -> Tuple[str, str]:
    """The help of an option in the words of a reader rather than of a type system: what a range is, an error says."""
    for kind, word in _WORDS.items():
        names = names.replace(f" {kind}", f" {word}")
    return names, _RANGE.sub("", text)
