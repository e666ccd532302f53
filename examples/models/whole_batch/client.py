"""Asks the model `whole_batch` for the names of colours, many at the same time, and checks that it computed several at once."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

REQUESTS = 32
COLORS = {"red": (250, 10, 5), "white": (240, 250, 255), "blue": (20, 10, 240), "orange": (250, 160, 20)}


def check(client: triton.InferenceServerClient) -> None:
    def ask(number: int) -> triton.InferResult:
        # One colour in the first request, two in the second, and so on up to four.
        colors = np.array(list(COLORS.values())[: number % 4 + 1], np.float32)
        tensor = triton.InferInput("COLOR", colors.shape, "FP32")
        tensor.set_data_from_numpy(colors)
        return client.infer("whole_batch", [tensor])

    with ThreadPoolExecutor(REQUESTS) as pool:
        results = list(pool.map(ask, range(REQUESTS)))
    for number, result in enumerate(results):
        names = [name.decode() for name in result.as_numpy("NAME")[:, 0]]
        distances = result.as_numpy("DISTANCE")
        if names != list(COLORS)[: number % 4 + 1] or distances.shape != (len(names), 1) or not (distances < 40).all():
            sys.exit(f"whole_batch: request {number} should be answered with the names of its colours, got {names}, {distances}")
    most = max(int(result.as_numpy("TOGETHER").max()) for result in results)
    print(f"{REQUESTS} requests, up to {most} of them computed together; the last one's colours are {', '.join(names)}")
    if most < 2:
        sys.exit("whole_batch: requests that come at the same time should be computed together")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server, over gRPC (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"whole_batch: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
