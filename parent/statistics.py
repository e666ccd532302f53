"""What the requests to a model version came to: how many, how they ended, and how long each part of their way took (spec 6.9, 7).

    submitted ....... begun ............ computed ........... settled
              queue         compute_infer        compute_output

Copying its inputs into shared memory, ``compute_input``, is over before a request is submitted, and its duration comes on top.
``begun``: the stub was free to take it up. ``computed``: the reply of the stub to ``execute``, or the last response, whichever is first,
had arrived here. ``settled``: the last response was handed to whoever asked.

A request that failed counts with its whole duration, and with the reason, and nothing else; its execution, if there was one, counts.
One that was answered from the response cache has a queue and no compute, and is no inference.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from enum import IntEnum
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Tuple

from .errors import Cancelled, ServerError
from .metrics.latency import Histogram, Latencies

if TYPE_CHECKING:
    from .request import Batch, Outcome, Request

MOST_RESPONSES = 1024
"""The responses of a decoupled model are counted apart up to this index, so that an endless stream does not fill the memory."""

_NOTES = 64
"""A request is only noted on its way, and counted with so many others: thirteen additions to figures that were last touched before two
changes of process cost several times what they do in a loop."""


class Failure(IntEnum):
    """Why a request failed. REJECTED: there was no room for it, or it could never be served. CANCELED: it was, before or while it was
    executed. BACKEND: ``execute`` raised, or its process ended. OTHER: anything else."""

    REJECTED = 0
    CANCELED = 1
    BACKEND = 2
    OTHER = 3


def failure_of(error: object, executed: bool) -> Failure:
    """Why a request failed that the stub ended with ``error``, ``executed`` or not."""
    if isinstance(error, Cancelled):
        return Failure.CANCELED
    return Failure.BACKEND if executed else Failure.OTHER


class Tally:
    """A number of events and the nanoseconds that they took in all."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, nanoseconds: int) -> None:
        self.count += 1
        self.ns += nanoseconds

    def as_dict(self) -> Dict[str, int]:
        return {"count": self.count, "ns": self.ns}


class _Batches:
    """Executions of one batch size."""

    __slots__ = ("count", "infer_ns", "input_ns", "output_ns")

    def __init__(self) -> None:
        self.count = 0
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0


class _Responses:
    """The responses of one index to the requests of a decoupled model."""

    __slots__ = ("cancel", "compute_infer", "compute_output", "empty_response", "fail", "success")

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, Tally())


