"""Sends texts to the model `custom_metrics`, and checks what its metrics say about them afterwards."""

from __future__ import annotations

import argparse
import sys
import urllib.request

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

TEXTS = ["one", "two words", "", "a text of five words", " ".join(["many"] * 50)]
# What they should add, as Prometheus' exposition format has it. A bucket counts all that is not above its bound.
EXPECTED = {
    'example_texts{outcome="counted"}': 4,
    'example_texts{outcome="refused"}': 1,
    'example_words_bucket{le="1"}': 1,
    'example_words_bucket{le="10"}': 3,
    'example_words_bucket{le="100"}': 4,
    'example_words_bucket{le="+Inf"}': 4,
    "example_words_sum{}": 58,
    "example_words_count{}": 4,
}


def read_metrics(url: str) -> dict[str, float]:
    """The metrics of the model, by name and labels, without the labels that all of them have."""
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("example_"):
            series, value = line.rsplit(" ", 1)
            name, labels = series.rstrip("}").split("{")
            own = [label for label in labels.split(",") if not label.startswith(("model=", "version="))]
            found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found


def count_words(client: triton.InferenceServerClient, text: str) -> int:
    tensor = triton.InferInput("TEXT", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], np.object_))
    return int(client.infer("custom_metrics", [tensor]).as_numpy("WORDS")[0])


def check(client: triton.InferenceServerClient, metrics_url: str) -> None:
    before = read_metrics(metrics_url)
    for text in TEXTS:
        try:
            count_words(client, text)
        except InferenceServerException:
            if text:
                raise
    after = read_metrics(metrics_url)

    for series, expected in EXPECTED.items():
        added = after.get(series, float("nan")) - before.get(series, 0)
        if added != expected:
            sys.exit(f"custom_metrics: {series} should have grown by {expected}, not by {added}")
        print(f"{series} grew by {expected}")
    longest = after.get("example_longest_text{}", 0)
    if longest < 50:
        sys.exit(f"custom_metrics: the longest text had 50 words, not {longest:g}")
    print(f"example_longest_text is {longest:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    parser.add_argument("--metrics-url", default="http://127.0.0.1:8002/metrics", help="its metrics (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        with triton.InferenceServerClient(arguments.url) as client:
            check(client, arguments.metrics_url)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"custom_metrics: the request to {arguments.url} or {arguments.metrics_url} failed: {error}")


if __name__ == "__main__":
    main()
