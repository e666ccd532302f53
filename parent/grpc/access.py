"""Who may call what over gRPC: groups of calls that need a header (``--grpc-restricted-protocol``, spec 6.2)."""

from __future__ import annotations

from typing import Any, Callable, Dict, Sequence

import grpc
from grpc_health.v1 import health_pb2

from ..errors import Unavailable
from ..restricted_apis import Restriction
from .inline import Call, stream
from .messages import SERVICE

OPTION = "--grpc-restricted-protocol"

_HEADER_PREFIX = "triton-grpc-protocol-"
_SHARED_MEMORY = tuple(f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister"))
CALLS: Dict[str, Sequence[str]] = {
    "health": ("ServerLive", "ServerReady", "ModelReady"),
    "metadata": ("ServerMetadata", "ModelMetadata"),
    "inference": ("ModelInfer", "ModelStreamInfer"),
    "shared-memory": _SHARED_MEMORY,
    "model-config": ("ModelConfig",),
    "model-repository": ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    "statistics": ("ModelStatistics",),
    "trace": ("TraceSetting",),
    "logging": ("LogSettings",),
}
"""The calls of each group."""


class RestrictedCalls(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls that come without the header that their group needs.

    Args:
        restrictions: by group, see ``parse_restrictions``.
    """

    def __init__(self, restrictions: Dict[str, Restriction]) -> None:
        self._by_method = {f"/{SERVICE}/{call}": one for group, one in restrictions.items() for call in CALLS[group]}
        if "health" in restrictions:
            for call in health_pb2.DESCRIPTOR.services_by_name["Health"].methods:
                self._by_method[f"/{call.containing_service.full_name}/{call.name}"] = restrictions["health"]

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """See ``grpc.ServerInterceptor``."""
        restriction = self._by_method.get(handler_call_details.method)
        if restriction is None:
            return continuation(handler_call_details)
        header = _HEADER_PREFIX + restriction.key.lower()
        if any(key == header and restriction.admits(value) for key, value in handler_call_details.invocation_metadata):
            return continuation(handler_call_details)
        text = f"This protocol is restricted, expecting header '{_HEADER_PREFIX}{restriction.key}'"

        def refuse(call: Call) -> None:
            call.fail(Unavailable(text))

        # To a client with one message this looks no different.
        return stream(refuse)
