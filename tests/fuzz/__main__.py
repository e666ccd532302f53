"""``python -m fuzz``, with ``tests`` on the path: runs one target, guided by coverage, until something is found or the time is over."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .target import CORPUS

NAMES = sorted(path.name for path in CORPUS.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("target", help="a name; 'list' shows all of them")
    parser.add_argument("inputs", nargs="*", type=Path, help="files to be tried, once each, instead of anything new")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, help="directory of what was found to reach more code, for the next run; none is kept otherwise"
    )
    parser.add_argument("--longest", type=int, default=4096, help="most bytes of an input (default: %(default)s)")
    arguments = parser.parse_args()

    if arguments.target not in NAMES:
        print("\n".join(NAMES))
        sys.exit(arguments.target != "list")
    import atheris

    with atheris.instrument_imports(include=["stublet"]):
        from .target import timed
        from .targets import TARGETS
    target = TARGETS[arguments.target]
    with target.opened() as check, tempfile.TemporaryDirectory() as temporary:
        if arguments.inputs:
            for path in arguments.inputs:
                timed(check)(path.read_bytes())
            return
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={arguments.seconds}", f"-max_len={arguments.longest}", "-timeout=60", "-print_final_stats=1"]
        options.append(f"-artifact_prefix={target.name}-")
        if target.tokens:
            tokens = Path(temporary, "tokens")
            tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in target.tokens))
            options.append(f"-dict={tokens}")
        atheris.Setup([sys.argv[0], *options, str(work), str(CORPUS / target.name)], timed(check))
        atheris.Fuzz()


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main()
