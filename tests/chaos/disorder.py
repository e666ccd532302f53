"""Who makes the trouble: kills, stops and continues stubs at random, and looks all the while whether the server is there."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any, Dict, List

from http_wire import request
from server_process import ServerProcess

from .tally import Tally

_WAYS = {signal.SIGKILL: 5, signal.SIGSEGV: 2, signal.SIGABRT: 1, signal.SIGTERM: 1, signal.SIGSTOP: 3}
_GAP_SECONDS = (0.1, 2.4)
"""Much more often, and most instances would be waiting to be started again most of the time."""
_STOPPED_SECONDS = (0.05, 1.0)

LIVE_SECONDS = 2.0
"""A server that takes longer to say that it lives does not."""


def instances(server: ServerProcess) -> List[Dict[str, Any]]:
    """What the server says of its instances."""
    with server.wire() as wire:
        report = json.loads(wire.ask(request("GET", "/v2/stublet/instances")).body)
    return [{"model": model["name"], **instance} for model in report["models"] for instance in model["instances"]]


class Disorder(threading.Thread):
    """``done`` counts what it did, by signal."""

    def __init__(self, server: ServerProcess, seed: int, tally: Tally) -> None:
        super().__init__(name="disorder", daemon=True)
        self._server = server
        self._random = random.Random(seed)
        self._tally = tally
        self._over = threading.Event()
        self.done: Counter[str] = Counter()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(self._random.uniform(*_GAP_SECONDS)):
            try:
                self._hurt(self._random.choices(list(_WAYS), list(_WAYS.values()))[0])
            except Exception as error:
                self._tally.violated(f"the server does not say what it runs: {error!r}")
                return

    def _hurt(self, way: signal.Signals) -> None:
        living = [one["pid"] for one in instances(self._server) if one["pid"] and one["state"] in ("LOADING", "READY")]
        if not living:
            return
        pid = self._random.choice(living)
        with suppress(ProcessLookupError):  # it was ended, or recycled, meanwhile
            os.kill(pid, way)
            self.done[way.name] += 1
            if way is signal.SIGSTOP:
                self._over.wait(self._random.uniform(*_STOPPED_SECONDS))
                os.kill(pid, signal.SIGCONT)


class Observer(threading.Thread):
    """Asks the server whether it lives. ``slowest``: seconds."""

    def __init__(self, server: ServerProcess, tally: Tally) -> None:
        super().__init__(name="observer", daemon=True)
        self._server = server
        self._tally = tally
        self._over = threading.Event()
        self.slowest = 0.0

    def stop(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.05):
            begun = time.monotonic()
            try:
                with self._server.wire() as wire:
                    status = wire.ask(request("GET", "/v2/health/live")).status
            except Exception as error:
                self._tally.violated(f"nobody answers whether the server lives: {error!r}")
                return
            seconds = time.monotonic() - begun
            self.slowest = max(self.slowest, seconds)
            if status != 200 or seconds > LIVE_SECONDS:
                self._tally.violated(f"whether the server lives is answered with {status} after {seconds:.2f} s")
