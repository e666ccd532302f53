"""Executions: from the requests of a message to a call of ``execute``, and from what it returns to results (spec 2.4 to 2.6)."""

from __future__ import annotations

import asyncio
import os
import traceback
import weakref
from time import perf_counter_ns
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from ..shm.dtype import BY_CODE
from ..shm.errors import OutOfSharedMemory
from ..shm.message import BORROWED, DEVICE_OUTPUTS, EMPTY, FAILURE, FINAL, RESCHEDULE, RETURNED, ErrorCode
from .client_regions import ClientRegions, InRegions, Refused
from .error import TritonModelException, headline
from .exchange import Exchange
from .memory import StubMemory
from .outbox import Outbox
from .placing import NOTHING, Answer, Placing
from .request import InferenceRequest
from .response import InferenceResponse
from .tensor import Tensor, tensor_over

_REMEMBERED = 1024

Message = Tuple[Any, ...]
Log = Callable[..., None]


class Executions:
    """Makes executions of batches; holds what they have in common.

    Args:
        inputs: names of the model's inputs, in the order of the configuration.
        outputs: of its outputs.
        log: takes (level, file, line, text, traceback, request ids).
        tell: what clients are told of an exception, see ``error.teller``.
    """

    def __init__(
        self,
        memory: StubMemory,
        outbox: Outbox,
        placing: Placing,
        regions: ClientRegions,
        inputs: Sequence[str],
        outputs: Sequence[str],
        instance: str,
        log: Log,
        tell: Callable[[BaseException], str] = headline,
    ) -> None:
        self.memory = memory
        self.outbox = outbox
        self.placing = placing
        self.regions = regions
        self.instance = instance
        self.log = log
        self.tell = tell
        self._inputs = inputs
        self._outputs = outputs
        self._all_outputs: Set[str] = set(outputs)
        self._plans: Dict[Tuple[Any, ...], Tuple[Any, ...]] = {}

    def begin(self, batch: Sequence[Message]) -> Tuple[List[List[InferenceRequest]], Execution]:
        """The requests of a batch, alone in a list so that they can be passed on without being held, and the execution that is to answer
        them. A request whose inputs cannot be had is answered, and not among them."""
        requests: List[InferenceRequest] = []
        exchanges: List[Exchange] = []
        refs: List[List[Any]] = []
        memory = self.memory
        refused: Dict[int, Answer] = {}
        bases: List[Any] = []
        last: Any = None
        for key, flags, blocks, inputs, extras, regions in batch:
            borrowed = flags & BORROWED
            # Requests that lie in rows of one block have one base, so that a view of it may be one of all of them.
            in_rows = blocks == last and not borrowed and not regions
            if not in_rows:
                try:
                    bases = memory.borrow(blocks) if borrowed else memory.receive(blocks)
                except OutOfSharedMemory as error:
                    refused[key] = (), (), (ErrorCode.UNAVAILABLE, str(error)), ""
                    last = None
                    continue
            last = None if borrowed or regions else blocks
            in_regions: Optional[InRegions] = None
            if regions:
                try:
                    read, looks = self.regions.read(regions[0], inputs, len(blocks))
                except Refused as refusal:
                    refused[key] = refusal.answer
                    continue
                bases += read
                del read
                in_regions = InRegions(looks, {index: (region, offset, nbytes) for index, region, offset, nbytes in regions[1]})
            # Device memory comes from other stubs, or clients, and rarely: all others are spared the question.
            on_device = (borrowed or regions) and memory.has_devices
            refs.append(refs[-1] if in_rows else list(map(_watched, bases)) if on_device else [weakref.ref(base) for base in bases])
            plan = self._plans.get(inputs) or self._plan(inputs)
            over = tensor_over if on_device else Tensor._over
            tensors = [over(name, dtype, shape, bases[i], start, size) for name, dtype, shape, i, start, size in plan]
            if extras:
                requested = extras[1]
                wanted = self._all_outputs if requested is None else {self._outputs[i] for i in requested}
                exchange = Exchange(key, wanted, in_regions, flags & DEVICE_OUTPUTS)
                requests.append(InferenceRequest._received(tensors, exchange, extras[0], *extras[2:]))
            else:
                exchange = Exchange(key, self._all_outputs, in_regions, flags & DEVICE_OUTPUTS)
                requests.append(InferenceRequest._received(tensors, exchange))
            exchanges.append(exchange)
        if refused:
            batch = [message for message in batch if message[0] not in refused]
            del bases  # nothing of theirs is kept
            self.outbox.post([(key, FINAL | RETURNED | FAILURE, 0, (), *answer) for key, answer in refused.items()])
        return [requests], Execution(self, batch, exchanges, refs)

    def _plan(self, inputs: Tuple[Any, ...]) -> Tuple[Any, ...]:
        """The inputs of a message with names and types instead of numbers. Those of a model repeat, so they are remembered."""
        plan = tuple([(self._inputs[name], BY_CODE[dtype], shape, i, start, size) for name, dtype, shape, i, start, size in inputs])
        if len(self._plans) >= _REMEMBERED:
            self._plans.clear()
        self._plans[inputs] = plan
        return plan


