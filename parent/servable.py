"""What requests can be sent to, whoever executes them: a configuration, the memory of its requests, and what is counted of them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from abc import ABC, abstractmethod
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Union

from ..shm.arena import Arena, Block, size_class
from ..shm.errors import OutOfSharedMemory
from ..shm.segment import Segment, whole_pages
from . import classification, model_config
from .cache.response_cache import CachedResponses
from .errors import ServerError, Unavailable
from .instance import Instance, LoadFailed
from .repository import ModelFiles
from .request import Outcome, Request, drop
from .slabs import Place, Slabs
from .statistics import ModelStatistics

if TYPE_CHECKING:
    from .core import Core
    from .validation import Layout

logger = logging.getLogger(__name__)


class SharedMemory(NamedTuple):
    """In bytes. ``inputs``: where those of requests are put; ``inputs_used`` of it is in use. ``outputs``: what the stubs were given for
    theirs, of which only they know how much is in use."""

    inputs: int
    inputs_used: int
    outputs: int


class Servable(ABC):
    """One version of a model as those see it who send requests."""

    def __init__(self, server: Core, files: ModelFiles, version: int, config: Any) -> None:
        self.server = server
        self.name = files.name
        self.directory = files.path
        self.version = version
        self._set_config(config)
        self.inputs = model_config.tensor_specs(config, config.input)
        self.outputs = model_config.tensor_specs(config, config.output)
        self.stub_outputs = self.outputs
        """Those that instances may answer with: there may be some that are not for clients."""
        self.max_batch_size: int = config.max_batch_size
        self.decoupled: bool = config.model_transaction_policy.decoupled
        self.labels: Dict[str, classification.Labels] = {}
        self.lock = threading.Lock()
        self.segments: List[Segment] = []
        self.arena = Arena(self._grow, server.options.backend.shm_growth_byte_size)
        self.slabs: Optional[Slabs] = None
        """Where the inputs of a batch are to lie next to one another."""
        self.instances: List[Instance] = []
        self.reason = ""
        """Why it did not load, if it did not."""
        self.statistics = ModelStatistics(self.decoupled, self.max_batch_size > 0, *server.options.metrics.latencies(config))
        self.cached: Optional[CachedResponses] = None
        """Its part of the response cache, if it has one."""
        self.wants_device_inputs = False
        """Whether inputs that are on a GPU may stay there, as its configuration has it."""
        self.opens_device_memory = True
        """Whether its instances can open what others export, as far as is known."""
        self.answers_on_device = False
        """Whether nobody here reads its outputs."""
        self.memo: Dict[Any, Any] = {}
        """What a front end has worked out about this model and wants to remember; it goes with the model."""
        self._stopping = False
        self._memory_closed = False
        self._loop = asyncio.get_running_loop()

    def _set_config(self, config: Any) -> None:
        self.config = config
        self.config_dict = model_config.as_dict(config)
        self.config_json = json.dumps(self.config_dict, separators=(",", ":"))

    # Life

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether a request would be served now."""

    @property
    @abstractmethod
    def takes_requests(self) -> bool:
        """Whether a request would be served, now or in a moment: also while an instance is being replaced that has died."""

    @property
    def takes_device_inputs(self) -> bool:
        """Whether inputs that are on a GPU may stay there now."""
        return self.wants_device_inputs and self.opens_device_memory

    @property
    def stopping(self) -> bool:
        """Whether it is on its way out."""
        return self._stopping

    @abstractmethod
    async def check_ready(self) -> None:
        """``ready``, and what the model's own code says of it (spec 2.9).

        Raises:
            Unavailable: why not.
        """

    @abstractmethod
    async def load(self) -> None:
        """Returns when it serves.

        Raises:
            ConfigError: its configuration asks for what is not to be had.
            LoadFailed: it does not serve, and nothing of it is left.
        """

    @abstractmethod
    async def stop(self, seconds: float) -> None:
        """Takes no more requests, lets those that it has finish, within ``seconds``, and ends."""

    async def _read_labels(self) -> None:
        try:
            self.labels = await self._loop.run_in_executor(None, classification.read_labels, self.directory, self.config)
        except OSError as error:
            raise LoadFailed(f"failed to open text file for read {error.filename}: {error.strerror}") from error

    @abstractmethod
    def unavailable_text(self) -> str:
        """Why a request cannot be served."""

    # Requests

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Queues a request; ``request.respond`` will be called. In any thread.

        Raises:
            Unavailable: it is not ready. The request's blocks are given back, as with every error.
            InvalidArgument, Unsupported: it is not what it should be in a sequence.
        """

    @abstractmethod
    def cancel(self, request: Request, reason: Optional[ServerError] = None) -> None:
        """Nobody wants the answer any more. A request that is not executed yet is answered at once, with ``reason`` or CANCELLED; of one
        that is, the model is told, and goes on as it likes. In any thread."""

    @abstractmethod
    def hold(self, request: Request, held: bool) -> None:
        """Has the model wait with the next response to a request, or go on. In any thread."""

    @abstractmethod
    def poll(self, done: Callable[[], bool]) -> None:
        """Looks in the calling thread for what comes back until ``done``, for as long as an answer is expected soon."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many requests are being executed or have been handed over for it."""

    @abstractmethod
    def servers(self, request: Optional[Request]) -> List[List[Instance]]:
        """For each execution that a request still needs, the instances that may take it up; None for a request that was not submitted."""

    @abstractmethod
    def pending(self) -> int:
        """How many requests wait to be executed."""

    def call_later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        """Calls a function in the server's loop, unless that has ended by then. In any thread."""
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, function, *arguments)

    def remember(self, key: Any, value: Any) -> None:
        """Puts something in ``memo``; when there is too much, all of it goes."""
        if len(self.memo) >= _REMEMBERED:
            self.memo.clear()
        self.memo[key] = value

    def deliver(self, request: Request, outcome: Optional[Outcome], final: bool, arrived: int) -> None:
        """Tells whoever asked, and the statistics. Not under a lock.

        Args:
            arrived: when the outcome was known; of a decoupled model only.
        """
        if request.trace is not None:
            request.trace.settled(request, outcome, final)
            if final:
                request.trace = None  # it ends when the front end lets go of it, too
        try:
            request.respond(outcome, final)
        except Exception:
            # One that cannot be told must not keep the others from being told.
            logger.exception("the outcome of a request could not be delivered")
            drop(outcome)
        self.statistics.settled(request, outcome, final, arrived, perf_counter_ns())

    # Memory

    def allocate(self, nbytes: int) -> Block:
        """A block of the request arena.

        Raises:
            Unavailable: there is no room for it.
        """
        try:
            with self.lock:
                return self.arena.allocate(nbytes)
        except OutOfSharedMemory:
            self.server.shed_requests()
        try:
            with self.lock:
                return self.arena.allocate(nbytes)
        except OutOfSharedMemory as error:
            raise self.no_room(error) from error

    def place(self, layout: Layout) -> Union[Block, Place]:
        """Where the inputs of a request are to be written: rows of a slab, or a block of the request arena.

        Raises:
            Unavailable: there is no room for it.
        """
        if layout.rows is not None and self.slabs is not None:
            with self.lock:
                place = self.slabs.take(layout.rows)
            if place is not None:
                return place
        return self.allocate(layout.nbytes)

    def no_room(self, error: OutOfSharedMemory) -> Unavailable:
        """Counts a request whose inputs find no room; what its client is told."""
        self.statistics.refused()
        return Unavailable(f"the inputs of a request to model '{self.name}' find no room: {error}")

    def memory(self) -> SharedMemory:
        """How much shared memory it has."""
        with self.lock:
            self.arena.collect()
            free = self.arena.free_bytes() + (self.slabs.idle_bytes() if self.slabs is not None else 0)
            inputs = sum(segment.size for segment in self.segments)
            outputs = sum(segment.size for instance in self.instances for segment in instance.segments)
        return SharedMemory(inputs, inputs - free, outputs)

    def begin_memory(self) -> None:
        """Makes the first segment of the request arena.

        Raises:
            OutOfSharedMemory: there is no memory for it.
        """
        with self.lock:
            self.arena.add(self._create_anyway(self.server.options.backend.shm_default_byte_size))

    def allocate_anyway(self, nbytes: int) -> Block:
        """A block of the request arena for what requests that are here already cannot do without, whatever requests have. Under the lock.

        Raises:
            OutOfSharedMemory: the system has no more.
        """
        try:
            return self.arena.allocate(nbytes)
        except OutOfSharedMemory:
            self.arena.add(self._create_anyway(max(size_class(nbytes), self.server.options.backend.shm_growth_byte_size)))
            return self.arena.allocate(nbytes)

    def shed(self, at_once: bool) -> List[int]:
        """Drops segments of the request arena in which nothing lies, or, unless ``at_once``, lay since the last call; returns their ids,
        of which the stubs have to be told. In any thread, under the lock of no model."""
        with self.lock:
            if self._memory_closed:
                return []
            if self.slabs is not None:
                self.slabs.shed(at_once)
            dropped = self.arena.shed(0 if at_once else self.server.options.backend.shm_default_byte_size, at_once)
            for segment in dropped:
                self.segments.remove(segment)
                segment.discard()
        self.server.request_memory.give_back(sum([segment.size for segment in dropped]))
        return [segment.id for segment in dropped]

    def close_memory(self, shareable: bool = False) -> None:
        """It has ended. What somebody still reads goes with its last reader.

        Args:
            shareable: whether it may still be sent to others.
        """
        with self.lock:
            segments, self.segments, self._memory_closed = self.segments, [], True
        for segment in segments:
            if not shareable:
                segment.close()
        self.server.request_memory.give_back(sum([segment.size for segment in segments]))
        self.server.forget([segment.id for segment in segments])

    def _grow(self, nbytes: int) -> Segment:
        if self._memory_closed:
            raise OutOfSharedMemory(f"model '{self.name}' is being unloaded")
        nbytes = whole_pages(nbytes)
        self.server.request_memory.take(nbytes)
        return self._create(nbytes)

    def _create_anyway(self, nbytes: int) -> Segment:
        nbytes = whole_pages(nbytes)
        self.server.request_memory.take_anyway(nbytes)
        return self._create(nbytes)

    def _create(self, nbytes: int) -> Segment:
        try:
            segment = Segment.create(self.server.next_segment_id(), nbytes, as_it_fills=True)
        except OutOfSharedMemory:
            self.server.request_memory.give_back(nbytes)
            raise
        self.segments.append(segment)
        for instance in self.instances:
            if instance.state.learns:
                instance.announce(segment)
        return segment


_REMEMBERED = 1024
