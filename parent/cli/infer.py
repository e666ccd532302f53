"""``stublet infer``: one request from the command line."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any, Dict, Optional, Sequence, Tuple

import click

from .client import connection_options
from .commands import EXIT_FAILED
from .http_client import ClientError


class _Named(click.ParamType):
    """``NAME=SOMETHING``."""

    def __init__(self, what: str) -> None:
        self.name = f"NAME={what}"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Tuple[str, str]:
        name, equals, text = str(value).partition("=")
        if not equals or not name or not text:
            self.fail(f"'{value}' is not of the form {self.name}", param, ctx)
        return name, text


@click.command()
@click.argument("url")
@click.argument("model")
@click.option("--input", "inputs", type=_Named("TENSOR"), multiple=True, metavar="NAME=TENSOR", help="[1, 2], file.npy, or @file.json.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME[=FILE]",
    help="An output to ask for, and a file to write it to (.npy, or any other for JSON); all if none is named.",
)
@click.option("--version", "model_version", type=click.IntRange(min=1), help="Of the model; the server chooses if it is not given.")
@click.option("--id", "request_id", default="", help="Of the request.")
@click.option(
    "--parameter",
    "parameters",
    type=_Named("VALUE"),
    multiple=True,
    metavar="NAME=VALUE",
    help="Of the request; true, false and numbers are what they look like.",
)
@click.option("--json", "wants_json", is_flag=True, help="Print the answer as JSON.")
@connection_options(seconds=60)
def infer(
    url: str,
    model: str,
    inputs: Sequence[Tuple[str, str]],
    outputs: Sequence[str],
    model_version: Optional[int],
    request_id: str,
    parameters: Sequence[Tuple[str, str]],
    wants_json: bool,
    connect: Any,
) -> None:
    """Sends one request to MODEL at URL, and shows the answer.

    \b
    Examples:
      stublet infer localhost:8000 add_sub --input INPUT0=[1,2,3,4] --input INPUT1=[5,6,7,8]
      stublet infer localhost:8000 resnet --input image=cat.npy --output scores=scores.npy

    What the model takes is asked of the server, so data types and shapes need not be told. Any server of the KServe v2 protocol will do.

    Exit status: 0, 1 when the server refuses or cannot be reached, 2 for wrong arguments.
    """
    from . import infer_request, tensor_text

    named = dict(inputs)
    if len(named) < len(inputs):
        raise click.UsageError("an --input is given twice")
    files = {name: path for name, _, path in (output.partition("=") for output in outputs)}
    wanted = infer_request.Wanted(
        model, str(model_version or ""), named, list(files), request_id, {name: _value(text) for name, text in parameters}
    )
    try:
        with connect(url) as client:
            result = infer_request.infer(client, wanted)
        for output in result.outputs:
            if files.get(output.name):
                tensor_text.save(output.array, files[output.name])
    except (ClientError, tensor_text.TensorError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(infer_request.as_json(result) if wants_json else _shown(result, files))


def _value(text: str) -> Any:
    """A parameter: a truth value or a number, if it looks like one, or text."""
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, (bool, int, float)):
            return value
    return text


def _shown(result: Any, files: Dict[str, str]) -> str:
    """The answer for the eye; in colours on a terminal only, which is click's to see."""
    from .tensor_text import show

    header = result.header
    facts = [f"{header.get('model_name', '')} version {header.get('model_version', '')}", f"{result.seconds * 1000:.1f} ms"]
    if header.get("id"):
        facts.insert(1, f"id {header['id']}")
    lines = [click.style(" · ".join(facts), bold=True)]
    for key, value in header.get("parameters", {}).items():
        lines.append(f"{key} = {value}")
    for output in result.outputs:
        shape = "[" + ", ".join(map(str, output.array.shape)) + "]"
        where = f"  -> {files[output.name]}" if files.get(output.name) else ""
        lines += ["", f"{click.style(output.name, fg='green', bold=True)}  {output.dtype} {shape}{where}", show(output.array)]
    return "\n".join(lines)
