"""A program: hands a CUDA tensor of torch's to another process by `torch.multiprocessing` queues, and prints how long each time took.

Its arguments are bytes and how often; its output is a JSON array of nanoseconds, from `put` to an answer by another queue.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def _take(there: Any, back: Any) -> None:
    while True:
        tensor = there.get()
        if tensor is None:
            return
        tensor.data_ptr()
        del tensor
        back.put(True)


def main(nbytes: int, count: int) -> None:
    """Every tensor is a fresh copy, made within the time: what is sent must not change when the sender's next result is computed."""
    import torch
    from torch import multiprocessing

    context = multiprocessing.get_context("spawn")
    there, back = context.SimpleQueue(), context.SimpleQueue()
    taker = context.Process(target=_take, args=(there, back))
    taker.start()
    source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    took = []
    for _ in range(count + 5):
        began = time.perf_counter_ns()
        sent = source.clone()
        there.put(sent)
        back.get()
        took.append(time.perf_counter_ns() - began)
        del sent
    there.put(None)
    taker.join()
    print(json.dumps(took[5:]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
