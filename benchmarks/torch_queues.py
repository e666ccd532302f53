"""A program: hands CUDA tensors of torch's to another process by `torch.multiprocessing` queues, and prints how long each time took.

Its arguments are pairs of bytes and how often, such as `4096:200`; its output is a JSON array with an array of nanoseconds for each, from
before the tensor is made to an answer by another queue, which is given when the tensor's bytes are there: what a model that calls another
can rely on, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

_WARM_UP = 5


def _take(there: Any, back: Any) -> None:
    import torch

    while True:
        tensor = there.get()
        if tensor is None:
            return
        tensor.data_ptr()
        torch.cuda.current_stream().synchronize()
        del tensor
        back.put(True)


def main(turns: Sequence[tuple[int, int]]) -> None:
    """Every tensor is a fresh copy, made within the time: what is sent must not change when the sender's next result is computed."""
    import torch
    from torch import multiprocessing

    context = multiprocessing.get_context("spawn")
    there, back = context.SimpleQueue(), context.SimpleQueue()
    taker = context.Process(target=_take, args=(there, back))
    taker.start()
    found = []
    for nbytes, count in turns:
        source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        took = []
        for _ in range(count + _WARM_UP):
            began = time.perf_counter_ns()
            sent = source.clone()
            there.put(sent)
            back.get()
            took.append(time.perf_counter_ns() - began)
            del sent
        found.append(took[_WARM_UP:])
    there.put(None)
    taker.join()
    print(json.dumps(found))


if __name__ == "__main__":
    main([(int(nbytes), int(count)) for nbytes, count in (turn.split(":") for turn in sys.argv[1:])])
