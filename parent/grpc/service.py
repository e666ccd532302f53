"""The calls of ``inference.GRPCInferenceService``, but for how messages and tensors look (spec 6.2, 6.7, 6.9 to 6.12).

``ModelInfer`` and ``ModelStreamInfer`` go on in the thread that takes events. All others are few: those that may take long run in the
server's loop, and the rest in threads of grpcio's, from where they ask it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, TypeVar, Union

from ..core import Core, version_number
from ..errors import InvalidArgument, NotFound, ServerError, Unavailable, Unsupported
from ..exposure import paths_hidden, rows_without_paths
from ..header_forwarding import HeaderForwarding
from ..parameters import with_custom
from ..request import Outcome, Request
from ..servable import Servable
from ..tracing.trace import Trace
from .infer import GrpcCodec, Plan, encode, parts_of
from .inline import Call, internal
from .messages import Servicer, pb
from .stream import ENDS_WITH_ERROR, SHUTTING_DOWN, InferStream
from .tracing import READ_END, SEND_END, SEND_START, begin_trace

T = TypeVar("T")

NO_DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class _Inference:
    """One ``ModelInfer``."""

    __slots__ = ("_call", "_model", "_on_over", "_plan", "_request", "_request_id", "answered", "trace")

    def __init__(self, call: Call, model: Servable, plan: Plan, request_id: str, on_over: Callable[[_Inference], None]) -> None:
        self._call = call
        self._model = model
        self._plan = plan
        self._request_id = request_id
        self._on_over = on_over
        self._request: Optional[Request] = None
        self.trace: Optional[Trace] = None
        self.answered = False

    def submit(self, request: Request) -> None:
        self._request = request
        self._call.on_end(self._on_end)
        try:
            self._model.submit(request)
        except ServerError:
            self._request = None
            raise

    def is_answered(self) -> bool:
        return self.answered

    def settle(self, outcome: Optional[Outcome], _final: bool) -> None:
        """Takes the outcome. In any thread."""
        assert outcome is not None  # the model is not decoupled
        self._request = None  # the two hold each other
        self.answered = True
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.event(SEND_START)
        self._answer(outcome)
        if trace is not None:
            trace.event(SEND_END)

    def _answer(self, outcome: Outcome) -> None:
        if isinstance(outcome, ServerError):
            self._call.fail(outcome)
            return
        try:
            message = b"".join(encode(self._plan, self._request_id, outcome))
        except Exception as error:
            self._call.fail(error if isinstance(error, ServerError) else internal(error))
            return
        finally:
            outcome.release()
        try:
            self._call.finish(message)
        except ServerError as error:
            self._call.fail(error)

    def _on_end(self) -> None:
        self._on_over(self)
        request = self._request
        if request is not None:
            self._model.cancel(request)


class InferHandlers:
    """``infer`` and ``stream`` take the calls that carry tensors.

    Args:
        forwarding: which headers become parameters of requests.
    """

    def __init__(self, core: Core, forwarding: HeaderForwarding) -> None:
        self._core = core
        self._codec = GrpcCodec(core)
        self._forwarding = forwarding if forwarding else None
        self._open: Set[Union[_Inference, InferStream]] = set()
        self._draining = False
        self._drained: Optional[Callable[[], object]] = None

    def infer(self, message: bytes, call: Call) -> None:
        """``ModelInfer``. See ``grpc_inline.UnaryHandler``."""
        if self._draining:
            raise Unavailable(SHUTTING_DOWN)
        call.outgoing.check()
        parts = parts_of(message)
        head = self._codec.head(parts)
        model = self._core.find(head.name, head.version)
        if model.decoupled:
            raise Unsupported(NO_DECOUPLED)
        plan = self._codec.plan(model, head, parts)
        trace = begin_trace(self._core.tracer, model.name, call) if self._core.tracer.active else None
        inference = _Inference(call, model, plan, parts.request_id, self._over)
        forwarded = self._forwarded(call) if self._forwarding else None
        request = self._codec.request(plan, parts, inference.settle)
        if forwarded:
            request.extras = with_custom(request.extras, forwarded)
        if trace is not None:
            trace.event(READ_END)
            inference.trace = request.trace = trace
        self._open.add(inference)
        inference.submit(request)
        if model.in_flight == 1:  # else this thread has better things to do than to wait, and the server's loop will see the answer
            model.poll(inference.is_answered)

    def stream(self, call: Call) -> None:
        """``ModelStreamInfer``. See ``grpc_inline.StreamHandler``."""
        if self._draining:
            raise Unavailable(SHUTTING_DOWN)
        self._open.add(InferStream(self._core, self._codec, call, self._forwarded(call), self._over))

    def drain(self, drained: Callable[[], object]) -> None:
        """Refuses requests from now on; streams end when those that they have are done. ``drained`` is called, in any thread, when
        nothing runs."""
        self._drained = drained
        self._draining = True
        for one in list(self._open):
            if isinstance(one, InferStream):
                one.drain()
        self._tell_drained()

    def _over(self, one: Union[_Inference, InferStream]) -> None:
        self._open.discard(one)
        if self._draining:
            self._tell_drained()

    def _tell_drained(self) -> None:
        drained = self._drained
        if drained is not None and not self._open:
            self._drained = None
            drained()

    def _forwarded(self, call: Call) -> Dict[str, str]:
        if self._forwarding is None:
            return {}
        texts = {key: value for key, value in call.metadata.items() if isinstance(value, str)}  # a binary one, of bytes, is no parameter
        texts.pop(ENDS_WITH_ERROR, None)
        return self._forwarding.parameters([(key.encode(), value.encode("latin-1", "replace")) for key, value in texts.items()])


_SETTINGS = {
    "log_file": ("string_param", "string"),
    "log_info": ("bool_param", "boolean"),
    "log_warning": ("bool_param", "boolean"),
    "log_error": ("bool_param", "boolean"),
    "log_verbose_level": ("uint32_param", "int32"),
    "log_format": ("string_param", "string"),
}
"""The fields that settings of the log come in, and what errors call them."""
_TRACE_LEVEL = "trace_level"


class GrpcService(Servicer):  # type: ignore[misc]
    """The other calls. Messages are those of the same names in ``grpc_service.proto``."""

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._loop = loop

    # Health and metadata

    def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=await self._core.check_ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            ready = await self._core.model_ready(request.name, request.version)
        except NotFound:
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(**self._core.metadata())

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        metadata = self._in_loop(self._core.model_metadata, request.name, version_number(request.version))
        for tensor in metadata["inputs"]:
            tensor.pop("optional", None)  # the message has no such field
        return pb.ModelMetadataResponse(**metadata)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        return pb.ModelConfigResponse(config=self._in_loop(self._core.find, request.name, version_number(request.version)).config)

    def ModelStatistics(self, request: Any, context: Any) -> Any:
        response = pb.ModelStatisticsResponse()
        for one in self._in_loop(self._core.statistics, request.name, request.version):
            response.model_stats.append(_statistics(one))
        return response

    # The repository

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        _refuse_repository(request)
        rows = self._in_loop(self._core.repository_index, request.ready)
        return pb.RepositoryIndexResponse(models=[{**row} for row in rows_without_paths(rows, self._core.options.expose_tracebacks)])

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        _refuse_repository(request)
        config = ""
        files: Dict[str, bytes] = {}
        for key, parameter in request.parameters.items():
            kind = parameter.WhichOneof("parameter_choice")
            if key == "config":
                if kind != "string_param":
                    raise InvalidArgument(f"invalid value type for load parameter '{key}', expected string_param.")
                config = parameter.string_param
            elif key.startswith("file:"):
                if kind != "bytes_param":
                    raise InvalidArgument(f"invalid value type for load parameter '{key}', expected bytes_param.")
                files[key] = parameter.bytes_param
            else:
                raise InvalidArgument(f"unrecognized load parameter '{key}'.")
        with paths_hidden(self._core.options.expose_tracebacks):
            await self._core.load_model(request.model_name, config, files or None)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        _refuse_repository(request)
        dependents = False
        if "unload_dependents" in request.parameters:
            parameter = request.parameters["unload_dependents"]
            if parameter.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidArgument("invalid value type for 'unload_dependents' parameter, expected bool_param.")
            dependents = parameter.bool_param
        await self._core.unload_model(request.model_name, dependents)
        return pb.RepositoryModelUnloadResponse()

    # Shared memory of clients

    def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        regions = {region["name"]: region for region in self._core.client_memory.system_status(request.name)}
        return pb.SystemSharedMemoryStatusResponse(regions=regions)

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self._core.client_memory.register_system(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self._core.client_memory.unregister_system(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def CudaSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        regions = {region["name"]: region for region in self._core.client_memory.cuda_status(request.name)}
        return pb.CudaSharedMemoryStatusResponse(regions=regions)

    async def CudaSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        await self._core.client_memory.register_cuda_in_turn(request.name, request.raw_handle, request.device_id, request.byte_size)
        return pb.CudaSharedMemoryRegisterResponse()

    def CudaSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self._core.client_memory.unregister_cuda(request.name)
        return pb.CudaSharedMemoryUnregisterResponse()

    # Settings

    def LogSettings(self, request: Any, context: Any) -> Any:
        changes: Dict[str, Any] = {}
        for key, setting in request.settings.items():
            kind = setting.WhichOneof("parameter_choice")
            expected, what = _SETTINGS.get(key, (kind, ""))
            if kind != expected:
                raise InvalidArgument(f"expect {what} for '{key}'")
            changes[key] = getattr(setting, kind or "bool_param")
        if changes:
            self._in_loop(self._core.log_settings.update, changes)
        response = pb.LogSettingsResponse()
        for key, value in self._core.log_settings.as_dict().items():
            setting = response.settings[key]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return response

    def TraceSetting(self, request: Any, context: Any) -> Any:
        changes: Dict[str, Any] = {}
        for key, setting in request.settings.items():
            values = list(setting.value)
            if len(values) > 1 and key != _TRACE_LEVEL:
                raise InvalidArgument(f"expect only 1 value for '{key}'")
            changes[key] = None if not values else values if key == _TRACE_LEVEL else values[0]
        settings = self._in_loop(self._core.trace_settings, request.model_name)
        if changes:
            settings.update(changes, request.model_name)
        response = pb.TraceSettingResponse()
        for key, value in settings.as_dict(request.model_name).items():
            response.settings[key].value.extend([value] if isinstance(value, str) else value)
        return response

    # In the server's loop

    def _in_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        async def call() -> T:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise Unsupported("'repository_name' specification is not supported")


def _statistics(one: Mapping[str, Any]) -> Any:
    """A ``ModelStatistics`` from what the HTTP endpoint shows as JSON, whose names are the same."""
    fields = dict(one)
    batches: List[Mapping[str, Any]] = fields.pop("batch_stats", [])
    responses: Mapping[str, Mapping[str, Any]] = fields.pop("response_stats", {})
    return pb.ModelStatistics(
        **fields,
        batch_stats=[pb.InferBatchStatistics(**batch) for batch in batches],
        response_stats={key: pb.InferResponseStatistics(**value) for key, value in responses.items()},
    )
