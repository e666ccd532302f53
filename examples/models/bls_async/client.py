"""Sends four vectors to the model `bls_async` and checks the sum that comes back."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def check(client: triton.InferenceServerClient) -> None:
    vectors = np.arange(16, dtype=np.float32).reshape(4, 4)
    inputs = [triton.InferInput(f"INPUT{i}", [4], "FP32") for i in range(4)]
    for tensor, vector in zip(inputs, vectors):
        tensor.set_data_from_numpy(vector)
    received = client.infer("bls_async", inputs).as_numpy("SUM")

    expected = vectors.sum(axis=0)
    if received is None or received.dtype != np.float32 or not np.array_equal(received, expected):
        sys.exit(f"bls_async: SUM should be {expected}, got {received}")
    print(f"{' + '.join(map(str, vectors))} = {received}, in three calls of add_sub")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"bls_async: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
