"""What becomes of one received request: who answers it, with what, and whether anybody still wants to know.

The request, its response sender, and the execution that handles it share one ``Exchange``. When the last of them is gone and the request
was never finished, the client is told so instead of waiting for ever.
"""

from __future__ import annotations

from time import sleep
from typing import TYPE_CHECKING, ClassVar, Optional, Set

from ..shm.errors import OutOfSharedMemory
from ..shm.message import EMPTY, FAILURE, FINAL, ErrorCode
from ..shm.ring import OPEN_REQUESTS
from .client_regions import InRegions, Refused
from .error import TritonModelException
from .placing import NOTHING, Placing

if TYPE_CHECKING:
    from .outbox import Outbox
    from .response import InferenceResponse

_SLOT = OPEN_REQUESTS - 1
_LEAST_PAUSE, _MOST_PAUSE = 0.0005, 0.01

_DROPPED = "the model dropped the request and its response sender without TRITONSERVER_RESPONSE_COMPLETE_FINAL"
_UNANSWERED = "execute returned None for the request, and no response sender answered it before the model dropped both"


class Exchange:
    """``closed``: nothing more may be sent. ``sent``: a response was. Both change under the lock of the outbox. ``on_device``: outputs that
    are on a GPU may stay there."""

    __slots__ = ("_cancelled", "closed", "in_regions", "key", "on_device", "reschedule", "sent", "wanted")

    outbox: ClassVar[Outbox]
    placing: ClassVar[Placing]
    cancelled_flags: ClassVar[memoryview]
    held_flags: ClassVar[memoryview]
    decoupled: ClassVar[bool] = False

    def __init__(self, key: int, wanted: Set[str], in_regions: Optional[InRegions] = None, on_device: int = 0) -> None:
        self.key = key
        self.wanted = wanted
        self.in_regions = in_regions
        self.on_device = on_device
        self.closed = False
        self.sent = False
        self.reschedule = False
        self._cancelled = False

    def is_cancelled(self) -> bool:
        """Whether the client gave up; a read of shared memory. Once True it stays so."""
        if not self._cancelled and not self.closed:
            self._cancelled = self.cancelled_flags[self.key & _SLOT] != 0
        return self._cancelled

    def send(self, response: Optional[InferenceResponse], final: bool) -> None:
        """Sends a response, or, without one, says that there are no more.

        Raises:
            TritonModelException: see ``InferenceResponseSender.send``; or there is no shared memory for the outputs.
        """
        self.check(response)
        if response is not None and self.held_flags[self.key & _SLOT]:
            self._wait_for_client()
        answer = NOTHING
        flags = (FINAL if final else 0) | (EMPTY if response is None else 0)
        outbox = self.outbox
        try:
            if response is not None:
                try:
                    answer = self.placing.answer(response, self.wanted, True, self.in_regions, self.on_device)
                except Refused as refusal:
                    flags |= FAILURE
                    answer = refusal.answer
            with outbox.lock:
                self.check(response)
                outbox.write([(self.key, flags, 0, (), *answer)])
                self.sent = self.sent or response is not None
                self.closed = final
        except TritonModelException:
            self.placing.take_back(answer)
            raise
        except OutOfSharedMemory as error:
            self.placing.take_back(answer)
            raise TritonModelException(str(error)) from error
        finally:
            outbox.sweep()

    def _wait_for_client(self) -> None:
        """Returns when the client has taken enough of what was sent, or has gone."""
        pause = _LEAST_PAUSE
        while self.held_flags[self.key & _SLOT] and not (self.closed or self.outbox.closed or self.is_cancelled()):
            sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE)

    def fail(self, code: ErrorCode, text: str) -> None:
        """Ends it with an error, if it has not ended."""
        outbox = self.outbox
        with outbox.lock:
            if not self.closed:
                self.closed = True
                outbox.write([(self.key, FINAL | FAILURE, 0, (), (), (), (code, text), "")])
        outbox.sweep()

    def check(self, response: Optional[InferenceResponse]) -> None:
        """Raises TritonModelException if that, or with None the end alone, cannot be sent now."""
        if self.outbox.closed:
            raise TritonModelException("Unable to send response. The instance is ending, or this is a process that it forked.")
        if not self.decoupled:
            if response is not None and self.sent:
                raise TritonModelException("Unable to send response. Non-decoupled model cannot send more than one response.")
            if response is None and not self.sent and not self.closed:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
                )
        if self.closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")

    def __del__(self) -> None:
        if not self.closed:
            text = _DROPPED if self.decoupled or self.sent else _UNANSWERED
            self.outbox.post_late((self.key, FINAL | FAILURE, 0, (), (), (), (ErrorCode.INTERNAL, text), ""))
