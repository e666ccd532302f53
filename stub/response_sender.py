"""``InferenceResponseSender`` (spec 1.7)."""

from __future__ import annotations

from typing import Optional

from .error import TritonModelException
from .exchange import Exchange
from .response import InferenceResponse

COMPLETE_FINAL = 1


class InferenceResponseSender:
    """Sends the responses of one request, from any thread, before or after ``execute`` returned."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Optional[Exchange]) -> None:
        self._exchange = exchange

    def send(self, response: Optional[InferenceResponse] = None, flags: int = 0) -> None:
        """Sends a response, or, with TRITONSERVER_RESPONSE_COMPLETE_FINAL, the last one, or the news that there is none to come.

        Outputs that the client did not ask for are dropped. The response's tensors are read before it returns.

        Raises:
            TypeError: not an InferenceResponse, or flags that are not an int.
            TritonModelException: wrong flags; neither response nor flag; the request was made by the model; a second response, or the end
                before the first, of a model that is not decoupled; the sender is closed; no shared memory for the outputs.
        """
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(f"InferenceResponseSender.send: response must be InferenceResponse, not {type(response).__name__}")
        if type(flags) is not int:
            raise TypeError(f"InferenceResponseSender.send: flags must be int, not {type(flags).__name__}")
        if flags not in (0, COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if flags == 0 and response is None:
            raise TritonModelException("Inference Response object must be provided when the response flags is set to zero.")
        if self._exchange is None:
            raise TritonModelException("Unable to send response. Response sender has no reference to the decoupled state of the model.")
        self._exchange.send(response, flags == COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        """Whether the client gave up. A read of shared memory; once True it stays so."""
        return self._exchange is not None and self._exchange.is_cancelled()
