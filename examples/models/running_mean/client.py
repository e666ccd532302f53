"""Sends two sequences of numbers to the model `running_mean`, in turn, and checks the means that come back."""

from __future__ import annotations

import argparse
import sys
from typing import Union

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

SEQUENCES: dict[Union[int, str], list[float]] = {17: [3.0, 5.0, 10.0], "indoors": [20.5, 21.5, 18.0]}


def check(client: triton.InferenceServerClient) -> None:
    length = len(SEQUENCES[17])
    for number in range(length):
        for sequence, values in SEQUENCES.items():
            tensor = triton.InferInput("VALUE", [1, 1], "FP64")
            tensor.set_data_from_numpy(np.array([[values[number]]]))
            first, last = number == 0, number == length - 1
            result = client.infer("running_mean", [tensor], sequence_id=sequence, sequence_start=first, sequence_end=last)
            mean = result.as_numpy("MEAN")[0, 0]
            expected = sum(values[: number + 1]) / (number + 1)
            if abs(mean - expected) > 1e-12:
                sys.exit(f"running_mean: the mean of {values[: number + 1]} should be {expected}, got {mean}")
            print(f"{sequence!r}: the mean of {values[: number + 1]} is {mean:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"running_mean: a request to {url} failed: {error}")


if __name__ == "__main__":
    main()
