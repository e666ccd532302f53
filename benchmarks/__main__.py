"""The command line: one subcommand for each kind of measurement."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from types import FrameType

from .errors import BenchmarkError

# Name -> the line that --help shows. Each command is the module of the same name in this package,
# with `add_arguments(parser)` and `run(arguments)`.
COMMANDS = {
    "serve": "load over HTTP, start-up and memory, alone or side by side with another server",
    "grpc": "load over gRPC, alone or side by side with another server",
    "calls": "what a model's own calls cost: BLS, responses of a decoupled model, is_cancelled, log lines",
    "gpu": "a tensor on a GPU from model to model, in device memory and through the host",
    "overload": "ten times as many requests as can be executed: who is served, who is refused, and how soon all is well again",
    "recovery": "from kill -9 of a stub to the next answer, without and with an instance in reserve",
    "stages": "what each stage of a small request costs",
    "roundtrip": "the embedded server's round trip next to a bare eventfd ping-pong",
}


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f".{name}", __package__)
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    arguments = parser.parse_args()
    # A benchmark that is told to end still stops the servers that it started.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        arguments.run(arguments)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
