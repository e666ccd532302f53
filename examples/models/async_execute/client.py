"""Sends requests at the same time to the model `async_execute`, and checks that its one instance waits for several at once."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

REQUESTS = 8
MILLISECONDS = 200


def check(client: triton.InferenceServerClient) -> None:
    most = int(client.get_model_config("async_execute")["parameters"]["max_concurrent"]["string_value"])
    tensor = triton.InferInput("MILLISECONDS", [1], "INT32")
    tensor.set_data_from_numpy(np.array([MILLISECONDS], np.int32))

    began = time.perf_counter()
    sent = [client.async_infer("async_execute", [tensor]) for _ in range(REQUESTS)]
    peak = max(int(request.get_result().as_numpy("IN_PROGRESS")[0]) for request in sent)
    seconds = time.perf_counter() - began
    print(f"{REQUESTS} requests of {MILLISECONDS} ms each took {seconds:.1f} s; up to {peak} were in progress at once")
    if not 1 < peak <= most:
        sys.exit(f"async_execute: from 2 to {most} requests should be in progress at once, not {peak}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        # So many connections can the client use at a time.
        with triton.InferenceServerClient(url, concurrency=REQUESTS) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"async_execute: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
