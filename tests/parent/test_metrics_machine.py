"""The metrics of the machine: /proc as text, this very machine, and GPUs where there are any."""

from __future__ import annotations

import importlib.util
from typing import Dict

import pytest
from stublet.parent.metrics.exposition import Collector, Number
from stublet.parent.metrics.machine import Cpu, CpuTimes, find_gpus, parse_meminfo, parse_stat

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
