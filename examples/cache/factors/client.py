"""Has the model `factors` factorize a number twice, and checks that it was executed once."""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import List, Tuple

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def ask(client: triton.InferenceServerClient, number: int) -> Tuple[List[int], float]:
    """The factors of a number, and the milliseconds that the answer took."""
    asked = triton.InferInput("NUMBER", [1], "INT64")
    asked.set_data_from_numpy(np.array([number], dtype=np.int64))
    began = time.perf_counter()
    factors = client.infer("factors", [asked]).as_numpy("FACTORS").tolist()
    return factors, 1000 * (time.perf_counter() - began)


def hits(client: triton.InferenceServerClient) -> int:
    """How many answers came from the cache."""
    statistics = client.get_inference_statistics("factors")["model_stats"][0]["inference_stats"]
    return int(statistics.get("cache_hit", {}).get("count", 0))


def check(client: triton.InferenceServerClient) -> None:
    number = 999_983 * 999_979 - random.randrange(1_000_000)
    before = hits(client)
    factors, computed = ask(client, number)
    again, cached = ask(client, number)
    if int(np.prod(factors, dtype=np.int64)) != number or again != factors:
        sys.exit(f"factors: {number} is not the product of {factors}, or then {again}")
    if hits(client) != before + 1:
        sys.exit("factors: the second answer was computed: start the server with --cache-config=local,size=1048576")
    print(f"{number} = {' * '.join(map(str, factors))}: computed in {computed:.1f} ms, then found in {cached:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"factors: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
