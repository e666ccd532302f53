"""The metrics of the machine: processors and memory from /proc, GPUs from NVML, the pool of pinned memory (spec 7)."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .exposition import Family, Number, Sample
from .options import MetricsOptions

logger = logging.getLogger(__name__)

_KIBI = 1024
_MILLI = 1e-3
_PERCENT = 1e-2


class CpuTimes(NamedTuple):
    """Of all processors together since the machine was started, in ticks."""

    busy: int
    total: int


def parse_stat(text: str) -> CpuTimes:
    """Reads the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, and guest times, which are in user."""
    numbers = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]
    idle = sum(numbers[3:5])
    return CpuTimes(sum(numbers) - idle, sum(numbers))


def parse_meminfo(text: str) -> Tuple[int, int]:
    """Bytes of memory in all, and in use, from /proc/meminfo. In use is what is not available to a new process."""
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if len(line.split()) > 1}
    return kibibytes["MemTotal"] * _KIBI, (kibibytes["MemTotal"] - kibibytes["MemAvailable"]) * _KIBI


class Cpu:
    """What ``sample`` found last; before the first time, zeros."""

    def __init__(self) -> None:
        self._times: Optional[CpuTimes] = None
        self._utilization = 0.0
        self._total = 0
        self._used = 0

    def sample(self) -> None:
        """
        Raises:
            OSError, LookupError, ValueError: there is no /proc, or not all that is to be read there.
        """
        with open("/proc/stat") as stat, open("/proc/meminfo") as meminfo:
            self.take(parse_stat(stat.readline()), *parse_meminfo(meminfo.read()))

    def take(self, times: CpuTimes, total: int, used: int) -> None:
        before, self._times = self._times, times
        self._total, self._used = total, used
        if before is not None and times.total > before.total:
            self._utilization = min(max((times.busy - before.busy) / (times.total - before.total), 0.0), 1.0)

    def collect(self) -> Iterator[Family]:
        yield Family.of("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", "gauge", [({}, self._utilization)])
        yield Family.of("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", "gauge", [({}, self._total)])
        yield Family.of("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", "gauge", [({}, self._used)])


_GPU_FAMILIES: Tuple[Tuple[str, str, str], ...] = (
    ("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)"),
    ("nv_gpu_memory_total_bytes", "gauge", "GPU total memory, in bytes"),
    ("nv_gpu_memory_used_bytes", "gauge", "GPU used memory, in bytes"),
    ("nv_gpu_power_usage", "gauge", "GPU power usage in watts"),
    ("nv_gpu_power_limit", "gauge", "GPU power management limit in watts"),
    ("nv_energy_consumption", "counter", "GPU energy consumption in joules since the Triton Server started"),
)


class Gpus:
    """All GPUs that NVML finds. What one of them does not tell is left out. Its methods block for milliseconds.

    Args:
        nvml: the module ``pynvml``.

    Raises:
        Exception: of NVML's, when there is no driver.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._devices: List[Tuple[str, Any]] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._devices.append((nvml.nvmlDeviceGetUUID(handle), handle))
            except nvml.NVMLError as error:
                logger.warning("no metrics of GPU %d: %s", index, error)
        self._energy_at_start = {uuid: self._ask("nvmlDeviceGetTotalEnergyConsumption", handle) for uuid, handle in self._devices}
        self._values: Dict[str, Dict[str, Number]] = {}

    def sample(self) -> None:
        self._values = {uuid: dict(self._read(uuid, handle)) for uuid, handle in self._devices}

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _read(self, uuid: str, handle: Any) -> Iterator[Tuple[str, Number]]:
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        if rates is not None:
            yield "nv_gpu_utilization", rates.gpu * _PERCENT
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        if memory is not None:
            yield "nv_gpu_memory_total_bytes", memory.total
            yield "nv_gpu_memory_used_bytes", memory.used
        for name, function in (
            ("nv_gpu_power_usage", "nvmlDeviceGetPowerUsage"),
            ("nv_gpu_power_limit", "nvmlDeviceGetPowerManagementLimit"),
        ):
            milliwatts = self._ask(function, handle)
            if milliwatts is not None:
                yield name, milliwatts * _MILLI
        at_start, millijoules = self._energy_at_start[uuid], self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)
        if at_start is not None and millijoules is not None:
            yield "nv_energy_consumption", (millijoules - at_start) * _MILLI

    def _ask(self, function: str, handle: Any) -> Any:
        with suppress(self._nvml.NVMLError):
            return getattr(self._nvml, function)(handle)
        return None

    def collect(self) -> Iterator[Family]:
        values = self._values
        for name, kind, text in _GPU_FAMILIES:
            samples = [Sample(name, {"gpu_uuid": uuid}, found[name]) for uuid, found in values.items() if name in found]
            yield Family(name, text, kind, samples)


class MachineMetrics:
    """Takes the metrics of the machine every ``options.interval_ms`` while ``run`` runs. There is no pool of pinned memory here, so its
    size is 0."""

    def __init__(self, options: MetricsOptions) -> None:
        self._options = options
        self._started = time.time()
        self._cpu: Optional[Cpu] = Cpu() if options.cpu else None
        self._gpus: Optional[Gpus] = None

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        if self._options.gpu:
            self._gpus = await loop.run_in_executor(None, find_gpus)
        try:
            while True:
                self._sample_cpu()
                if self._gpus is not None:
                    await loop.run_in_executor(None, self._gpus.sample)
                await asyncio.sleep(self._options.interval_ms * _MILLI)
        finally:
            if self._gpus is not None:
                self._gpus.close()

    def _sample_cpu(self) -> None:
        if self._cpu is not None:
            try:
                self._cpu.sample()
            except (OSError, LookupError, ValueError) as error:
                logger.warning("no CPU metrics: /proc has not what they need: %r", error)
                self._cpu = None

    def collect(self) -> Iterator[Family]:
        text = "Pinned memory pool %s memory size, in bytes"
        yield Family.of("nv_pinned_memory_pool_total_bytes", text % "total", "gauge", [({}, 0)])
        yield Family.of("nv_pinned_memory_pool_used_bytes", text % "used", "gauge", [({}, 0)])
        for part in (self._cpu, self._gpus):
            if part is not None:
                yield from part.collect()
        yield Family.of("stublet_start_time_seconds", "When the server was started, in seconds since 1970", "gauge", [({}, self._started)])


def find_gpus() -> Optional[Gpus]:
    """The GPUs, if there are any and ``nvidia-ml-py`` is installed. Blocks for a while."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return Gpus(pynvml)
    except pynvml.NVMLError as error:
        logger.debug("no GPU metrics: %s", error)
        return None


NAMES = frozenset(
    [
        *(name for name, _, _ in _GPU_FAMILIES),
        *(family.name for family in MachineMetrics(MetricsOptions()).collect()),
    ]
)
"""Of all that there can be."""
