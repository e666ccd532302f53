"""The metrics of models: Triton's ``nv_inference_...``, and ours beside them in SI units (spec 7)."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Iterator, List, Tuple

from ..lifecycle import State
from ..statistics import Failure, ModelStatistics
from .exposition import Family, Sample, histogram_samples, number
from .latency import Latencies
from .options import FIRST_RESPONSE

if TYPE_CHECKING:
    from ..instance import Instance
    from ..servable import Servable

_COUNTERS: Tuple[Tuple[str, str, Callable[[ModelStatistics], int]], ...] = (
    ("nv_inference_count", "Number of inferences performed (does not include cached requests)", lambda s: s.inferences),
    ("nv_inference_exec_count", "Number of model executions performed (does not include cached requests)", lambda s: s.executions),
)

_DURATIONS: Tuple[Tuple[str, str, Callable[[ModelStatistics], int]], ...] = (
    ("request", "Cumulative inference request duration in microseconds (includes cached requests)", lambda s: s.total_ns),
    ("queue", "Cumulative inference queuing duration in microseconds (includes cached requests)", lambda s: s.queue_ns),
    ("compute_input", "Cumulative compute input duration in microseconds (does not include cached requests)", lambda s: s.input_ns),
    ("compute_infer", "Cumulative compute inference duration in microseconds (does not include cached requests)", lambda s: s.infer_ns),
    ("compute_output", "Cumulative inference compute output duration in microseconds (does not include cached requests)", lambda s: s.output_ns),
)  # fmt: skip

_CACHE: Tuple[Tuple[str, str, Callable[[ModelStatistics], int]], ...] = (
    ("nv_cache_num_hits_per_model", "Number of cache hits per model", lambda s: s.cache_hits.count),
    ("nv_cache_num_misses_per_model", "Number of cache misses per model", lambda s: s.cache_misses.count),
    ("nv_cache_hit_duration_per_model", "Total cache hit duration per model, in microseconds", lambda s: s.cache_hits.ns // 1000),
    ("nv_cache_miss_duration_per_model", "Total cache miss duration per model, in microseconds", lambda s: s.cache_misses.ns // 1000),
)

_SUMMARIES = (
    "Summary of inference request duration in microseconds (includes cached requests)",
    "Summary of inference queuing duration in microseconds (includes cached requests)",
    "Summary of compute input duration in microseconds (does not include cached requests)",
    "Summary of compute inference duration in microseconds (does not include cached requests)",
    "Summary of inference compute output duration in microseconds (does not include cached requests)",
)

_NANOSECONDS = 1e-9

_Labelled = Tuple[Dict[str, str], "Servable"]


class InferenceMetrics:
    """
    Args:
        models: those that serve now.
        durations: whether there are counters of them.
    """

    def __init__(self, models: Callable[[], Iterable[Servable]], durations: bool) -> None:
        self._models = models
        self._durations = durations

    def collect(self) -> Iterator[Family]:
        models = [({"model": model.name, "version": str(model.version)}, model) for model in self._models()]
        for _, model in models:
            model.statistics.count()
        yield from self._triton(models)
        yield from _distributions(models)
        yield from _own(models)

    def _triton(self, models: List[_Labelled]) -> Iterator[Family]:
        yield Family.of(
            "nv_inference_request_success",
            "Number of successful inference requests, all batch sizes",
            "counter",
            [(labels, model.statistics.successes) for labels, model in models],
        )
        yield Family.of(
            "nv_inference_request_failure",
            "Number of failed inference requests, all batch sizes",
            "counter",
            [({**labels, "reason": why.name}, model.statistics.failures[why]) for labels, model in models for why in Failure],
        )
        for name, text, value in _COUNTERS:
            yield Family.of(name, text, "counter", [(labels, value(model.statistics)) for labels, model in models])
        if self._durations:
            for part, text, value in _DURATIONS:
                name = f"nv_inference_{part}_duration_us"
                yield Family.of(name, text, "counter", [(labels, value(model.statistics) // 1000) for labels, model in models])
        caching = [(labels, model) for labels, model in models if model.cached is not None]
        for name, text, value in _CACHE:
            yield Family.of(name, text, "counter", [(labels, value(model.statistics)) for labels, model in caching])
        yield Family.of(
            "nv_inference_pending_request_count",
            "Instantaneous number of pending requests awaiting execution per-model.",
            "gauge",
            [(labels, model.pending()) for labels, model in models],
        )


def _distributions(models: List[_Labelled]) -> Iterator[Family]:
    """What has to be turned on."""
    now = perf_counter_ns()
    samples: List[Sample] = []
    for labels, model in models:
        histogram = model.statistics.first_response
        if histogram is not None:
            with model.statistics.lock:
                buckets, total = histogram.buckets(), histogram.sum
            samples += histogram_samples(FIRST_RESPONSE, labels, histogram.bounds, buckets, total)
    yield Family(FIRST_RESPONSE, "Duration from request to first response in milliseconds", "histogram", samples)
    for index, part in enumerate(Latencies.PARTS):
        name = f"nv_inference_{part}_summary_us"
        samples = []
        for labels, model in models:
            latencies = model.statistics.latencies
            if latencies is not None:
                with model.statistics.lock:
                    count, total, values = latencies.read(index, now)
                samples.append(Sample(f"{name}_count", labels, count))
                samples.append(Sample(f"{name}_sum", labels, total))
                samples += [
                    Sample(name, {**labels, "quantile": number(quantile)}, value) for quantile, value in zip(latencies.quantiles, values)
                ]
        yield Family(name, _SUMMARIES[index], "summary", samples)


def _own(models: List[_Labelled]) -> Iterator[Family]:
    instances = [({**labels, "instance": instance.name}, instance) for labels, model in models for instance in _one_of_each_name(model)]
    yield Family.of(
        "stublet_instance_up",
        "Whether the instance serves",
        "gauge",
        [(labels, int(instance.state is State.READY)) for labels, instance in instances],
    )
    yield Family.of(
        "stublet_instance_start_time_seconds",
        "When the process of the instance was started, in seconds since 1970",
        "gauge",
        [(labels, instance.started_at) for labels, instance in instances if instance.state is State.READY],
    )
    yield Family.of(
        "stublet_instance_restarts_total",
        "How often the instance was started again because it had died",
        "counter",
        [(labels, instance.restarts) for labels, instance in instances],
    )
    capacity, used = [], []
    for labels, model in models:
        memory = model.memory()
        inputs = {**labels, "arena": "inputs"}
        capacity += [(inputs, memory.inputs), ({**labels, "arena": "outputs"}, memory.outputs)]
        used.append((inputs, memory.inputs_used))
    yield Family.of("stublet_shared_memory_capacity_bytes", "Shared memory of the model, in bytes", "gauge", capacity)
    yield Family.of("stublet_shared_memory_used_bytes", "Shared memory of the model that is in use, in bytes", "gauge", used)
    name = "stublet_ring_round_trip_seconds"
    samples = []
    for labels, model in models:
        samples.append(Sample(f"{name}_count", labels, model.statistics.round_trips))
        samples.append(Sample(f"{name}_sum", labels, model.statistics.round_trip_ns * _NANOSECONDS))
    yield Family(name, "What an execution takes beside the time in execute, in seconds", "summary", samples)


def _one_of_each_name(model: Servable) -> List[Instance]:
    """Without spares, and, where an instance is being replaced, without the one that does not serve."""
    found: Dict[str, Instance] = {}
    for instance in model.instances:
        if not instance.in_reserve and (instance.name not in found or instance.state is State.READY):
            found[instance.name] = instance
    return list(found.values())


NAMES = frozenset(family.name for family in InferenceMetrics(list, durations=True).collect())
"""Of all that there can be."""
