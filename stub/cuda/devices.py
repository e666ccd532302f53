"""The GPUs of this process, and copies on them that are complete when they return.

Each device has a stream of the runtime's own for copies, which waits for no other, and one that waits for what models compute. Nothing here
waits for the whole device.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple, Optional, Union

from ...shm.cuda.driver import CudaError, Driver, NoDriver, load
from ..error import TritonModelException


class Device(NamedTuple):
    """One of them: its number in this process, its UUID, and what the runtime has there: a stream for copies and an event in it, and a stream
    that producers of tensors let wait for their work."""

    ordinal: int
    uuid: bytes
    stream: int
    event: int
    waiting: int


class Devices:
    """Those that a driver has. In any thread."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._known: Dict[int, Device] = {}
        self._lock = threading.Lock()

    def get(self, ordinal: int) -> Device:
        """The device of that number; the first call makes its context.

        Raises:
            TritonModelException: there is none, or it cannot be used.
        """
        device = self._known.get(ordinal)
        if device is None:
            with self._lock:
                device = self._known.get(ordinal) or self._open(ordinal)
                self._known[ordinal] = device
        return device

    def _open(self, ordinal: int) -> Device:
        try:
            count = self.driver.count()
            if not 0 <= ordinal < count:
                raise TritonModelException(f"there is no GPU {ordinal} in this process, which sees {count}")
            with self.driver.on(ordinal):
                stream, event, waiting = self.driver.create_stream(), self.driver.create_event(), self.driver.create_stream()
                return Device(ordinal, self.driver.uuid(ordinal), stream, event, waiting)
        except CudaError as error:
            raise TritonModelException(f"GPU {ordinal} cannot be used: {error}") from error

    def find(self, uuid: bytes) -> Device:
        """The device of that UUID.

        Raises:
            TritonModelException: this process does not see it, or it cannot be used.
        """
        for device in list(self._known.values()):
            if device.uuid == uuid:
                return device
        try:
            ordinal = next((number for number in range(self.driver.count()) if self.driver.uuid(number) == uuid), None)
        except CudaError as error:
            raise TritonModelException(f"the GPU of the tensor cannot be looked for: {error}") from error
        if ordinal is not None:
            return self.get(ordinal)
        raise TritonModelException("the GPU of the tensor is not visible to this process (CUDA_VISIBLE_DEVICES)")

    @contextmanager
    def on(self, device: Device) -> Iterator[Driver]:
        """The driver, with the device's context current.

        Raises:
            TritonModelException: a function of the driver failed. When it has lost the context, the process ends instead: nothing on the GPU
                works in it any more, and what is executed fails with its death.
        """
        try:
            with self.driver.on(device.ordinal):
                yield self.driver
        except CudaError as error:
            if error.context_is_lost:
                print(f"stublet: the context of GPU {device.ordinal} is lost, and this process has to end: {error}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
            raise TritonModelException(f"GPU {device.ordinal}: {error}") from error

    def copy(self, device: Device, target: int, source: int, nbytes: int) -> None:
        """Device to device."""
        if nbytes:
            with self.on(device) as driver:
                driver.copy(target, source, nbytes, device.stream)
                driver.record(device.event, device.stream)
                driver.wait_for(device.event)

    def copy_to_host(self, device: Device, target: int, source: int, nbytes: int) -> None:
        if nbytes:
            with self.on(device) as driver:
                driver.copy_to_host(target, source, nbytes, device.stream)
                driver.finish(device.stream)

    def copy_from_host(self, device: Device, target: int, source: int, nbytes: int) -> None:
        if nbytes:
            with self.on(device) as driver:
                driver.copy_from_host(target, source, nbytes, device.stream)
                driver.finish(device.stream)


_found: Union[Devices, NoDriver, None] = None
_pid: Optional[int] = None
_finding = threading.Lock()


def devices() -> Devices:
    """Those of this process. The driver is loaded at the first call.

    Raises:
        NoDriver: there are none.
        TritonModelException: this process was forked from the one that uses them, which CUDA does not allow.
    """
    if _found is None:
        with _finding:
            if _found is None:
                try:
                    attach(load())
                except NoDriver as error:
                    _remember(NoDriver(*error.args))
    if isinstance(_found, NoDriver):
        raise NoDriver(*_found.args)  # never one that is remembered: its traceback holds whatever its frames do
    if _pid != os.getpid():
        raise TritonModelException("a process that the model forked cannot use the GPU")
    assert _found is not None
    return _found


def here() -> Devices:
    """``devices``, for a tensor that is on a GPU already.

    Raises:
        TritonModelException: this process has no driver, or was forked from the one that has.
    """
    try:
        return devices()
    except NoDriver as error:
        raise TritonModelException(f"the tensor is on a GPU, and this process cannot use one: {error}") from error


def attach(driver: Driver) -> None:
    """Makes it the driver of this process."""
    _remember(Devices(driver))


def _remember(found: Union[Devices, NoDriver]) -> None:
    global _found, _pid
    _found, _pid = found, os.getpid()
