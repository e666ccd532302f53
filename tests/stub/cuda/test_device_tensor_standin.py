"""Tensors on a GPU that is a stand-in: what a model can do with one, and what it cannot."""

from __future__ import annotations

import gc
import re
import sys
import threading
import weakref
from typing import Any, Callable, List, Optional, Tuple

import capsule
import numpy as np
import pytest
from capsule import LEGACY, VERSIONED, Producer, contents, name_of
from server_process import until
from standin_cuda import StandinCuda
from standin_library import Array
from stublet.stub.cuda import devices
from stublet.stub.error import TritonModelException
from stublet.stub.tensor import Tensor

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
MANAGED = 13


@pytest.fixture
def tensor(library: StandinCuda) -> Tensor:
    return Tensor.from_dlpack("X", Array(library, VALUES))


def test_what_it_says_of_itself(tensor: Tensor) -> None:
    assert (tensor.name(), tensor.shape(), tensor.triton_dtype(), tensor.is_cpu()) == ("X", [2, 3], 11, False)
    assert tensor.__dlpack_device__() == (capsule.CUDA, 0)
    assert isinstance(tensor, Tensor) and repr(tensor) == "Tensor('X', FP32, [2, 3])"


def test_it_is_no_array_and_how_it_becomes_one(tensor: Tensor) -> None:
    with pytest.raises(TritonModelException) as caught:
        tensor.as_numpy()
    assert str(caught.value) == "Tensor is stored in GPU and cannot be converted to NumPy. Use tensor.cpu().as_numpy()."
    for host in (tensor.cpu(), tensor.to("cpu")):
        assert host.is_cpu() and host.name() == "X"
        np.testing.assert_array_equal(host.as_numpy(), VALUES)
        assert host.cpu() is host and host.to("cpu") is host


def test_the_producer_is_asked_for_a_stream_and_waited_for(library: StandinCuda) -> None:
    array = Array(library, VALUES)
    library.calls.clear()
    tensor = Tensor.from_dlpack("X", array)
    ((stream, more),) = array.asked
    assert stream not in (0, 1, 2) and stream in library.streams and more == {"max_version": (1, 0)}
    assert library.read(array.pointer, 24) == VALUES.tobytes(), "complete when from_dlpack returns"
    assert "cuCtxSynchronize" not in library.calls, "and nobody else was waited for"
    assert not array.deleted
    del tensor
    assert len(array.deleted) == 1


def test_waiting_lets_other_threads_run_and_ends_when_the_work_does(library: StandinCuda) -> None:
    array = Array(library, VALUES)
    library.streams[array.stream].free_to_run.clear()
    found: List[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(Tensor.from_dlpack("X", array)))
    thread.start()
    until(lambda: bool(array.asked))
    assert not found
    library.streams[array.stream].free_to_run.set()
    thread.join()
    np.testing.assert_array_equal(found[0].cpu().as_numpy(), VALUES)


def test_waiting_keeps_no_other_tensor_from_being_copied(library: StandinCuda, tensor: Tensor) -> None:
    array = Array(library, VALUES)
    library.streams[array.stream].free_to_run.clear()
    found: List[Any] = []
    threads = [threading.Thread(target=lambda: found.append(Tensor.from_dlpack("X", array)))]
    threads[0].start()
    until(lambda: bool(array.asked))
    threads.append(threading.Thread(target=lambda: found.append(tensor.cpu())))
    threads[1].start()
    try:
        until(lambda: bool(found))
        assert found[0].is_cpu()
    finally:
        library.streams[array.stream].free_to_run.set()
        for thread in threads:
            thread.join()


def test_a_bare_capsule_waits_for_everything(library: StandinCuda) -> None:
    array = Array(library, VALUES)
    theirs = array.__dlpack__(stream=array.stream)
    tensor = Tensor.from_dlpack("X", theirs)
    assert library.calls.count("cuCtxSynchronize") == 1
    np.testing.assert_array_equal(tensor.cpu().as_numpy(), VALUES)
    assert name_of(theirs) == b"used_dltensor_versioned"
    with pytest.raises(TritonModelException, match="consumed before"):
        Tensor.from_dlpack("X", theirs)


class OldArray(Array):
    def __dlpack__(self, stream: Optional[int] = None) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream)


def test_a_producer_from_before_versions(library: StandinCuda) -> None:
    array = OldArray(library, VALUES)
    np.testing.assert_array_equal(Tensor.from_dlpack("X", array).cpu().as_numpy(), VALUES)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_nothing_is_on_a_gpu_too(library: StandinCuda, shape: Tuple[int, ...]) -> None:
    tensor = Tensor.from_dlpack("X", Array(library, np.zeros(shape, np.float32)))
    assert not tensor.is_cpu() and tensor.shape() == list(shape)
    assert contents(tensor.to_dlpack()).address is None
    assert tensor.cpu().as_numpy().shape == shape