class Execution:
    """One call of ``execute``. It ends with ``returned``, ``raised``, or, for a decoupled model, ``went_on``."""

    __slots__ = ("_batch", "_common", "_refs", "exchanges", "started")

    def __init__(self, common: Executions, batch: Sequence[Message], exchanges: List[Exchange], refs: List[List[Any]]) -> None:
        self._common = common
        self._batch = batch
        self._refs = refs
        self.exchanges = exchanges
        self.started = perf_counter_ns()

    def returned(self, values: List[Any]) -> None:
        """``execute`` returned, or its coroutine did.

        Args:
            values: what it returned, alone in a list, which is emptied: nobody else may hold it or the requests, so that whatever still
                views a block when the responses are placed is the model's.
        """
        took = perf_counter_ns() - self.started
        placing = self._common.placing
        answers: List[Optional[Answer]] = []
        failed: Set[int] = set()
        try:
            responses = check_returned(values.pop(), self.exchanges, self._common.instance)
            for response, exchange in zip(responses, self.exchanges):
                try:
                    if response is None:
                        answers.append(None)
                    else:
                        answers.append(placing.answer(response, exchange.wanted, False, exchange.in_regions, exchange.on_device))
                except Refused as refusal:
                    failed.add(exchange.key)
                    answers.append(refusal.answer)
        except BaseException as error:
            for answer in answers:
                if answer is not None:
                    placing.take_back(answer)
            self.raised(error, took)
            return
        del responses, response
        self._post(answers, failed, took)

    def raised(self, error: BaseException, took: Optional[int] = None) -> None:
        """``execute`` raised, or returned what it may not: the requests that are not finished fail with that."""
        took = perf_counter_ns() - self.started if took is None else took
        failure = self._failure(error)
        results = []
        with self._common.outbox.lock:
            for index, exchange in enumerate(self.exchanges):
                open_ = not exchange.closed
                exchange.closed = True
                flags = RETURNED | FINAL | FAILURE if open_ else RETURNED | EMPTY
                results.append((exchange.key, flags, took, self._kept(index), *(failure if open_ else NOTHING)))
            self._common.outbox.write_results(results)
        self._common.outbox.sweep()

    def went_on(self) -> None:
        """The requests of a decoupled model are answered by senders; ``execute`` is over as far as the next batch is concerned."""
        took = perf_counter_ns() - self.started
        outbox = self._common.outbox
        results = []
        with outbox.lock:
            for index, exchange in enumerate(self.exchanges):
                flags = RETURNED | EMPTY
                if exchange.reschedule and not exchange.closed:
                    exchange.closed = True
                    flags |= FINAL | RESCHEDULE
                results.append((exchange.key, flags, took, self._kept(index), *NOTHING))
            outbox.write_results(results)
        outbox.sweep()

    def failed_later(self, error: BaseException) -> None:
        """A coroutine that went on in the background raised: its requests end with that."""
        _, _, (code, text), _ = self._failure(error)
        for exchange in self.exchanges:
            exchange.fail(code, text)

    def _post(self, answers: Sequence[Optional[Answer]], failed: Set[int], took: int) -> None:
        results: List[Tuple[Any, ...]] = []
        outbox = self._common.outbox
        with outbox.lock:
            for index, (exchange, answer) in enumerate(zip(self.exchanges, answers)):
                flags = RETURNED
                if answer is not None and (exchange.closed or exchange.sent):
                    # Another thread has sent one since that was checked: it stands.
                    self._common.placing.take_back(answer)
                    answer = None
                if answer is not None:
                    exchange.closed = exchange.sent = True
                    flags |= FINAL | FAILURE if exchange.key in failed else FINAL
                elif exchange.reschedule and not exchange.closed:
                    exchange.closed = True
                    flags |= FINAL | EMPTY | RESCHEDULE
                else:
                    flags |= EMPTY
                results.append((exchange.key, flags, took, self._kept(index, answer or NOTHING), *(answer or NOTHING)))
            outbox.write_results(results)
        outbox.sweep()

    def _kept(self, index: int, answer: Answer = NOTHING) -> Sequence[int]:
        """Which of a request's blocks the model still views; what an answer says of such a block is copied. Under the lock of the outbox:
        their release must not be written before it has been written that they are kept."""
        _, flags, blocks, *_ = self._batch[index]
        memory, refs = self._common.memory, self._refs[index]
        borrowed = flags & BORROWED
        on_device = borrowed and memory.has_devices
        # Of requests with one base the first keeps it for all of them.
        again = index > 0 and refs is self._refs[index - 1]
        kept = []
        for i, ref in enumerate(refs):
            if on_device and not isinstance(ref, weakref.ref):
                if ref.settle():
                    kept.append(i)
                continue
            base: Any = ref()
            if base is not None and i >= len(blocks):
                # What lies in a region of the client's is nobody's to be given back.
                in_regions = self.exchanges[index].in_regions
                look = in_regions.looks[i - len(blocks)] if in_regions is not None else None
                if look is not None:
                    look.keep()
                elif isinstance(base, np.ndarray) and (key := memory.key_of(base)) in answer[0]:
                    memory.detach(answer[0], key, base)
            elif base is not None and (again or memory.let_go(blocks[i], base)):
                if not again:
                    kept.append(i)
                key = blocks[i][:2]
                if key in answer[0] and not borrowed:
                    memory.detach(answer[0], key, base)
        return kept

    def _failure(self, error: BaseException) -> Answer:
        """The traceback goes to the log, the message to the client, with the frames if it may have them."""
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        file, line = (frame.tb_frame.f_code.co_filename, frame.tb_lineno) if frame is not None else ("model.py", 0)
        text = f"Failed to process the request(s) for model '{self._common.instance}', message: {self._common.tell(error)}"
        cancelled = isinstance(error, asyncio.CancelledError)
        if not cancelled:
            trace = "".join(traceback.format_exception(None, error, error.__traceback__))
            requests = ", ".join(extras[0] for _, _, _, _, extras, *_ in self._batch if extras and extras[0])
            self._common.log("ERROR", os.path.basename(file), line, text, trace, requests)
        # The frames hold the requests, and so their memory, for as long as the exception lives.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        return (), (), (ErrorCode.CANCELLED if cancelled else ErrorCode.INTERNAL, text), ""


