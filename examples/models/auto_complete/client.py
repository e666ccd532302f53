"""Asks the server what the model `auto_complete` has said of itself, and checks that it does so."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def check(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("auto_complete")
    described = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"] + metadata["outputs"]]
    expected = [("VALUES", "FP32", [-1, -1]), ("MEAN", "FP32", [-1, 1])]
    if described != expected:
        sys.exit(f"auto_complete: its tensors should be {expected}, got {described}")
    print(f"without a config.pbtxt: {', '.join(f'{name} is {datatype} {shape}' for name, datatype, shape in described)}")

    values = np.array([[1, 2, 3], [10, 20, 60]], np.float32)
    tensor = triton.InferInput("VALUES", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    received = client.infer("auto_complete", [tensor]).as_numpy("MEAN")
    if received is None or not np.array_equal(received, [[2], [30]]):
        sys.exit(f"auto_complete: MEAN should be [[2], [30]], got {received}")
    print(f"the means of {values.tolist()} are {received.tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"auto_complete: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
