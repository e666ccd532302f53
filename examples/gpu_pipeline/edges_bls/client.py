"""Sends a picture of a disc to the models `edges_bls` and `edges_ensemble` and compares both answers with NumPy's."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

HEIGHT, WIDTH, RADIUS = 480, 640, 160.0
MODELS = ("edges_bls", "edges_ensemble")


def picture() -> np.ndarray:
    """An orange disc on a blue ground with a little noise, uint8 [HEIGHT, WIDTH, 3]."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    inside = (np.hypot(rows - HEIGHT / 2, columns - WIDTH / 2) < RADIUS)[..., None]
    noise = np.random.default_rng(seed=0).integers(0, 8, (HEIGHT, WIDTH, 3))
    return (np.where(inside, [240, 160, 40], [20, 40, 120]) + noise).astype(np.uint8)


def edges_by_numpy(image: np.ndarray) -> np.ndarray:
    """What the models should answer, from 0 to 255."""
    grey = np.pad(image @ np.array([0.299, 0.587, 0.114]) / 255, 1, mode="edge")
    rows = grey[:-2] + 2 * grey[1:-1] + grey[2:]
    columns = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    strength: np.ndarray = np.hypot(rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2])
    return strength * 255 / strength.max()


def check(client: triton.InferenceServerClient, model: str) -> None:
    image = picture()
    tensor = triton.InferInput("IMAGE", image.shape, "UINT8")
    tensor.set_data_from_numpy(image)
    edges = client.infer(model, [tensor]).as_numpy("EDGES")
    if edges is None or edges.dtype != np.uint8 or edges.shape != (HEIGHT, WIDTH):
        sys.exit(f"{model}: EDGES should be uint8 {[HEIGHT, WIDTH]}, got {edges!r}")
    difference = float(np.abs(edges - edges_by_numpy(image)).max())
    if not difference <= 1:
        sys.exit(f"{model}: the answer differs from NumPy's by up to {difference:g} of 255")
    print(f"{model}: the edges of a {WIDTH}x{HEIGHT} picture are NumPy's to within {difference:.2f} of 255")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            for model in MODELS:
                check(client, model)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"edges: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
