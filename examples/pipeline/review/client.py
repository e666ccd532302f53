"""Sends texts to the ensemble `review` and checks what its three models make of them together."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def ask(client: triton.InferenceServerClient, text: str, *outputs: str) -> triton.InferResult:
    given = triton.InferInput("TEXT", [1], "BYTES")
    given.set_data_from_numpy(np.array([text.encode()], np.object_))
    return client.infer("review", [given], outputs=[triton.InferRequestedOutput(name) for name in outputs] or None)


def check(client: triton.InferenceServerClient) -> None:
    for text, verdict, scores in (
        ("A great film, never dull", "praise", [0, 1, 0, 0, -0.5]),
        ("Awful!", "complaint", [-1]),
        ("A film", "neither", [0, 0]),
    ):
        result = ask(client, text)
        received = result.as_numpy("VERDICT")[0].decode(), result.as_numpy("SCORES").tolist()
        if received != (verdict, scores):
            sys.exit(f"review: {text!r} should be {verdict} with {scores}, not {received}")
        print(f"{text!r}: {received[0]}, word by word {received[1]}")
    # The model "verdict" does not run for what it is not needed for, so it does not complain here.
    if ask(client, "...", "SCORES").as_numpy("SCORES").size:
        sys.exit("review: a text without words should have no scores")
    try:
        ask(client, "...")
    except InferenceServerException as error:
        print(f"a text without words is refused: '{error.message()}'")
    else:
        sys.exit("review: a text without words should be refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"review: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