class ModelStatistics:
    """Of one model version. All methods may be called in any thread; no other lock is taken meanwhile.

    Args:
        decoupled: whether its responses are counted apart too.
        batching: whether the first dimension of an input is that of the batch.
        first_response: where the time to the first response of a request is to be observed, in ms.
        latencies: where the parts of the way of a request are to be observed, in us.
    """

    __slots__ = (
        "_batches",
        "_batching",
        "_decoupled",
        "_notes",
        "_responses",
        "_responsive",
        "cache_hits",
        "cache_misses",
        "executions",
        "fail_ns",
        "failures",
        "first_response",
        "infer_ns",
        "inferences",
        "input_ns",
        "last_ns",
        "latencies",
        "lock",
        "output_ns",
        "queue_ns",
        "round_trip_ns",
        "round_trips",
        "successes",
        "total_ns",
    )

    def __init__(
        self,
        decoupled: bool = False,
        batching: bool = False,
        first_response: Optional[Histogram] = None,
        latencies: Optional[Latencies] = None,
    ) -> None:
        self.lock = threading.Lock()
        """To be held where several of the figures are to fit together."""
        self._decoupled = decoupled
        self._responsive = decoupled or first_response is not None
        self._batching = batching
        self.first_response = first_response
        self.latencies = latencies
        self.successes = 0
        self.total_ns = 0
        self.queue_ns = 0
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0
        self.inferences = 0
        """Batch items of the requests that succeeded."""
        self.executions = 0
        """Calls of ``execute``."""
        self.round_trips = 0
        """Executions of which the time in ``execute`` is known apart."""
        self.round_trip_ns = 0
        """What these took beside it: the way through both rings."""
        self.cache_hits = Tally()
        """Requests that were answered from the response cache, and what it took to find that."""
        self.cache_misses = Tally()
        """Those for which nothing was there, and what it took to find that and to keep the answer."""
        self.failures = [0] * len(Failure)
        self.fail_ns = 0
        self.last_ns = 0
        """When the request that was executed last was submitted."""
        self._notes: Deque[Tuple[Any, ...]] = deque()
        self._batches: Dict[int, _Batches] = {}
        self._responses: List[_Responses] = []

    def settled(self, request: Request, outcome: Optional[Outcome], final: bool, arrived: int, now: int) -> None:
        """A response, or the end, was handed to whoever asked.

        Args:
            arrived: when that began (``perf_counter_ns``, as all times here); needed for a decoupled model only.
            now: when it was done.
        """
        if request.warmup:
            return
        if self._responsive:
            with self.lock:
                self._response(request, outcome, arrived, now)
        if final:
            notes = self._notes
            notes.append((
                request.submitted_ns, request.begun_ns, request.computed_ns, now, request.input_ns, request.execute_ns, request.failure, request.inputs, request.batch, request.cached_ns,
            ))  # fmt: skip
            if len(notes) >= _NOTES:
                self.count()

    def count(self) -> None:
        """Counts what was noted; to be called before the figures are read."""
        with self.lock:
            while self._notes:
                self._count(*self._notes.popleft())

    def _count(
        self,
        submitted: int,
        begun: int,
        computed: int,
        now: int,
        input_ns: int,
        execute_ns: int,
        failure: Optional[Failure],
        inputs: Any,
        batch: Optional[Batch],
        cached_ns: int,
    ) -> None:
        infer_ns = output_ns = 0
        size = inputs[0][2][0] if self._batching and inputs else 1
        if computed:
            infer_ns = computed - begun
            output_ns = now - computed
            self.last_ns = submitted
            if batch is None or not batch.counted:
                if 0 < execute_ns <= infer_ns:
                    self.round_trips += 1
                    self.round_trip_ns += infer_ns - execute_ns
                if batch is None:
                    self._execution(size, input_ns, infer_ns, output_ns)
                else:
                    batch.counted = True
                    self._execution(batch.items, input_ns, batch.computed_ns - batch.begun_ns or infer_ns, output_ns)
        total_ns = now - submitted + input_ns
        if failure is not None:
            self.failures[failure] += 1
            self.fail_ns += total_ns
            return
        queue_ns = begun - submitted
        self.successes += 1
        if cached_ns:
            self.cache_hits.add(cached_ns)
        else:
            self.inferences += size
        self.total_ns += total_ns
        self.queue_ns += queue_ns
        self.input_ns += input_ns
        self.infer_ns += infer_ns
        self.output_ns += output_ns
        if self.latencies is not None:
            self.latencies.observe((total_ns, queue_ns, input_ns, infer_ns, output_ns), now)

    def cache_missed(self, nanoseconds: int) -> None:
        """It took so long to find that there is no answer in the response cache."""
        with self.lock:
            self.cache_misses.add(nanoseconds)

    def cache_filled(self, nanoseconds: int) -> None:
        """It took so long to keep an answer there."""
        with self.lock:
            self.cache_misses.ns += nanoseconds

    def _execution(self, items: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        self.executions += 1
        batches = self._batches.get(items)
        if batches is None:
            batches = self._batches[items] = _Batches()
        batches.count += 1
        batches.input_ns += input_ns
        batches.infer_ns += infer_ns
        batches.output_ns += output_ns

    def given_back(self, batch: Batch) -> None:
        """A request of a batch is to be executed once more: the end of the request will not tell of this execution."""
        with self.lock:
            if not batch.counted:
                batch.counted = True
                self._execution(batch.items, 0, batch.computed_ns - batch.begun_ns, 0)

    def refused(self) -> None:
        """A request was turned away before there was one, because it found no room."""
        with self.lock:
            self.failures[Failure.REJECTED] += 1

    def _response(self, request: Request, outcome: Optional[Outcome], arrived: int, now: int) -> None:
        index = request.responses
        request.responses = index + 1
        if self.first_response is not None and index == 0 and outcome is not None and request.failure is None:
            self.first_response.observe((now - request.submitted_ns) / 1e6)
        if not self._decoupled:
            return
        start = request.responded_ns or request.begun_ns or request.submitted_ns
        request.responded_ns = now
        if index >= MOST_RESPONSES:
            return
        if index == len(self._responses):
            self._responses.append(_Responses())
        responses: Any = self._responses[index]
        if outcome is None:
            responses.empty_response.add(now - start)
            return
        if isinstance(outcome, Cancelled):
            responses.cancel.add(now - start)
            return
        (responses.fail if isinstance(outcome, ServerError) else responses.success).add(now - start)
        responses.compute_infer.add(arrived - start)
        responses.compute_output.add(now - arrived)

    def as_dict(self) -> Dict[str, Any]:
        """The parts of ``model_stats`` that are counted, in the form of the protocol. ``last_inference``: ms since 1970."""
        self.count()
        with self.lock:
            computed = self.successes - self.cache_hits.count
            return {
                "last_inference": (time.time_ns() - perf_counter_ns() + self.last_ns) // 1_000_000 if self.last_ns else 0,
                "inference_count": self.inferences,
                "execution_count": self.executions,
                "inference_stats": {
                    "success": _duration(self.successes, self.total_ns),
                    "fail": _duration(sum(self.failures), self.fail_ns),
                    "queue": _duration(self.successes, self.queue_ns),
                    "compute_input": _duration(computed, self.input_ns),
                    "compute_infer": _duration(computed, self.infer_ns),
                    "compute_output": _duration(computed, self.output_ns),
                    "cache_hit": self.cache_hits.as_dict(),
                    "cache_miss": self.cache_misses.as_dict(),
                },
                "response_stats": {
                    str(index): {name: getattr(responses, name).as_dict() for name in _RESPONSE_PARTS}
                    for index, responses in enumerate(self._responses)
                },
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": _duration(batches.count, batches.input_ns),
                        "compute_infer": _duration(batches.count, batches.infer_ns),
                        "compute_output": _duration(batches.count, batches.output_ns),
                    }
                    for size, batches in sorted(self._batches.items())
                ],
            }


_RESPONSE_PARTS = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")


def _duration(count: int, nanoseconds: int) -> Dict[str, int]:
    return {"count": count, "ns": nanoseconds}
