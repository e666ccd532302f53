"""Asks the decoupled model `countdown` for a stream of numbers, and checks them as they come.

A decoupled model cannot be asked over HTTP, where a request has one response. This client runs the server itself, inside
its own process; the model and its messages are the same.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from stublet.parent import InvalidArgument, Server, ServerOptions

REPOSITORY = Path(__file__).parent.parent
START = 10


def check(server: Server) -> None:
    began = time.perf_counter()
    counts, seconds = [], []
    for result in server.infer_stream("countdown", {"START": np.array([START], np.int32)}):
        counts.append(int(result["COUNT"][0]))
        seconds.append(time.perf_counter() - began)
    if counts != list(range(START, 0, -1)):
        sys.exit(f"countdown: it should count from {START} to 1, got {counts}")
    if seconds[0] > seconds[-1] / 2:
        sys.exit(f"countdown: the responses should come one by one, got them after {seconds} seconds")
    print(f"{counts}: the first after {seconds[0]:.3f} s, the last after {seconds[-1]:.3f} s")

    if list(server.infer_stream("countdown", {"START": np.array([0], np.int32)})):
        sys.exit("countdown: there is nothing to count from 0")
    try:
        list(server.infer_stream("countdown", {"START": np.array([-1], np.int32)}))
    except InvalidArgument as error:
        print(f"from -1: refused with '{error}'")
    else:
        sys.exit("countdown: -1 should be refused")


def main() -> None:
    # Of all the models in the repository only this one is needed.
    options = ServerOptions(model_control_mode="explicit", load_models=["countdown"])
    with Server(REPOSITORY, options=options) as server:
        check(server)


if __name__ == "__main__":
    main()