@pytest.mark.parametrize(
    "dtype, nbytes",
    [((code, bits, 1), bits // 8) for code in (capsule.INT, capsule.UINT) for bits in (8, 16, 32, 64)]
    + [((capsule.FLOAT, bits, 1), bits // 8) for bits in (16, 32, 64)]
    + [((capsule.BFLOAT, 16, 1), 2), ((capsule.BOOL, 8, 1), 1)],
)
def test_every_data_type(library: StandinCuda, dtype: Tuple[int, int, int], nbytes: int) -> None:
    tensor = on_gpu(library, bytes(range(2 * nbytes)), (2,), dtype=dtype)
    found = contents(tensor.__dlpack__(max_version=(1, 0)))
    assert (found.dtype, found.shape, found.device) == (dtype, [2], (capsule.CUDA, 0))
    assert tensor.cpu()._wire().tobytes() == bytes(range(2 * nbytes))


def on_gpu(library: StandinCuda, data: bytes, shape: Tuple[int, ...], **more: Any) -> Tensor:
    """From a bare capsule with these fields."""
    with devices.devices().driver.on(0):
        pointer = devices.devices().driver.allocate(max(len(data), 1))
    library.write(pointer, data)
    producer = Producer(b"", shape, device=more.pop("device", (capsule.CUDA, 0)), **more)
    producer._managed.tensor.data = pointer
    return Tensor.from_dlpack("X", producer.capsule)


def test_managed_memory_is_a_gpus(library: StandinCuda) -> None:
    tensor = on_gpu(library, b"abcd", (4,), device=(MANAGED, 0))
    assert tensor.__dlpack_device__() == (capsule.CUDA, 0) and tensor.cpu()._wire().tobytes() == b"abcd"


def test_an_offset_within_the_capsule(library: StandinCuda) -> None:
    assert on_gpu(library, b"abcdef", (4,), byte_offset=2).cpu()._wire().tobytes() == b"cdef"


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: Producer(b"", (2, 2), strides=(1, 2), device=(capsule.CUDA, 0)), "DLPack tensor is not contiguous"),
        (lambda: Producer(b"", (2,), strides=(2,), device=(capsule.CUDA, 0)), "DLPack tensor is not contiguous"),
        (lambda: Producer(b"", (2,), dtype=(capsule.COMPLEX, 64, 1), device=(capsule.CUDA, 0)), "Dtype is invalid."),
        (lambda: Producer(b"", (2,), dtype=(capsule.FLOAT, 8, 1), device=(capsule.CUDA, 0)), "Dtype is invalid."),
        (lambda: Producer(b"", (2,), dtype=(capsule.BFLOAT, 32, 1), device=(capsule.CUDA, 0)), "Expected BF16 tensor to have 16 bits"),
        (lambda: Producer(b"", (2,), device=(capsule.CUDA, 7)), "there is no GPU 7 in this process, which sees 2"),
        (lambda: Producer(b"", (2,), device=(capsule.CUDA, -1)), "there is no GPU -1 in this process, which sees 2"),
        (lambda: Producer(b"", (2,), device=(10, 0)), "DLDevice type 10 is not support by Python backend."),
    ],
)
def test_what_cannot_be_taken_over_stays_with_its_producer(library: StandinCuda, make: Callable[[], Producer], complaint: str) -> None:
    producer = make()
    with pytest.raises(TritonModelException, match=re.escape(complaint)):
        Tensor.from_dlpack("X", producer.capsule)
    assert not producer.deleted and name_of(producer.capsule) == LEGACY


def test_an_object_on_a_device_that_is_not_there_is_not_asked(library: StandinCuda) -> None:
    array = Array(library, VALUES)
    array.device = 5
    with pytest.raises(TritonModelException, match="there is no GPU 5"):
        Tensor.from_dlpack("X", array)
    assert not array.asked


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_found", devices.NoDriver("none"))
    for source in (Producer(b"", (2,), device=(capsule.CUDA, 0)), Producer(b"", (2,), device=(capsule.CUDA, 0)).capsule):
        with pytest.raises(TritonModelException, match="DLPack capsule passed pointer to memory allocated on GPU device, when GPU is not"):
            Tensor.from_dlpack("X", source)
    with pytest.raises(TritonModelException, match="cannot be moved"):
        Tensor("X", VALUES).to("cuda")


# Export


@pytest.mark.parametrize("stream", [None, -1, 1, 2, 0x7F0000000000])
def test_every_kind_of_stream(tensor: Tensor, stream: Optional[int]) -> None:
    found = contents(tensor.__dlpack__(stream=stream))
    assert (found.device, found.version, found.strides) == ((capsule.CUDA, 0), None, None)


@pytest.mark.parametrize("stream, error", [(0, ValueError), (-2, ValueError), ("1", TypeError), (1.0, TypeError), (True, TypeError)])
def test_what_is_no_stream(tensor: Tensor, stream: Any, error: Any) -> None:
    with pytest.raises(error, match="stream"):
        tensor.__dlpack__(stream=stream)


@pytest.mark.parametrize("wanted, name", [(None, LEGACY), ((0, 8), LEGACY), ((1, 0), VERSIONED), ((1, 3), VERSIONED)])
def test_versions(tensor: Tensor, wanted: Any, name: bytes) -> None:
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        assert name_of(tensor.__dlpack__(max_version=wanted)) == name


def test_a_copy_in_host_memory(tensor: Tensor) -> None:
    for copy in (None, True):
        found = contents(tensor.__dlpack__(max_version=(1, 0), dl_device=(capsule.CPU, 0), copy=copy))
        assert found.device == (capsule.CPU, 0) and found.flags in (None, 2)
    with pytest.raises(BufferError, match="without a copy"):
        tensor.__dlpack__(dl_device=(capsule.CPU, 0), copy=False)
    assert np.from_dlpack(Wrapped(tensor)).tolist() == VALUES.tolist()  # type: ignore[arg-type]


class Wrapped:
    """numpy asks for host memory only of who says that it is there."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return self.tensor.__dlpack__(dl_device=(capsule.CPU, 0))

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (capsule.CPU, 0)


def test_a_copy_on_the_device(tensor: Tensor, library: StandinCuda) -> None:
    here = contents(tensor.to_dlpack()).address
    mine = tensor.__dlpack__(max_version=(1, 0), copy=True)
    there = contents(mine)
    assert there.address not in (None, here) and there.flags in (None, 2)
    assert library.read(there.address or 0, 24) == VALUES.tobytes()
    assert contents(tensor.__dlpack__(copy=False, dl_device=(capsule.CUDA, 0))).address == here
    held = len(library.allocations)
    del mine
    until(lambda: len(library.allocations) == held - 1)


@pytest.mark.parametrize("device", [(capsule.CUDA, 1), (10, 0), (capsule.CUDA_HOST, 0)])
def test_another_device(tensor: Tensor, device: Tuple[int, int]) -> None:
    with pytest.raises(BufferError, match="cannot be exported to device"):
        tensor.__dlpack__(dl_device=device)


def test_a_capsule_holds_the_tensor_once(tensor: Tensor) -> None:
    before = sys.getrefcount(tensor)
    held = tensor.to_dlpack()
    assert sys.getrefcount(tensor) == before + 1
    del held
    assert sys.getrefcount(tensor) == before


def test_the_producers_memory_lives_as_long_as_any_capsule(library: StandinCuda) -> None:
    array = Array(library, VALUES)
    tensor = Tensor.from_dlpack("X", array)
    first, again = tensor.to_dlpack(), Tensor.from_dlpack("Y", tensor)
    memory = weakref.ref(tensor._memory)  # type: ignore[attr-defined]
    del tensor, first
    assert memory() is not None and not array.deleted
    np.testing.assert_array_equal(again.cpu().as_numpy(), VALUES)
    del again
    gc.collect()
    assert memory() is None and len(array.deleted) == 1


# To the GPU


def test_from_the_host_and_back(library: StandinCuda) -> None:
    tensor = Tensor("X", VALUES)
    there = tensor.to("cuda:1")
    assert there.__dlpack_device__() == (capsule.CUDA, 1) and there.to("cuda:1") is there
    np.testing.assert_array_equal(there.cpu().as_numpy(), VALUES)
    assert there.to("cuda").__dlpack_device__() == (capsule.CUDA, 0)
    del there
    until(lambda: not library.allocations)


def test_its_memory_is_freed_when_nothing_reads_it_any_more(library: StandinCuda) -> None:
    with devices.devices().driver.on(0):
        reader = devices.devices().driver.create_stream()
    library.streams[reader].free_to_run.clear()
    tensor = Tensor("X", VALUES).to("cuda:0")
    held = tensor.__dlpack__(stream=reader)
    library.calls.clear()
    del tensor, held
    try:
        until(lambda: library.calls.count("cuEventSynchronize") == 2)
        assert library.allocations
    finally:
        library.streams[reader].free_to_run.set()
    until(lambda: not library.allocations)
    assert "cuCtxSynchronize" not in library.calls


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "cuda:0:0"])
def test_what_is_no_device(device: str) -> None:
    with pytest.raises(TritonModelException, match="there is no device"):
        Tensor("X", VALUES).to(device)


def test_strings_stay_on_the_host(library: StandinCuda) -> None:
    with pytest.raises(TritonModelException, match="BYTES"):
        Tensor("X", np.array([b"a"], object)).to("cuda:0")


def test_a_full_gpu_is_an_error(library: StandinCuda) -> None:
    library.limit = 0
    with pytest.raises(TritonModelException, match="CUDA_ERROR_OUT_OF_MEMORY"):
        Tensor("X", VALUES).to("cuda:0")


def test_a_forked_process_is_told(library: StandinCuda, tensor: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_pid", 1)
    with pytest.raises(TritonModelException, match="forked cannot use the GPU"):
        Tensor("X", VALUES).to("cuda:0")
