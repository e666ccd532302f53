"""The protobuf messages and the servicer of ``inference.GRPCInferenceService``, which tritonclient ships (spec 6.2).

There may be only one copy of them in a process: protobuf refuses a second. Importing this imports grpcio, which takes 0.1 s.
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2, service_pb2_grpc

pb: Any = service_pb2
Servicer: Any = service_pb2_grpc.GRPCInferenceServiceServicer
add_servicer: Any = service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
SERVICE = "inference.GRPCInferenceService"
