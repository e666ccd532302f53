"""Sends tensors of every data type, from none to half a million elements, to the model `identity`, and checks each."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

INTEGERS = [f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64)]
FLOATS = ["FP16", "BF16", "FP32", "FP64"]
DATATYPES = ["BOOL", *INTEGERS, *FLOATS, "BYTES"]
SIZES = [0, 1, 1000, 1 << 19]


def sample(datatype: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A vector of `size` elements, in the NumPy type that tritonclient uses for `datatype`."""
    if datatype == "BYTES":
        # Neither text nor of one length: any bytes are allowed, none at all too.
        return np.array([rng.bytes(index % 7) for index in range(size)], dtype=np.object_)
    if datatype == "BOOL":
        return rng.random(size) < 0.5
    if datatype in FLOATS:
        # BF16 has no type in NumPy itself; depending on its version, tritonclient stands in FP32 or ml_dtypes.bfloat16
        # for it. Whole numbers up to 255 are exact in all of them.
        return rng.integers(-255, 256, size).astype(triton_to_np_dtype(datatype))
    limits = np.iinfo(triton_to_np_dtype(datatype))
    return rng.integers(limits.min, limits.max, size, dtype=limits.dtype, endpoint=True)


def exchange(client: triton.InferenceServerClient, tensors: dict[str, np.ndarray]) -> None:
    """Sends one request with these tensors, by data type, and stops the program if one comes back different."""
    inputs = []
    for datatype, sent in tensors.items():
        inputs.append(triton.InferInput(f"INPUT_{datatype}", sent.shape, datatype))
        inputs[-1].set_data_from_numpy(sent)
    result = client.infer("identity", inputs)

    outputs = {output["name"] for output in result.get_response().get("outputs", [])}
    if outputs != {f"OUTPUT_{datatype}" for datatype in tensors}:
        sys.exit(f"identity: sent {sorted(tensors)}, got {sorted(outputs)}")
    for datatype, sent in tensors.items():
        received = result.as_numpy(f"OUTPUT_{datatype}")
        if received.dtype != sent.dtype or not np.array_equal(received, sent):
            sys.exit(f"identity: sent {datatype} {list(sent.shape)} {sent}, got {list(received.shape)} {received}")


def check(client: triton.InferenceServerClient) -> None:
    rng = np.random.default_rng(seed=0)
    start = time.perf_counter()
    for size in SIZES:
        for datatype in DATATYPES:
            exchange(client, {datatype: sample(datatype, size, rng)})
    exchange(client, {datatype: sample(datatype, size, rng) for size, datatype in enumerate(DATATYPES)})
    seconds = time.perf_counter() - start
    print(f"{len(DATATYPES)} data types, alone and all in one request, came back bit for bit in {seconds:.1f} s")
    print(f"elements in a tensor: {', '.join(map(str, SIZES))}; the largest has {SIZES[-1] * 8 >> 20} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"identity: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
