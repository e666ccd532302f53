"""Asks the model `cancellation` for half a minute of work, gives up, and checks that the model is free again soon."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

PATIENCE_SECONDS = 0.3
LONG_STEPS, LONG_SECONDS = 3000, 30


def ask(client: triton.InferenceServerClient, steps: int) -> tuple[int, int]:
    """How many steps were done, and how many requests have been abandoned so far."""
    tensor = triton.InferInput("STEPS", [1], "INT32")
    tensor.set_data_from_numpy(np.array([steps], np.int32))
    result = client.infer("cancellation", [tensor])
    return int(result.as_numpy("DONE")[0]), int(result.as_numpy("ABANDONED")[0])


def check(url: str) -> None:
    with triton.InferenceServerClient(url) as client:
        _, abandoned_before = ask(client, 1)
        with triton.InferenceServerClient(url, network_timeout=PATIENCE_SECONDS) as impatient:
            try:
                ask(impatient, LONG_STEPS)
            except TimeoutError:
                print(f"no answer within {PATIENCE_SECONDS} s: the client gave up, which closed its connection")
            else:
                sys.exit(f"cancellation: {LONG_STEPS} steps should take about {LONG_SECONDS} s")
        began = time.perf_counter()
        done, abandoned = ask(client, 1)
        seconds = time.perf_counter() - began
    if done != 1 or abandoned <= abandoned_before or seconds > LONG_SECONDS / 2:
        sys.exit(f"cancellation: the next request was answered after {seconds:.1f} s, with {abandoned} requests abandoned")
    print(f"the next request was answered after {seconds:.3f} s, and the model knows of {abandoned} that was abandoned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        check(url)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"cancellation: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
