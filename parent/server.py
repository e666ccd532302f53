"""The embedded server: the same models, stubs and errors, without a network."""

from __future__ import annotations

import asyncio
import os
import threading
from time import perf_counter_ns
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import msgspec
import numpy as np
import uvloop

from ..shm import bytes_codec
from ..shm.dtype import BF16, BY_NUMPY, BYTES, DataType
from ..shm.errors import OutOfSharedMemory
from .core import Core, ModelStatus
from .errors import InvalidArgument, ServerError, Unavailable, Unsupported
from .fork_server import ForkServer
from .instance import LoadFailed
from .model import Model
from .options import ServerOptions
from .request import Outcome, Output, Request, Response
from .spawner import Spawner
from .validation import GivenInput, Layout, lay_out, output_indices

COPIED_BYTES = 16 << 10
"""Outputs of a response up to this size are copied out of shared memory; larger ones are views of it."""

Parameters = Mapping[str, Union[bool, int, float, str]]


class InferResult(Dict[str, np.ndarray]):
    """Outputs by name. Also says which version answered, and the response's parameters."""

    def __init__(self, model_name: str, model_version: int, parameters: Dict[str, Any]) -> None:
        super().__init__()
        self.model_name = model_name
        self.model_version = model_version
        self.parameters = parameters


class Server:
    """A server inside this process, as a context manager; ``async with`` works too.

    Args:
        model_repository: a directory of models, or several.
        exit_on_error: whether a model that does not load is an error here; otherwise it is one when it is asked for.
        options: everything else.

    Raises (on entry):
        LoadFailed: a model did not load.
        RepositoryError: a repository cannot be read.
    """

    def __init__(
        self,
        model_repository: Union[str, os.PathLike[str], Sequence[Union[str, os.PathLike[str]]]],
        *,
        exit_on_error: bool = True,
        options: Optional[ServerOptions] = None,
    ) -> None:
        roots = [model_repository] if isinstance(model_repository, (str, os.PathLike)) else list(model_repository)
        self._options = options or ServerOptions()
        self._options.model_repositories = [os.fspath(root) for root in roots]
        self._exit_on_error = exit_on_error
        self.loop: Optional[asyncio.AbstractEventLoop] = None
        self._thread: Optional[threading.Thread] = None
        self._core: Optional[Core] = None

    def __enter__(self) -> Server:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="stublet-server", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self.loop).result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def __aenter__(self) -> Server:
        return await asyncio.get_running_loop().run_in_executor(None, self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._stop)

    async def _start(self) -> None:
        self._core = Core(self._options, Spawner(ForkServer.start()))
        await self._core.start()
        if self._exit_on_error and self._core.failures:
            name, reason = next(iter(self._core.failures.items()))
            raise LoadFailed(f"failed to load '{name}': {reason}")

    def _stop(self) -> None:
        if self.loop is None or self._thread is None:
            return
        if self._core is not None:
            asyncio.run_coroutine_threadsafe(self._core.stop(self._options.exit_timeout_secs), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self.loop = self._thread = None

    @property
    def core(self) -> Core:
        """The models themselves.

        Raises:
            Unavailable: the server is not running.
        """
        if self._core is None or self.loop is None:
            raise Unavailable("the server is not running; use it in a with statement")
        return self._core

    def _find(self, model: str, version: Optional[int]) -> Model:
        found = self.core.find(model, version)
        if found.decoupled:
            raise Unsupported(f"model '{model}' is decoupled, which this version of stublet does not serve")
        return found

    def ready(self) -> bool:
        """Whether every model serves."""
        return self.core.ready

    def status(self) -> List[ModelStatus]:
        """A row for each instance."""
        return self.core.status()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: Optional[int] = None,
        outputs: Sequence[str] = (),
        request_id: str = "",
        parameters: Optional[Parameters] = None,
        timeout: Optional[float] = None,
    ) -> InferResult:
        """Runs one inference and waits for it. In any thread.

        Args:
            inputs: arrays by name, of the dtypes of the configuration; object or bytes arrays for BYTES, uint16 for BF16.
            outputs: names of those wanted; none means all.
            timeout: seconds to wait.

        Raises:
            ServerError: one of its classes, as a client would be told.
            TimeoutError: no answer in time; the request goes on.
        """
        found = self._find(model, version)
        waiter = _Waiter()
        request = _request(found, inputs, outputs, request_id, parameters, waiter.settle)
        found.submit(request)
        return _result(found, waiter.wait(found, timeout))

    async def infer_async(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: Optional[int] = None,
        outputs: Sequence[str] = (),
        request_id: str = "",
        parameters: Optional[Parameters] = None,
    ) -> InferResult:
        """``infer`` for a coroutine of any event loop; see there."""
        found = self._find(model, version)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            try:
                loop.call_soon_threadsafe(_set_unless_done, future, outcome)
            except RuntimeError:
                # The caller's loop was closed meanwhile, so nobody waits; raising here would cost others their answers.
                if isinstance(outcome, Response):
                    outcome.release()

        found.submit(_request(found, inputs, outputs, request_id, parameters, settle))
        return _result(found, await future)


