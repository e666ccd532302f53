"""Outputs on a GPU, which is a stand-in, that a client wants in shared memory of its own."""

from __future__ import annotations

from typing import Iterator, List

import numpy as np
import pytest
from client_requests import SMALL, START, at, execute, request
from shared_memory import ClientFile
from standin_cuda import StandinCuda
from standin_library import Array
from stub_runtime import Runtime
from stublet.shm.cuda.driver import Driver
from stublet.stub.cuda import devices
from stublet.stub.request import InferenceRequest
from stublet.stub.response import InferenceResponse
from stublet.stub.tensor import Tensor


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinCuda]:
    found = StandinCuda()
    monkeypatch.setattr(devices, "_found", None)
    monkeypatch.setattr(devices, "_pid", None)
    devices.attach(Driver(found))
    yield found
    found.close()


def test_an_output_on_a_gpu_goes_to_the_region_of_its_client(runtime: Runtime, file: ClientFile, library: StandinCuda) -> None:
    file.put(SMALL, START)

    def make(requests: List[InferenceRequest]) -> List[InferenceResponse]:
        return [InferenceResponse([Tensor.from_dlpack("out", Array(library, SMALL + 1))]) for _ in requests]

    (result,) = execute(runtime, make, request(at(SMALL), writes=[(0, 512, SMALL.nbytes)]))
    assert not result[6], result
    assert file.bytes_at(START + 512, SMALL.nbytes) == (SMALL + 1).tobytes()
    np.testing.assert_array_equal(np.frombuffer(file.bytes_at(START, SMALL.nbytes), SMALL.dtype), SMALL)
