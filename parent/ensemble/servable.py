"""An ensemble as those see it who send requests."""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from ...shm.arena import Block
from ...shm.errors import OutOfSharedMemory
from ..cache.config import check_response_cache
from ..cache.response_cache import cached_responses
from ..errors import Cancelled, ServerError, Unavailable
from ..instance import Instance, LoadFailed
from ..model_config import ConfigError
from ..repository import ModelFiles
from ..request import Request
from ..servable import Servable
from ..statistics import Failure, ModelStatistics
from .execution import Execution
from .route import Binding

if TYPE_CHECKING:
    from ..core import Core

_LOOK_SECONDS = 0.005


class Ensemble(Servable):
    """Has no instances of its own. Its steps are requests to whatever models of those names serve at the time; when one of those is loaded
    again, the ensemble goes on with what there is then, if that still fits. In any thread, where ``Servable`` says so."""

    def __init__(self, server: Core, files: ModelFiles, version: int, config: Any) -> None:
        super().__init__(server, files, version, config)
        self._binding: Optional[Binding] = None
        self._why_not = ""
        self._open: Dict[Request, Execution] = {}

    # Life

    @property
    def ready(self) -> bool:
        binding = None if self._stopping else self.binding()
        return binding is not None and all(model.ready for model in binding.models)

    @property
    def takes_requests(self) -> bool:
        return not self._stopping and self.binding() is not None

    def binding(self) -> Optional[Binding]:
        """The models that serve its steps now; None if there are none that fit, and ``unavailable_text`` says why."""
        binding = self._binding
        if binding is None:
            return None
        if not binding.holds():
            try:
                binding = Binding(self)
                if any(binding.decoupled) != self.decoupled:
                    raise ConfigError(f"ensemble '{self.name}' was loaded when other models of it were decoupled; load it again")
                self._binding = binding
                self._renew_cache()
                self._place(binding)
            except ConfigError as error:
                self._why_not = str(error)
                return None
        return binding

    async def check_ready(self) -> None:
        binding = self.binding()
        if self._stopping or binding is None:
            raise Unavailable(self.unavailable_text())
        for model in dict.fromkeys(binding.models):
            try:
                await model.check_ready()
            except ServerError as error:
                raise Unavailable(f"model '{model.name}' of ensemble '{self.name}' is not ready: {error}") from error

    async def load(self) -> None:
        await self._read_labels()
        try:
            binding = Binding(self)
        except ConfigError as error:
            raise LoadFailed(str(error)) from error
        if self._stopping:
            raise LoadFailed("the server is ending, or the model was unloaded")
        self.decoupled = any(binding.decoupled)
        self.config.model_transaction_policy.decoupled = self.decoupled
        self._set_config(self.config)
        self.statistics = ModelStatistics(self.decoupled, self.max_batch_size > 0, *self.server.options.metrics.latencies(self.config))
        try:
            check_response_cache(self.config, self.name)
        except ValueError as error:
            raise LoadFailed(str(error)) from error
        self._renew_cache()
        self._inherit_labels(binding)
        try:
            self.begin_memory()
        except (OutOfSharedMemory, OSError) as error:
            raise LoadFailed(f"Unable to initialize shared memory: {error}") from error
        self._place(binding)
        self._binding = binding

    def _place(self, binding: Binding) -> None:
        """Where its inputs and outputs may be."""
        self.answers_on_device = self.cached is None
        self.wants_device_inputs = self.cached is None and binding.wants_device_inputs

    @property
    def takes_device_inputs(self) -> bool:
        binding = self._binding
        return self.wants_device_inputs and binding is not None and all(model.takes_device_inputs for model in binding.input_takers)

    def _renew_cache(self) -> None:
        """What other models have answered is not kept any longer."""
        if self.cached is not None:
            self.cached.drop()
        self.cached = cached_responses(self)

    def _inherit_labels(self, binding: Binding) -> None:
        """An output that has no labels of its own has those of the output that it comes from."""
        for model, step in zip(binding.models, self.config.ensemble_scheduling.step):
            for own, tensor in step.output_map.items():
                if own in model.labels:
                    self.labels.setdefault(tensor, model.labels[own])

    async def stop(self, seconds: float) -> None:
        self._stopping = True
        if self.cached is not None:
            self.cached.drop()
        deadline = self._loop.time() + seconds
        while self._open and self._loop.time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
        for execution in list(self._open.values()):
            execution.cancel(Unavailable(self.unavailable_text()), Failure.OTHER)
        self.close_memory(shareable=bool(self._open))

    def unavailable_text(self) -> str:
        if self._stopping:
            return f"Request for unknown model: '{self.name}' is not found"
        return self._why_not or f"Request for unknown model: '{self.name}' has no available versions"

    # Requests

    def submit(self, request: Request) -> None:
        request.submitted_ns = perf_counter_ns()
        if request.blocks and isinstance(block := request.blocks[0][0], Block):
            request.input_ns = block.write_ns
        if request.trace is not None:
            request.trace.submitted(self, request)
        binding = None if self._stopping else self.binding()
        if binding is None:
            with self.lock:
                request.release()
            if not self._stopping:
                request.failure = Failure.BACKEND
                self.statistics.settled(request, None, True, request.submitted_ns, request.submitted_ns)
            raise Unavailable(self.unavailable_text())
        execution = Execution(self, request, binding.route(request.extras[1] if request.extras else None))
        response = None if self.cached is None else self.cached.find(request)
        if response is not None:
            with self.lock:
                request.release()
            execution.answer(response, True)
            return
        self._open[request] = execution
        execution.begin()

    def done(self, request: Request) -> None:
        """Everything that a request has caused is over."""
        self._open.pop(request, None)

    def cancel(self, request: Request, reason: Optional[ServerError] = None) -> None:
        execution = self._open.get(request)
        if execution is not None:
            failure = Failure.CANCELED if reason is None else Failure.REJECTED
            execution.cancel(reason or Cancelled("the request was cancelled before it was answered"), failure)

    def hold(self, request: Request, held: bool) -> None:
        execution = self._open.get(request)
        if execution is not None:
            execution.hold(held)

    def poll(self, done: Callable[[], bool]) -> None:
        binding = self._binding
        while binding is not None and not done():
            busy = next((model for model in binding.models if model.in_flight), None)
            if busy is None:
                return
            busy.poll(partial(_either, done, busy))
            if busy.in_flight:
                return  # it takes longer than it is expected to, or is busy with others

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def pending(self) -> int:
        """None: what waits does so with the models of its steps."""
        return 0

    def servers(self, request: Optional[Request]) -> List[List[Instance]]:
        execution = None if request is None else self._open.get(request)
        if execution is not None:
            return execution.servers()
        binding = self._binding
        return [] if binding is None else [servers for model in binding.models for servers in model.servers(None)]

    def soon(self, function: Callable[[], None]) -> None:
        """Calls a function in the server's loop, in the order of these calls. In any thread."""
        self._loop.call_soon_threadsafe(function)


def _either(done: Callable[[], bool], model: Servable) -> bool:
    """Whether the answer is there, or nothing more is to be expected of the model."""
    return done() or not model.in_flight
