"""Asks the decoupled model `countdown` for a stream of numbers over gRPC, and checks them as they come.

Over HTTP they come as server-sent events: curl -N localhost:8000/v2/models/countdown/generate_stream -d '{"START": 10}'
"""

from __future__ import annotations

import argparse
import queue
import sys
import time
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

START = 10


def count_from(client: triton.InferenceServerClient, start: int) -> Iterator[int]:
    """The numbers that the model sends. Raises InferenceServerException if it refuses."""
    responses: queue.Queue[object] = queue.Queue()
    client.start_stream(lambda result, error: responses.put(error or result))
    try:
        given = triton.InferInput("START", [1], "INT32")
        given.set_data_from_numpy(np.array([start], np.int32))
        # Asks for a last response without outputs, which says that there are no more.
        client.async_stream_infer("countdown", [given], enable_empty_final_response=True)
        while True:
            response = responses.get(timeout=10)
            if not isinstance(response, triton.InferResult):
                raise response
            message = response.get_response()
            if message.outputs:
                yield int(response.as_numpy("COUNT")[0])
            if message.parameters["triton_final_response"].bool_param:
                return
    finally:
        client.stop_stream()


def check(client: triton.InferenceServerClient) -> None:
    began = time.perf_counter()
    counts, seconds = [], []
    for count in count_from(client, START):
        counts.append(count)
        seconds.append(time.perf_counter() - began)
    if counts != list(range(START, 0, -1)):
        sys.exit(f"countdown: it should count from {START} to 1, got {counts}")
    if seconds[0] > seconds[-1] / 2:
        sys.exit(f"countdown: the responses should come one by one, got them after {seconds} seconds")
    print(f"{counts}: the first after {seconds[0]:.3f} s, the last after {seconds[-1]:.3f} s")

    if list(count_from(client, 0)):
        sys.exit("countdown: there is nothing to count from 0")
    try:
        list(count_from(client, -1))
    except InferenceServerException as error:
        print(f"from -1: refused with '{error.message()}'")
    else:
        sys.exit("countdown: -1 should be refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server's gRPC (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except InferenceServerException as error:
        sys.exit(f"countdown: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
