"""Sends a picture of a disc to the model `edges`, compares the answer with NumPy's and looks for the rim in it."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

HEIGHT, WIDTH, RADIUS = 240, 320, 80.0


def distance_from_centre() -> np.ndarray:
    """How far each pixel lies from the centre of the picture, [HEIGHT, WIDTH]."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    distance: np.ndarray = np.hypot(rows - HEIGHT / 2, columns - WIDTH / 2)
    return distance


def picture() -> np.ndarray:
    """An orange disc on a blue ground with a little noise, uint8 [HEIGHT, WIDTH, 3]."""
    inside = (distance_from_centre() < RADIUS)[..., None]
    noise = np.random.default_rng(seed=0).integers(0, 8, (HEIGHT, WIDTH, 3))
    return (np.where(inside, [240, 160, 40], [20, 40, 120]) + noise).astype(np.uint8)


def edges_by_numpy(image: np.ndarray) -> np.ndarray:
    """What the model should answer, written without PyTorch."""
    grey = np.pad(image @ np.array([0.299, 0.587, 0.114]) / 255, 1, mode="edge")
    rows = grey[:-2] + 2 * grey[1:-1] + grey[2:]
    columns = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    strength: np.ndarray = np.hypot(rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2])
    return strength


def check(client: triton.InferenceServerClient) -> None:
    image = picture()
    tensor = triton.InferInput("IMAGE", image.shape, "UINT8")
    tensor.set_data_from_numpy(image)
    edges = client.infer("edges", [tensor]).as_numpy("EDGES")

    if edges is None or edges.dtype != np.float32 or edges.shape != (HEIGHT, WIDTH):
        sys.exit(f"edges: EDGES should be float32 {[HEIGHT, WIDTH]}, got {edges!r}")
    difference = float(np.abs(edges - edges_by_numpy(image)).max())
    if not difference < 1e-4:
        sys.exit(f"edges: the answer differs from NumPy's by up to {difference:g}")
    found = distance_from_centre()[edges > 0.5]
    if not len(found) or np.abs(found - RADIUS).max() > 2:
        sys.exit(f"edges: strong edges should lie {RADIUS:g} pixels from the centre, not at {found}")
    print(f"a {WIDTH}x{HEIGHT} picture: the answer is NumPy's to within {difference:.0e}")
    print(f"{len(found)} pixels of strong edge, all on the rim of the disc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"edges: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