def _set_unless_done(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
    elif isinstance(outcome, Response):
        outcome.release()


class _Waiter:
    """Waits in the calling thread: polls the instance's ring itself for a while, then sleeps until the server's loop has the answer.

    To hand the request to the loop's thread and the answer back would cost two wake-ups of a thread, several times the rest.
    """

    __slots__ = ("_abandoned", "_outcome", "_sleeper")

    def __init__(self) -> None:
        self._outcome: Optional[Outcome] = None
        self._sleeper: Optional[threading.Lock] = None
        self._abandoned = False

    def settle(self, outcome: Outcome) -> None:
        with _settling:
            if self._abandoned:
                if isinstance(outcome, Response):
                    outcome.release()
                return
            self._outcome = outcome
        if self._sleeper is not None:
            self._sleeper.release()

    def wait(self, model: Model, timeout: Optional[float]) -> Outcome:
        try:
            if self._outcome is None:
                self._poll(model)
            if self._outcome is None:
                self._sleep(timeout)
        except BaseException:
            # Out of time, or interrupted: whatever comes now is for nobody.
            with _settling:
                self._abandoned = True
                if isinstance(self._outcome, Response):
                    self._outcome.release()
            raise
        assert self._outcome is not None
        return self._outcome

    def _poll(self, model: Model) -> None:
        instances = [i for i in model.instances if i.in_flight and i.poll.nanoseconds()]
        if len(instances) != 1:
            return
        (instance,) = instances
        deadline = perf_counter_ns() + instance.poll.nanoseconds()
        model.begin_polling(instance)
        try:
            while self._outcome is None and perf_counter_ns() < deadline:
                if instance.ready():
                    model.drain(instance)
                else:
                    os.sched_yield()  # the stub may be waiting for this very core
        finally:
            model.end_polling(instance)

    def _sleep(self, timeout: Optional[float]) -> None:
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleeper = sleeper
        # settle may have passed between the look at the outcome and the line above, and then releases nothing.
        if self._outcome is None and not sleeper.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(f"no answer within {timeout} seconds")


_settling = threading.Lock()


def _request(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    request_id: str,
    parameters: Optional[Parameters],
    settle: Any,
) -> Request:
    given, datas = [], []
    for name, array in inputs.items():
        dtype, data = _wire_form(name, array, model)
        given.append(GivenInput(name, dtype.name, array.shape, len(data) if isinstance(data, bytes) else data.nbytes))
        datas.append(data)
    key = tuple(given)
    layout: Optional[Layout] = model.memo.get(key)
    if layout is None:
        layout = lay_out(model, given)
        model.remember(key, layout)
    indices = output_indices(model, outputs)
    extras: Tuple[Any, ...] = ()
    if request_id or indices is not None or parameters:
        extras = (request_id, indices, msgspec.json.encode(parameters or {}).decode(), 0, 0, 0)
    block = model.allocate(layout.nbytes)
    try:
        for place, data in zip(layout.placements, datas):
            block.write(place.offset, data, place.nbytes)
    except OutOfSharedMemory as error:
        model.arena.dropped.append(block)
        raise model.no_room(error) from error
    return Request(block, layout.nbytes, layout.inputs, extras, settle)


def _wire_form(name: str, array: np.ndarray, model: Model) -> Tuple[DataType, Any]:
    if not isinstance(array, np.ndarray):
        raise InvalidArgument(f"input '{name}' of model '{model.name}' must be a numpy array, not {type(array).__name__}")
    dtype = BY_NUMPY.get(array.dtype)
    if dtype is BYTES or array.dtype.kind == "S":
        items = array.reshape(-1).tolist()
        return BYTES, bytes_codec.encode([i if isinstance(i, bytes) else str(i).encode() for i in items])
    if dtype is None:
        raise InvalidArgument(f"input '{name}' of model '{model.name}' has dtype {array.dtype}, which the protocol does not have")
    if array.dtype == np.uint16 and any(spec.name == name and spec.dtype is BF16 for spec in model.inputs):
        dtype = BF16
    return dtype, array if array.flags.c_contiguous else np.array(array, order="C")


def _result(model: Model, outcome: Outcome) -> InferResult:
    if isinstance(outcome, ServerError):
        raise outcome
    parameters = msgspec.json.decode(outcome.parameters) if outcome.parameters else {}
    result = InferResult(model.name, model.version, parameters)
    plan = outcome.plan
    if plan.nbytes <= COPIED_BYTES or any(output.dtype is BYTES for output in plan.outputs):
        for output in plan.outputs:
            result[output.name] = _array(output, outcome.copy(output))
        outcome.release()
    else:
        for output, view in zip(plan.outputs, outcome.views()):
            result[output.name] = _array(output, view)
    return result


def _array(output: Output, wire: Any) -> np.ndarray:
    if output.dtype is BYTES:
        items = bytes_codec.decode(wire)
        array = np.empty(len(items), object)
        array[:] = items
        return array.reshape(output.shape)
    # A bytearray, unlike bytes, makes an array that can be written to.
    buffer = bytearray(wire) if isinstance(wire, bytes) else wire
    return np.ndarray(output.shape, np.uint16 if output.dtype is BF16 else output.dtype.numpy, buffer)
