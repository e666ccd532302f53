"""The metrics of the machine: /proc as text, this very machine, and GPUs where there are any."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any, Dict

import pytest
from stublet.parent.metrics.exposition import Collector, Number
from stublet.parent.metrics.machine import Cpu, CpuTimes, Gpus, find_gpus, parse_meminfo, parse_stat

STAT = "cpu  100 20 30 800 50 1 2 3 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n\n"


def values(collector: Collector) -> Dict[str, Number]:
    return {sample.name: sample.value for family in collector.collect() for sample in family.samples}


def test_proc() -> None:
    assert parse_stat(STAT) == CpuTimes(156, 1006)
    assert parse_meminfo(MEMINFO) == (1000 << 10, 600 << 10)


def test_utilization_is_that_of_the_interval() -> None:
    cpu = Cpu()
    assert set(values(cpu).values()) == {0}
    for times, utilization in [((50, 100), 0), ((80, 200), 0.3), ((80, 200), 0.3), ((130, 250), 1), ((120, 260), 0)]:
        cpu.take(CpuTimes(*times), 10, 5)
        assert values(cpu) == {"nv_cpu_utilization": utilization, "nv_cpu_memory_total_bytes": 10, "nv_cpu_memory_used_bytes": 5}


def test_this_machine() -> None:
    cpu = Cpu()
    cpu.sample()
    found = values(cpu)
    assert 0 < found["nv_cpu_memory_used_bytes"] < found["nv_cpu_memory_total_bytes"]


def test_gpus_are_absent_or_plausible() -> None:
    assert importlib.util.find_spec("pynvml") is not None, "nvidia-ml-py is among what tests need"
    gpus = find_gpus()
    if gpus is None:
        pytest.skip("this machine has no GPU")
    try:
        assert values(gpus) == {}
        gpus.sample()
        found = {family.name: [sample.value for sample in family.samples] for family in gpus.collect()}
        assert all(0 <= used <= total for used, total in zip(found["nv_gpu_memory_used_bytes"], found["nv_gpu_memory_total_bytes"]))
        assert all(0 <= rate <= 1 for rate in found["nv_gpu_utilization"])
        assert all(watts > 0 for watts in found["nv_gpu_power_usage"] + found["nv_gpu_power_limit"])
        assert all(joules >= 0 for joules in found["nv_energy_consumption"])
        assert all(list(sample.labels) == ["gpu_uuid"] for family in gpus.collect() for sample in family.samples)
    finally:
        gpus.close()


class StandinNvml:
    """Three GPUs: one that tells everything, one that tells its memory only, and one that has been lost."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = 5_000_000
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 1:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=1000 + handle, used=100 + handle)

    def _told(self, handle: int, value: Any) -> Any:
        if handle:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._told(handle, SimpleNamespace(gpu=25, memory=50))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self._told(handle, 300_500))

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        return int(self._told(handle, 700_000))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return int(self._told(handle, self.millijoules))


def test_gpus_standin(caplog: pytest.LogCaptureFixture) -> None:
    nvml = StandinNvml()
    gpus = Gpus(nvml)
    assert "no metrics of GPU 1: GPU is lost" in caplog.text, "and the others are there"
    nvml.millijoules += 2_500
    gpus.sample()
    found = {(sample.name, sample.labels["gpu_uuid"]): sample.value for family in gpus.collect() for sample in family.samples}
    assert found == {
        ("nv_gpu_utilization", "GPU-0"): 0.25,
        ("nv_gpu_memory_total_bytes", "GPU-0"): 1000,
        ("nv_gpu_memory_used_bytes", "GPU-0"): 100,
        ("nv_gpu_power_usage", "GPU-0"): 300.5,
        ("nv_gpu_power_limit", "GPU-0"): 700,
        ("nv_energy_consumption", "GPU-0"): 2.5,
        ("nv_gpu_memory_total_bytes", "GPU-2"): 1002,
        ("nv_gpu_memory_used_bytes", "GPU-2"): 102,
    }
    gpus.close()
    assert nvml.open == 0
