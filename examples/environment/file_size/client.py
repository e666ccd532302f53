"""Sends numbers of bytes to the model `file_size` and checks the texts that come back, and that it has an environment of its own."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

EXPECTED = {0: "0 Bytes", 1500: "1.5 kB", 1_234_567_890: "1.2 GB"}


def check(client: triton.InferenceServerClient) -> None:
    sizes = np.array(list(EXPECTED), np.int64)
    tensor = triton.InferInput("BYTES", sizes.shape, "INT64")
    tensor.set_data_from_numpy(sizes)
    result = client.infer("file_size", [tensor])
    texts = [text.decode() for text in result.as_numpy("TEXT")]
    if texts != list(EXPECTED.values()):
        sys.exit(f"file_size: TEXT should be {list(EXPECTED.values())}, got {texts}")
    prefix = result.as_numpy("PREFIX")[0].decode()
    if prefix == sys.prefix:
        sys.exit(f"file_size: the model should have an environment of its own, not {prefix}")
    print(f"{sizes.tolist()} bytes are {texts}")
    print(f"computed in the environment {prefix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"file_size: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
