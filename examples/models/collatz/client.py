"""Asks the model `collatz` for the way to 1 from several numbers at once and checks each step."""

from __future__ import annotations

import argparse
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

NUMBERS = [6, 7, 27]
SECONDS = 30


def way(number: int) -> list[int]:
    steps = []
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps.append(number)
    return steps


def check(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in NUMBERS:
        tensor = triton.InferInput("NUMBER", [1, 1], "INT64")
        tensor.set_data_from_numpy(np.array([[number]], np.int64))
        client.async_stream_infer("collatz", [tensor], request_id=str(number), enable_empty_final_response=True)
    steps: dict[str, list[int]] = {str(number): [] for number in NUMBERS}
    unfinished = set(steps)
    while unfinished:
        result, error = answers.get(timeout=SECONDS)
        if error is not None:
            raise error
        response = result.get_response()
        if response.parameters["triton_final_response"].bool_param:
            unfinished.remove(response.id)
        else:
            steps[response.id].append(int(result.as_numpy("NEXT")[0, 0]))
    client.stop_stream()
    for number in NUMBERS:
        found = steps[str(number)]
        if found != way(number):
            sys.exit(f"collatz: the way from {number} should be {way(number)}, got {found}")
        print(f"{number} -> {' -> '.join(map(str, found[:8]))}{' ...' if len(found) > 8 else ''}: {len(found)} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server's gRPC port (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, queue.Empty, OSError) as error:
        sys.exit(f"collatz: a request to {url} failed: {error}")


if __name__ == "__main__":
    main()
