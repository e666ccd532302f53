"""Sends two vectors to the model `bls_sync` and checks the difference of their squares that comes back."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def check(client: triton.InferenceServerClient) -> None:
    left = np.array([1, 2, 3, 4], dtype=np.float32)
    right = np.array([0.5, -2, 1, 0], dtype=np.float32)
    inputs = [triton.InferInput(name, [4], "FP32") for name in ("INPUT0", "INPUT1")]
    inputs[0].set_data_from_numpy(left)
    inputs[1].set_data_from_numpy(right)
    received = client.infer("bls_sync", inputs).as_numpy("OUTPUT")

    expected = left * left - right * right
    if received is None or received.dtype != np.float32 or not np.array_equal(received, expected):
        sys.exit(f"bls_sync: OUTPUT should be {expected}, got {received}")
    print(f"{left}² - {right}² = {received}, with the help of add_sub")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"bls_sync: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
