"""Sends a number to the model `bls_decoupled` and checks that all the numbers of the countdown come back in one response."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def count_down(client: triton.InferenceServerClient, start: int) -> list[int]:
    tensor = triton.InferInput("START", [1], "INT32")
    tensor.set_data_from_numpy(np.array([start], np.int32))
    return list(map(int, client.infer("bls_decoupled", [tensor]).as_numpy("COUNTS")))


def check(client: triton.InferenceServerClient) -> None:
    for start in (5, 0):
        counts = count_down(client, start)
        if counts != list(range(start, 0, -1)):
            sys.exit(f"bls_decoupled: COUNTS should go from {start} to 1, got {counts}")
        print(f"{start}: {counts}")
    try:
        count_down(client, -1)
    except InferenceServerException as error:
        print(f"-1: the refusal of countdown is handed on: '{error.message()}'")
    else:
        sys.exit("bls_decoupled: -1 should be refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"bls_decoupled: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
