"""The embedded server: the same models, stubs and errors, without a network."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, AsyncIterator, Coroutine, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import uvloop

from .arrays import InferResult, Parameters, to_request, to_result
from .backlog import Backlog
from .core import Core, ModelStatus
from .errors import Unavailable, Unsupported
from .fork_server import ForkServer
from .infer_stream import Arrivals, InferStream
from .instance import LoadFailed
from .options import ServerOptions
from .request import Outcome, drop
from .servable import Servable
from .spawner import Spawner


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

    def _find(self, model: str, version: Optional[int]) -> Servable:
        found = self.core.find(model, version)
        if found.decoupled:
            raise Unsupported(f"model '{model}' is decoupled and may answer more than once: use infer_stream or infer_stream_async")
        return found

    def ready(self) -> bool:
        """Whether every model serves, and says so itself if it has an ``is_ready``."""
        return bool(self._run(self.core.check_ready()))

    def metrics(self) -> str:
        """What the metrics port of a server would show."""

        async def text() -> bytes:
            return self.core.metrics_text()

        return bytes(self._run(text())).decode()

    def statistics(self, name: str = "", version: str = "") -> List[Dict[str, Any]]:
        """What the requests to every model, or to one, or to a version of it, came to: the ``model_stats`` of Triton's protocol.

        Raises:
            ServerError: there is no such model or version.
        """

        async def read() -> List[Dict[str, Any]]:
            return self.core.statistics(name, version)

        found: List[Dict[str, Any]] = self._run(read())
        return found

    def load_model(self, name: str, config: str = "", files: Optional[Mapping[str, bytes]] = None) -> None:
        """Loads a model, or loads it again, and waits until it serves. The server must run with ``model_control_mode="explicit"``.

        Args:
            config: JSON text that replaces its configuration.
            files: ``{"file:<version>/<path>": content}`` that replaces its directory; needs ``config``.

        Raises:
            ServerError: it did not load; one that served before still does.
        """
        self._run(self.core.load_model(name, config, files))

    def unload_model(self, name: str) -> None:
        """Unloads a model, and waits until it has finished what it was asked and has ended.

        Raises:
            ServerError: it was not unloaded.
        """
        self._run(self.core.unload_model(name))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

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
            parameters: for the model, but for those that have a meaning for clients, too, such as sequence_id and sequence_start.
            timeout: seconds to wait.

        Raises:
            ServerError: one of its classes, as a client would be told.
            TimeoutError: no answer in time; the request is cancelled.
        """
        found = self._find(model, version)
        waiter = _Waiter()
        request = to_request(found, inputs, outputs, request_id, parameters, waiter.settle)
        found.submit(request)
        try:
            return to_result(found, waiter.wait(found, timeout))
        except BaseException:
            found.cancel(request)
            raise

    def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: Optional[int] = None,
        outputs: Sequence[str] = (),
        request_id: str = "",
        parameters: Optional[Parameters] = None,
        timeout: Optional[float] = None,
    ) -> InferStream:
        """Runs one inference and iterates over its responses as they come: any number for a decoupled model, one for any other.

        Leaving the loop early, or ``close``, cancels the request.

        Args:
            timeout: seconds to wait for each response.
            others: as of ``infer``.

        Raises:
            ServerError: one of its classes, as a client would be told; here, or while iterating.
            TimeoutError: while iterating: no response in time. The iteration may go on.
        """
        found = self.core.find(model, version)
        assert self.loop is not None
        arrivals = Arrivals(found, self.loop)
        stream = InferStream(arrivals, timeout)
        arrivals.submit(to_request(found, inputs, outputs, request_id, parameters, arrivals.settle))
        return stream

    async def infer_stream_async(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: Optional[int] = None,
        outputs: Sequence[str] = (),
        request_id: str = "",
        parameters: Optional[Parameters] = None,
    ) -> AsyncIterator[InferResult]:
        """``infer_stream`` for a coroutine of any event loop; see there."""
        found = self.core.find(model, version)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Tuple[Optional[Outcome], bool]] = asyncio.Queue()
        backlog = Backlog(found)
        left = False

        def arrive(outcome: Optional[Outcome], final: bool) -> None:
            if left:
                drop(outcome)
            else:
                backlog.put(outcome)
                arrived.put_nowait((outcome, final))

        def settle(outcome: Optional[Outcome], final: bool) -> None:
            try:
                loop.call_soon_threadsafe(arrive, outcome, final)
            except RuntimeError:
                drop(outcome)

        request = to_request(found, inputs, outputs, request_id, parameters, settle)
        backlog.attach(request)
        found.submit(request)
        final = False
        try:
            while not final:
                outcome, final = await arrived.get()
                backlog.took(outcome)
                if outcome is not None:
                    yield to_result(found, outcome)
        finally:
            left = True
            backlog.close()
            if not final:
                found.cancel(request)
            while not arrived.empty():
                drop(arrived.get_nowait()[0])

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
        """``infer`` for a coroutine of any event loop; see there. Cancelling the task that awaits it cancels the request."""
        found = self._find(model, version)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Optional[Outcome], _final: bool) -> None:
            assert outcome is not None  # the model is not decoupled
            try:
                loop.call_soon_threadsafe(_set_unless_done, future, outcome)
            except RuntimeError:
                # The caller's loop was closed meanwhile, so nobody waits; raising here would cost others their answers.
                drop(outcome)

        request = to_request(found, inputs, outputs, request_id, parameters, settle)
        found.submit(request)
        try:
            return to_result(found, await future)
        except asyncio.CancelledError:
            found.cancel(request)
            raise


def _set_unless_done(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
    else:
        drop(outcome)


class _Waiter:
    """Waits in the calling thread: polls the instance's ring itself for a while, then sleeps until the server's loop has the answer."""

    __slots__ = ("_abandoned", "_outcome", "_sleeper")

    def __init__(self) -> None:
        self._outcome: Optional[Outcome] = None
        self._sleeper: Optional[threading.Lock] = None
        self._abandoned = False

    def settle(self, outcome: Optional[Outcome], _final: bool) -> None:
        """Takes the outcome. In any thread."""
        with _settling:
            if self._abandoned:
                drop(outcome)
                return
            self._outcome = outcome
        if self._sleeper is not None:
            self._sleeper.release()

    def wait(self, model: Servable, timeout: Optional[float]) -> Outcome:
        try:
            if self._outcome is None:
                model.poll(self._is_settled)
            if self._outcome is None:
                self._sleep(timeout)
        except BaseException:
            # Out of time, or interrupted: whatever comes now is for nobody.
            with _settling:
                self._abandoned = True
                drop(self._outcome)
            raise
        assert self._outcome is not None
        return self._outcome

    def _is_settled(self) -> bool:
        return self._outcome is not None

    def _sleep(self, timeout: Optional[float]) -> None:
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleeper = sleeper
        # settle may have passed between the look at the outcome and the line above, and then releases nothing.
        if self._outcome is None and not sleeper.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(f"no answer within {timeout} seconds")


_settling = threading.Lock()
