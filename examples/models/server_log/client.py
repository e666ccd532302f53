"""Sends a text to the model `server_log`, which writes about it to the server's log: look there afterwards."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def check(client: triton.InferenceServerClient) -> None:
    for request_id, text in (("full", b"some text"), ("empty", b"")):
        tensor = triton.InferInput("TEXT", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([text], np.object_))
        length = client.infer("server_log", [tensor], request_id=request_id).as_numpy("LENGTH")
        if length is None or length.tolist() != [len(text)]:
            sys.exit(f"server_log: LENGTH should be {[len(text)]}, got {length}")
    print("the server's log now has lines about the requests 'full' and 'empty'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"server_log: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
