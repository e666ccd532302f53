"""The gRPC front end on one port: grpcio's server with the service of Triton, the standard health service, and reflection (spec 6.2)."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Optional

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ..core import Core
from ..errors import NotFound, Unsupported
from ..header_forwarding import HeaderForwarding
from ..options import OptionError, TlsOptions
from ..restricted_apis import parse_restrictions
from ..tls import server_context
from .access import OPTION, RestrictedCalls
from .inline import Call, InlineExecutor, stream, unary
from .messages import SERVICE, add_servicer, pb
from .options import GrpcOptions
from .service import GrpcService, InferHandlers
from .threaded import threaded

_THREADS = 64
"""For the calls that are answered in threads. None takes one for long."""

_STOP_SECONDS = 5.0
"""So long grpcio's threads may take to end when their time is over."""

_CLOSE_SECONDS = 0.5
"""So long clients have to close their connections when nothing runs any more."""

_KEPT_CALLS = 1024
"""For health and control, when there are too many inferences."""
_OUTGOING_SHARE = 2
"""Answers that wait to be taken may have one in so many bytes of what the inputs of requests may have."""

_LOOK_SECONDS = 5.0
_NOT_IMPLEMENTED = "Method not implemented!"


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """``grpc.health.v1.Health``: SERVING while the server is ready."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in ("", SERVICE):
            raise NotFound(f"unknown service '{request.service}'")
        ready = await self._core.check_ready()
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if ready else status.NOT_SERVING)

    def List(self, request: Any, context: Any) -> Any:
        raise Unsupported(_NOT_IMPLEMENTED)


def _watch(call: Call) -> None:
    raise Unsupported(_NOT_IMPLEMENTED)


class GrpcServer:
    """Serves a core on one address.

    Args:
        default_address: to listen on if the options name none.

    Raises (constructor):
        OptionError: the address cannot be listened on, or the files for TLS cannot be used.
    """

    def __init__(self, core: Core, options: GrpcOptions, default_address: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._handlers = InferHandlers(core, HeaderForwarding(options.header_forward_pattern, "--grpc-header-forward-pattern"))
        restrictions = parse_restrictions(OPTION, options.restricted_protocols)
        interceptors = [RestrictedCalls(restrictions)] if restrictions else []
        credentials = _credentials(options)
        self._executor = InlineExecutor(_THREADS, "stublet-grpc", core.request_memory.most // _OUTGOING_SHARE)
        self._watch: Optional[asyncio.Task[None]] = None
        compression = _COMPRESSION[options.infer_response_compression_level]
        self._server = grpc.server(
            self._executor,
            interceptors=interceptors,
            options=options.channel_arguments(),
            maximum_concurrent_rpcs=options.max_calls or None,  # of those that take a thread, or wait for one
            compression=compression,
        )
        self._executor.bound(self._server, options.max_calls)
        add_servicer(GrpcService(core, self._loop), self._server)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        health_pb2_grpc.add_HealthServicer_to_server(_Health(core), self._server)
        # In the place of the servicers'.
        checks = self._threaded(_Health(core), health_pb2, "Health")
        self._server.add_registered_method_handlers(health, {**checks, "Watch": stream(_watch)})
        calls = self._threaded(GrpcService(core, self._loop), pb, "GRPCInferenceService")
        infer = {"ModelInfer": unary(self._handlers.infer), "ModelStreamInfer": stream(self._handlers.stream)}
        self._server.add_registered_method_handlers(SERVICE, {**calls, **infer})
        reflection.enable_server_reflection((SERVICE, health, reflection.SERVICE_NAME), self._server)
        address = options.address or default_address
        host = f"[{address}]" if ":" in address else address
        try:
            if credentials is None:
                self.port: int = self._server.add_insecure_port(f"{host}:{options.port}")
            else:
                self.port = self._server.add_secure_port(f"{host}:{options.port}", credentials)
        except RuntimeError as error:
            raise OptionError(f"cannot listen for gRPC on {host}:{options.port}: {_why(address, options.port, error)}") from error
        self.url = f"{host}:{self.port}"

    def _threaded(self, servicer: Any, module: Any, service: str) -> Dict[str, Any]:
        """Handlers for those of a service's calls that have one message either way."""
        methods = [one for one in module.DESCRIPTOR.services_by_name[service].methods if not one.server_streaming]
        types = {one.name: getattr(module, one.input_type.name) for one in methods}
        return {
            name: unary(threaded(self._executor, self._loop, getattr(servicer, name), kind), _KEPT_CALLS) for name, kind in types.items()
        }

    def start(self) -> None:
        """Accepts calls from now on."""
        self._server.start()
        self._watch = self._loop.create_task(self._watch_outgoing())

    async def _watch_outgoing(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for call in self._executor.outgoing.overdue(time.monotonic()):
                call.cut_off()

    async def stop(self, seconds: float) -> None:
        """Refuses requests, lets what runs finish within ``seconds``, and cancels the rest."""
        # Who asks meanwhile is told why not; once grpcio's server stops, it only breaks off.
        deadline = self._loop.time() + seconds
        drained = asyncio.Event()
        self._handlers.drain(lambda: self._loop.call_soon_threadsafe(drained.set))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drained.wait(), seconds)
        stopped: threading.Event = self._server.stop(max(deadline - self._loop.time(), 0))
        while not await self._loop.run_in_executor(None, stopped.wait, _CLOSE_SECONDS) and self._loop.time() < deadline + _STOP_SECONDS:
            if not self._executor.calls:
                self._server.stop(None)  # it waits for clients that have no call to close their connections, and they may not
        self._executor.shutdown(wait=False)
        if self._watch is not None:
            self._watch.cancel()


def _credentials(options: GrpcOptions) -> Optional[grpc.ServerCredentials]:
    tls = TlsOptions(options.use_ssl, options.server_cert, options.server_key, options.root_cert, options.use_ssl_mutual)
    # grpcio does not say what is wrong with a file.
    if server_context(tls, "--grpc") is None:
        return None
    pair = Path(tls.server_key).read_bytes(), Path(tls.server_cert).read_bytes()
    root = Path(tls.root_cert).read_bytes() if tls.mutual else None
    return grpc.ssl_server_credentials([pair], root, require_client_auth=tls.mutual)


def _why(address: str, port: int, error: RuntimeError) -> str:
    """What keeps grpcio from listening, which it does not say."""
    try:
        socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
    except OSError as cause:
        return cause.strerror or str(cause)
    return str(error)


_COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "low": grpc.Compression.Deflate,
    "medium": grpc.Compression.Gzip,
    "high": grpc.Compression.Gzip,
}
