"""The group of commands. Each of them is imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from typing import List, Optional

import click

EXIT_OK, EXIT_FAILED = 0, 1  # 2, for wrong arguments, is click's

_COMMANDS = {
    "serve": ("serve", "Serves the models of one or more repositories until Ctrl-C or SIGTERM."),
    "infer": ("infer", "Sends one request to a server, of any kind that speaks the protocol, and shows the answer."),
    "ps": ("ps", "Shows what a server serves: models, instances, processes, queues, memory."),
    "dump": ("dump", "Prints what every thread of a server and its stubs is doing: their stacks."),
    "doctor": ("doctor", "Looks at this machine before a server starts on it, and says what to change."),
}
_WIDTH = 110


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> List[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{_COMMANDS[cmd_name][0]}", __package__), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: List[str]) -> tuple[Optional[str], Optional[click.Command], List[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], _COMMANDS, n=1)
            if not near or near[0] in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from error


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from ..version import TRITON_VERSION, stublet_version

        click.echo(f"stublet {stublet_version()} (behaves as Triton {TRITON_VERSION}; Python {sys.version.split()[0]})")
        ctx.exit(EXIT_OK)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print versions and exit.")
def cli() -> None:
    """Serves models written for Triton Inference Server's Python backend, without Triton."""