def _watched(base: Any) -> Any:
    """What tells whether a base is still viewed: a weak reference, or, of device memory that was lent, its lease."""
    return getattr(base, "lease", None) or weakref.ref(base)


def check_returned(returned: Any, exchanges: Sequence[Exchange], instance: str) -> Sequence[Optional[InferenceResponse]]:
    """What ``execute`` returned: a response for each request, or None where a sender answers it.

    Raises:
        TritonModelException: it returned something else; the text is the one Triton's users know.
    """
    if Exchange.decoupled:
        if returned is None:
            return [None] * len(exchanges)
        raise TritonModelException(f"Python model '{instance}' is using the decoupled mode and the execute function must return None.")
    if returned is None:
        return [None] * len(exchanges)
    if not isinstance(returned, list):
        raise TritonModelException(f"Expected a list in the execute return, found type '{type(returned)}'.")
    if len(returned) != len(exchanges):
        raise TritonModelException(
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{len(exchanges)}, and InferenceResponse(s) size is:{len(returned)}\n"
        )
    for response, exchange in zip(returned, exchanges):
        if response is None:
            continue
        if exchange.reschedule:
            raise TritonModelException(
                f"Expected a None object in the execute function return list for reschduled request, found type '{type(response)}'."
            )
        if not isinstance(response, InferenceResponse):
            raise TritonModelException(
                f"Expected an 'InferenceResponse' object in the execute function return list, found type '{type(response)}'."
            )
        exchange.check(response)
    return returned
