"""Lets the model `double` read its input, and write its output, in memory of a GPU that this client has allocated."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

try:
    import tritonclient.utils.cuda_shared_memory as cuda
except RuntimeError as error:
    sys.exit(f"double: this client needs a GPU, and pip install tritonclient[http,cuda]: {error}")

COUNT, DEVICE = 1 << 20, 0


def check(client: triton.InferenceServerClient) -> None:
    numbers = np.arange(COUNT, dtype=np.float32)
    regions = {name: cuda.create_shared_memory_region(name, numbers.nbytes, DEVICE) for name in ("given", "wanted")}
    try:
        cuda.set_shared_memory_region(regions["given"], [numbers])
        for name, region in regions.items():
            client.register_cuda_shared_memory(name, cuda.get_raw_handle(region), DEVICE, numbers.nbytes)
        given = triton.InferInput("INPUT", numbers.shape, "FP32")
        given.set_shared_memory("given", numbers.nbytes)
        wanted = triton.InferRequestedOutput("OUTPUT")
        wanted.set_shared_memory("wanted", numbers.nbytes)
        client.infer("double", [given], outputs=[wanted])
        found = cuda.get_contents_as_numpy(regions["wanted"], np.float32, numbers.shape)
        if not np.array_equal(found, 2 * numbers):
            sys.exit(f"double: OUTPUT should be twice the input, got {found!r}")
        print(f"{COUNT} numbers doubled on GPU {DEVICE}, from one region of this client's to another")
    finally:
        # Before the memory is freed: the server has it open.
        for name in regions:
            client.unregister_cuda_shared_memory(name)
        for region in regions.values():
            cuda.destroy_shared_memory_region(region)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, cuda.CudaSharedMemoryException, OSError) as error:
        sys.exit(f"double: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
