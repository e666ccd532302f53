"""A library that computes on a GPU that is a stand-in, as a model uses one."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import capsule
import numpy as np
from capsule import VERSIONED, Producer, contents
from standin_cuda import StandinCuda
from stublet.stub.cuda import devices

FLOAT32 = (capsule.FLOAT, 32, 1)


class Array:
    """An array there, and a stream on which it is written when somebody waits for it. Its memory is freed when whoever it was handed to has
    done with it, once ``free`` was called."""

    def __init__(self, library: StandinCuda, values: np.ndarray, device: int = 0) -> None:
        self.library = library
        self.values = values
        self.device = device
        with devices.devices().on(devices.devices().get(device)) as driver:
            self.stream = driver.create_stream()
            self.pointer = driver.allocate(max(values.nbytes, 1))
        self.asked: List[Any] = []
        self.deleted: List[int] = []

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (capsule.CUDA, self.device)

    def __dlpack__(self, stream: Optional[int] = None, **more: Any) -> Any:
        self.asked.append((stream, more))
        assert stream is not None
        ours, theirs = self.library.streams[self.stream], self.library.streams[stream]
        ours.work.append(lambda: self.library.write(self.pointer, self.values.tobytes()))
        theirs.work.append(ours.run)
        producer = Producer(b"", self.values.shape, dtype=FLOAT32, device=self.__dlpack_device__(), name=VERSIONED)
        producer._managed.tensor.data = self.pointer
        self.deleted = producer.deleted
        return producer.capsule

    def free(self) -> None:
        with devices.devices().on(devices.devices().get(self.device)) as driver:
            driver.free(self.pointer)
            driver.destroy_stream(self.stream)


def values_of(library: StandinCuda, tensor: Any) -> np.ndarray:
    """What a library reads that is handed a tensor: FP32 [n]."""
    found = contents(tensor.__dlpack__(stream=1))
    assert found.device[0] == capsule.CUDA and found.dtype == FLOAT32
    count = int(np.prod(found.shape))
    return np.frombuffer(library.read(found.address or 0, count * 4) if count else b"", np.float32).reshape(found.shape)
