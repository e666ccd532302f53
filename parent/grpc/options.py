"""The options of the gRPC front end, with tritonserver's names and defaults (spec 6.13)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, List, Tuple

from ..descriptors import affordable

COMPRESSION_LEVELS = ("none", "low", "medium", "high")
_MESSAGE_BYTES = 2**31 - 1
_ANY_NUMBER = 2**31 - 1
_PENDING_CALLS = 65536
"""Calls that have come and were not looked at yet, or as many as may be open. By default gRPC cancels some of them from 1000 on, without a
reason, and nobody hears of them; how many may wait for a model is for its queue to say."""
_CALLS_OF_A_CONNECTION = 16384
"""More wait on the client's side. gRPC counts those, too, that their client has reset and nobody has looked at yet: without a bound, one that
makes calls and resets them fills the memory, and everybody else waits until they all have been looked at."""


@dataclass(slots=True)
class GrpcOptions:
    """``address`` is, when empty, that of HTTP. Times are in milliseconds. Files of TLS are paths of PEM files, and count with
    ``use_ssl``; ``use_ssl_mutual`` asks clients for a certificate, and turns it on. ``infer_response_compression_level`` is one of
    ``COMPRESSION_LEVELS``. ``header_forward_pattern`` and ``restricted_protocols`` are as those of HTTP are. ``max_connections`` at a time,
    0 for as many as the limit of descriptors permits; ``max_calls`` that are open at a time, streams among them, 0 for any number;
    ``max_connection_idle`` is how long a connection may be without a call, 0 for ever."""

    address: str = ""
    port: int = 8001
    reuse_port: bool = False
    header_forward_pattern: str = ""
    restricted_protocols: List[str] = field(default_factory=list)
    infer_response_compression_level: str = "none"
    use_ssl: bool = False
    use_ssl_mutual: bool = False
    server_cert: str = ""
    server_key: str = ""
    root_cert: str = ""
    keepalive_time: int = 7_200_000
    keepalive_timeout: int = 20_000
    keepalive_permit_without_calls: bool = False
    http2_max_pings_without_data: int = 2
    http2_min_recv_ping_interval_without_data: int = 300_000
    http2_max_ping_strikes: int = 2
    max_connection_age: int = 0
    max_connection_age_grace: int = 0
    max_connections: int = 16384
    max_connection_idle: int = 600_000
    max_calls: int = 65536

    def channel_arguments(self) -> List[Tuple[str, Any]]:
        """As grpcio wants them (grpc/impl/channel_arg_names.h). Messages may be as long as gRPC can have them."""
        pending = max(self.max_calls, _PENDING_CALLS) if self.max_calls else _ANY_NUMBER
        arguments: List[Tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", _CALLS_OF_A_CONNECTION),
            ("grpc.server.max_pending_requests", pending),
            ("grpc.server.max_pending_requests_hard_limit", pending),
            ("grpc.so_reuseport", int(self.reuse_port)),
            ("grpc.keepalive_time_ms", self.keepalive_time),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout),
            ("grpc.keepalive_permit_without_calls", int(self.keepalive_permit_without_calls)),
            ("grpc.http2.max_pings_without_data", self.http2_max_pings_without_data),
            ("grpc.http2.min_ping_interval_without_data_ms", self.http2_min_recv_ping_interval_without_data),
            ("grpc.http2.max_ping_strikes", self.http2_max_ping_strikes),
            ("grpc.max_allowed_incoming_connections", affordable(self.max_connections)),
        ]
        if self.max_connection_idle:
            arguments.append(("grpc.max_connection_idle_ms", self.max_connection_idle))
        if self.max_connection_age:
            arguments.append(("grpc.max_connection_age_ms", self.max_connection_age))
        if self.max_connection_age_grace:
            arguments.append(("grpc.max_connection_age_grace_ms", self.max_connection_age_grace))
        return arguments
