"""What NVML says of processes, as it is added up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List

from stublet.parent.gpu_memory import _by_process, by_process


class StandinNvml:
    """The three functions, of which the second GPU answers that it does not tell."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> List[Any]:
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in ((7, 100), (8, None), (9 + handle, 5))]


def test_what_a_process_uses_of_all_gpus_standin() -> None:
    assert _by_process(StandinNvml()) == {7: 200, 9: 5, 11: 5}


def test_this_machine() -> None:
    assert all(used >= 0 for used in by_process().values())
