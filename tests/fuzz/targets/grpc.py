"""Messages of the gRPC service."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

from google.protobuf.message import DecodeError
from stublet.parent.errors import ServerError
from stublet.parent.grpc.infer import GrpcCodec, parts_of
from stublet.parent.grpc.messages import pb
from stublet.parent.grpc.wire import InferRequestParts, split
from stublet.shm.arena import Block

from ..offered import Offered, offered
from ..target import Check, Target


def _parsed(data: bytes) -> Optional[Any]:
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return None


def _put_together(parts: InferRequestParts) -> Optional[Any]:
    message = _parsed(parts.head)
    if message is not None:
        assert not message.raw_input_contents and not message.id
        message.id = parts.request_id
        message.raw_input_contents.extend([bytes(content) for content in parts.contents])
    return message


def _serialized(message: Optional[Any]) -> Optional[bytes]:
    """To be compared: NaN is not equal to itself."""
    return None if message is None else message.SerializeToString(deterministic=True)


@contextmanager
def model_infer_request() -> Iterator[Check]:
    """What is taken apart without protobuf is what protobuf makes of it, and any request is a request or an error."""
    with offered() as server:
        codec = GrpcCodec(server.core)

        def check(data: bytes) -> None:
            expected = _parsed(data)
            parts = split(data)
            if parts is not None:
                assert _serialized(_put_together(parts)) == _serialized(expected)
            found = _outcome(server, codec, lambda: parts_of(data))
            assert expected is not None or isinstance(found, tuple)
            if parts is not None and expected is not None:
                assert _outcome(server, codec, lambda: parts) == found
            server.assert_nothing_held()

        yield check


def _outcome(server: Offered, codec: GrpcCodec, take_apart: Any) -> Any:
    """The tensors as they lie in memory, or the error."""
    try:
        parts = take_apart()
        head = codec.head(parts)
        model = server.models.get(head.name, server.models["add_sub"])
        plan = codec.plan(model, head, parts)
        request = codec.request(plan, parts, lambda *_: None)
    except ServerError as error:
        return (type(error),)  # which of several errors is told depends on the order of the parameters
    # protobuf gives them back in any order.
    extras = [*request.extras[:2], *request.extras[3:], sorted(json.loads(request.extras[2]).items())] if request.extras else []
    found: List[Any] = [parts.request_id, repr(extras), request.priority]
    for block, _ in request.blocks:
        assert isinstance(block, Block)
        memory, start = block.segment.memory, block.offset
        found += [(p.spec.name, p.shape, memory[start + p.offset : start + p.offset + p.nbytes]) for p in plan.layout.placements]
    with model.lock:
        request.release()
    return found


TARGETS = [
    Target(
        "model_infer_request",
        model_infer_request,
        [b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a\x04", b"\x3a\x00", b"\x80\x00", b"\xff" * 9 + b"\x01", b"INPUT0", b"FP32",
         b"\x42\x00", b"\x38\x01", b"\x39" + bytes(8), b"\x3d" + bytes(4), b"\x3b\x3c", b"shared_memory_region", b"classification"],
        mutations=1500,
    ),
]  # fmt: skip
