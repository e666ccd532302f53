"""An answer that cannot be encoded, through a fault of ours, ends its call all the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List

import pytest
from stublet.parent.errors import InternalError, ServerError
from stublet.parent.grpc import service
from stublet.parent.grpc import stream as stream_module


class Released:
    """In the place of a response."""

    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


def broken(*_: Any) -> Any:
    raise RuntimeError("a fault")


def test_of_a_unary_call(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(service, "encode", broken)
    failed: List[ServerError] = []
    call: Any = SimpleNamespace(fail=failed.append, finish=broken)
    outcome: Any = Released()
    inference = service._Inference(call, None, None, "", lambda _: None)  # type: ignore[arg-type]
    inference.settle(outcome, True)
    (error,) = failed
    assert isinstance(error, InternalError) and "the server's log has the details" in str(error)
    assert outcome.released == 1 and inference.is_answered()
    assert "a fault" in caplog.text


def test_of_a_stream(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(stream_module, "encode", broken)
    sent: List[bytes] = []
    call: Any = SimpleNamespace(metadata={}, on_end=lambda _: None, receive=lambda _: None, send=lambda message, _: sent.append(message))
    stream = stream_module.InferStream(None, None, call, {}, lambda _: None)  # type: ignore[arg-type]
    asked = stream_module._Asked(stream)
    asked.request_id, asked.plan = "7", object()  # type: ignore[assignment]
    stream._open.add(asked)
    stream._ordered.append(asked)
    outcome: Any = Released()
    asked.settle(outcome, True)
    (message,) = sent
    found = stream_module.pb.ModelStreamInferResponse.FromString(message)
    assert "the server's log has the details" in found.error_message and found.infer_response.id == "7"
    assert outcome.released == 1
    assert "a fault" in caplog.text
