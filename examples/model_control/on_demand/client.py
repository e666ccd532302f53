"""Sends temperatures to the model `on_demand`, which loads another model for them, and checks which ones are loaded then."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ON_DEMAND = ("to_celsius", "to_fahrenheit")


def convert(client: triton.InferenceServerClient, model: str, degrees: list[float]) -> list[float]:
    inputs = [triton.InferInput("MODEL", [1], "BYTES"), triton.InferInput("DEGREES", [len(degrees)], "FP64")]
    inputs[0].set_data_from_numpy(np.array([model.encode()], np.object_))
    inputs[1].set_data_from_numpy(np.array(degrees, np.float64))
    return [round(float(value), 6) for value in client.infer("on_demand", inputs).as_numpy("DEGREES")]


def check(client: triton.InferenceServerClient) -> None:
    for model, given, expected in (
        ("to_fahrenheit", [0.0, 100.0, -40.0], [32.0, 212.0, -40.0]),
        ("to_fahrenheit", [37.0], [98.6]),
        ("to_celsius", [32.0, 212.0, -40.0], [0.0, 100.0, -40.0]),
    ):
        received = convert(client, model, given)
        if received != expected:
            sys.exit(f"on_demand: {model} should make {expected} of {given}, not {received}")
        ready = [name for name in ON_DEMAND if client.is_model_ready(name)]
        if ready != [model]:
            sys.exit(f"on_demand: {model} should be the one that is loaded, not {ready}")
        print(f"{model}: {given} -> {received}; of the models on demand, {', '.join(ready)} is loaded")
    try:
        convert(client, "on_demand", [0.0])
    except InferenceServerException as error:
        print(f"any other model is refused: '{error.message()}'")
    else:
        sys.exit("on_demand: a model that is not on the list should be refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"on_demand: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
