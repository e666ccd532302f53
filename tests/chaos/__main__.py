"""``python -m chaos``, with ``tests`` on the path: prints what was done and what came of it; the exit status is 1 if anything happened that must
not happen."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict

from http_wire import request
from server_process import ServerProcess, private_bytes, until

from .disorder import Disorder, Observer, instances
from .loads import LOADS, PATIENCE, start_all
from .models import write_models
from .tally import Tally

_RECOVERY_SECONDS = 30.0
_INTERNAL = ("internal error", "could not be delivered", "Exception in callback", "never retrieved", "never awaited")
"""Words of the log that tell of mistakes of the server's own."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long stubs are hurt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.getrandbits(32), help="of everything that is left to chance; printed")
    parser.add_argument("--log", type=Path, help="where to keep the server's log")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        tally = chaos(Path(directory), arguments.seconds, arguments.seed)
        if arguments.log:
            arguments.log.write_text(Path(directory, "stderr.txt").read_text(errors="replace"))
    print(tally.report())
    sys.exit(bool(tally.violations))


def chaos(directory: Path, seconds: float, seed: int) -> Tally:
    """What came of so many seconds of it."""
    write_models(directory / "models")
    tally = Tally()
    options = (
        "--model-control-mode=explicit",
        "--allow-client-shm=true",
        *(f"--load-model={path.name}" for path in (directory / "models").iterdir()),
    )
    server = ServerProcess(directory, directory / "models", *options, "--grpc-port", "0", "--exit-timeout-secs", "10")
    try:
        server.start()
        before, memory = held(server.pid), private_bytes(server.pid)
        _hurt(server, seconds, seed, tally)
        _expect(tally, "the server holds what it held", lambda: held(server.pid) == before)
        print(f"private memory of the server: {memory >> 20} MiB before, {private_bytes(server.pid) >> 20} MiB after")
        if tally.violations:
            print(f"held before: {before}; after: {held(server.pid)}")
        try:
            server.stop(tracebacks=True)
        except AssertionError as error:
            tally.violated(f"the end: {error}")
        for line in server.log.splitlines():
            if any(words in line for words in _INTERNAL):
                tally.violated(f"in the log: {line}")
    finally:
        server.cleanup()
    return tally


def _hurt(server: ServerProcess, seconds: float, seed: int, tally: Tally) -> None:
    loads = start_all((server.address, server.grpc_address), seed, tally)
    observer, disorder = Observer(server, tally), Disorder(server, seed, tally)
    observer.start()
    disorder.start()
    # Not longer than it makes sense: after a violation nothing can become right any more.
    end = time.monotonic() + seconds
    while time.monotonic() < end and not tally.violations:
        time.sleep(0.05)
    disorder.stop()
    print("done to stubs:", ", ".join(f"{count} {name}" for name, count in sorted(disorder.done.items())))
    if not tally.violations:
        begun = time.monotonic()
        _expect(tally, "every instance serves again", lambda: _healed(server))
        healed, answered = time.monotonic() - begun, Counter(tally.answered)
        _expect(tally, "every load gets answers again", lambda: all(tally.answered[name] > answered[name] for name in LOADS))
        print(f"seconds until every instance served again: {healed:.2f}")
    for load in loads:
        load.stop()
    deadline = time.monotonic() + PATIENCE
    for load in loads:
        load.join(max(deadline - time.monotonic(), 0))
        if load.is_alive():
            tally.violated(f"a request of '{load.name}' was never answered")
    observer.stop()
    print(f"slowest answer whether the server lives: {observer.slowest:.3f} s")
    with server.wire() as wire:
        # The loader may have left it unloaded, and it was there before.
        wire.ask(request("POST", "/v2/repository/models/guest/load"))


def _healed(server: ServerProcess) -> bool:
    return all(instance["state"] == "READY" for instance in instances(server) if instance["model"] != "guest")


def _expect(tally: Tally, what: str, condition: Callable[[], bool]) -> None:
    try:
        until(condition, _RECOVERY_SECONDS, what)
    except AssertionError as error:
        tally.violated(str(error))


def held(pid: int) -> Dict[str, int]:
    """How many threads, processes and descriptors of each kind a server holds; shared memory, of which there is as much as was needed at once,
    not counted."""
    counts: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            kind = str(link.readlink()).split("[")[0]
            if not kind.startswith(("/dev/shm/", "/memfd:")):
                counts[kind] += 1
    counts["children"] = sum(len((task / "children").read_text().split()) for task in Path(f"/proc/{pid}/task").iterdir())
    return dict(counts)


if __name__ == "__main__":
    main()
