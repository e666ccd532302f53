"""Sends the images that the model `digits` was not trained on, and checks that it reads at least 95 % of them."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tritonclient.utils import InferenceServerException

REQUIRED_ACCURACY = 0.95


def held_out(parameters: dict[str, dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """The images [n, 8, 8] and digits [n] that a model with these `parameters` was not trained on."""
    images, digits = load_digits(return_X_y=True)
    _, images, _, digits = train_test_split(
        images.astype(np.float32),
        digits,
        test_size=float(parameters["held_out_share"]["string_value"]),
        random_state=int(parameters["split_seed"]["string_value"]),
        stratify=digits,
    )
    return images.reshape(-1, 8, 8), digits


def read(client: triton.InferenceServerClient, images: np.ndarray) -> np.ndarray:
    """The digits [n] that the model sees in the images [n, 8, 8]; stops the program if the answer makes no sense."""
    image = triton.InferInput("IMAGE", images.shape, "FP32")
    image.set_data_from_numpy(images)
    result = client.infer("digits", [image])
    digits, probabilities = result.as_numpy("DIGIT"), result.as_numpy("PROBABILITIES")

    expected = [("DIGIT", digits, np.int64, 1), ("PROBABILITIES", probabilities, np.float32, 10)]
    for name, tensor, dtype, width in expected:
        if tensor is None or tensor.dtype != dtype or tensor.shape != (len(images), width):
            sys.exit(f"digits: {name} should be {np.dtype(dtype)} {[len(images), width]}, got {tensor!r}")
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-4):
        sys.exit(f"digits: the probabilities of an image should add up to 1, got {probabilities.sum(axis=1)}")
    if not np.array_equal(probabilities.argmax(axis=1), digits[:, 0]):
        sys.exit("digits: DIGIT is not the most probable of PROBABILITIES")
    answers: np.ndarray = digits[:, 0]
    return answers


def check(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("digits")
    images, digits = held_out(config["parameters"])
    step = config["max_batch_size"]
    answers = np.concatenate([read(client, images[start : start + step]) for start in range(0, len(images), step)])
    accuracy = float(np.mean(answers == digits))
    print(f"{len(images)} held-out images in batches of up to {step}: {accuracy:.1%} read correctly")
    if accuracy < REQUIRED_ACCURACY:
        sys.exit(f"digits: that is less than {REQUIRED_ACCURACY:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"digits: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
