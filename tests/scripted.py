"""Models that run the Python text they are sent, and what a test does with them."""

from __future__ import annotations

import asyncio
import shutil
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Dict, Iterator, List, Optional

import numpy as np
from model_repository import python
from server_process import until
from stublet.parent import InferResult, InferStream, Server, ServerError
from stublet.parent.lifecycle import State
from stublet.parent.options import BackendOptions, ServerOptions

SCRIPTED = Path(__file__).parent / "scripted_models" / "scripted"

MEBI = 1 << 20


def scripted(root: Path, name: str, instances: int = 1, decoupled: bool = False, **parameters: str) -> Path:
    """A copy of the model ``scripted``; parameters ``initialize`` and ``finalize`` are Python that it runs at those moments."""
    directory = root / name
    shutil.copytree(SCRIPTED, directory, ignore=shutil.ignore_patterns("__pycache__"))
    extra = f"instance_group {{ count: {instances} kind: KIND_CPU }}\n"
    if decoupled:
        extra += "model_transaction_policy { decoupled: true }\n"
    for key, value in parameters.items():
        extra += f'parameters {{ key: "{key}" value {{ string_value: {python(textwrap.dedent(value))} }} }}\n'
    with (directory / "config.pbtxt").open("a") as config:
        config.write(extra)
    return directory


def room(mebibytes: int = 32) -> ServerOptions:
    """Options for a server of a whole module: so much memory from the start that no single test is charged with it."""
    return ServerOptions(backend=BackendOptions(shm_default_byte_size=mebibytes * MEBI))


def script(code: str, data: Optional[np.ndarray] = None) -> Dict[str, np.ndarray]:
    """The inputs that tell a scripted model to run ``code``."""
    inputs = {"CODE": np.array([textwrap.dedent(code)], object)}
    if data is not None:
        inputs["DATA"] = np.asarray(data, np.float32)
    return inputs


class Scripted:
    """A scripted model of an embedded server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    def run(self, code: str, data: Optional[np.ndarray] = None, **more: Any) -> InferResult:
        """The outputs."""
        more.setdefault("timeout", 30)
        return self.server.infer(self.name, script(code, data), **more)

    def say(self, code: str, data: Optional[np.ndarray] = None, **more: Any) -> str:
        """The text of the response."""
        return text(self.run(code, data, **more))

    def fail(self, code: str, data: Optional[np.ndarray] = None, **more: Any) -> str:
        """The error that is all the answer there is, as ``code: text``."""
        with self.stream(code, data, **more) as stream:
            try:
                answers = list(map(text, stream))
            except ServerError as error:
                return f"{error.code.name}: {error}"
        raise AssertionError(f"it answered {answers}")

    async def say_async(self, code: str, data: Optional[np.ndarray] = None) -> str:
        """``say`` for a coroutine."""
        return text(await self.server.infer_async(self.name, script(code, data)))

    def stream(self, code: str, data: Optional[np.ndarray] = None, **more: Any) -> InferStream:
        """The responses as they come."""
        more.setdefault("timeout", 30)
        return self.server.infer_stream(self.name, script(code, data), **more)

    def stream_async(self, code: str, data: Optional[np.ndarray] = None) -> AsyncIterator[InferResult]:
        """``stream`` for a coroutine."""
        return self.server.infer_stream_async(self.name, script(code, data))

    def items(self, code: str, data: Optional[np.ndarray] = None, **more: Any) -> List[str]:
        """The texts of all responses; an error is one, as ``error: text``."""
        return texts(self.stream(code, data, **more))

    def tell(self, code: str) -> None:
        """Runs something that has no answer."""
        if self._model.decoupled:
            assert self.items(code + "\nsender.send(flags=FINAL)") == []
        else:
            self.say(code)

    def value(self, expression: str) -> str:
        """The value of an expression in the model."""
        if self._model.decoupled:
            (found,) = self.items(f"sender.send(response(({expression})), FINAL)")
            return found
        return self.say(f"result = {expression}")

    @property
    def pids(self) -> List[int]:
        """Of the instances that serve."""
        return [i.pid for i in self._model.instances if i.state is State.READY and i.pid is not None]

    @property
    def _model(self) -> Any:
        return self.server.core.find(self.name)


def text(result: InferResult) -> str:
    """What a response says."""
    return result["RESULT"][0].decode() if "RESULT" in result else ""


def texts(stream: InferStream) -> List[str]:
    """What all responses say; an error is one, as ``error: text``."""
    found = []
    while True:
        try:
            found.append(text(next(stream)))
        except StopIteration:
            return found
        except ServerError as error:
            found.append(f"error: {error}")


async def checked_ready(model: Scripted) -> str:
    """Nothing, or why the model is not ready. In the server's loop."""
    try:
        await model.server.core.find(model.name).check_ready()
    except ServerError as error:
        return str(error)
    return ""


def check_ready(model: Scripted) -> str:
    """``checked_ready`` from outside."""
    assert model.server.loop is not None
    return asyncio.run_coroutine_threadsafe(checked_ready(model), model.server.loop).result(30)


@contextmanager
def quiet(server: Server) -> Iterator[None]:
    """Asserts that nothing is under way and nothing is lent, after what is within."""
    yield
    models = [model for versions in server.core.models.values() for model in versions.values()]

    def held() -> List[str]:
        found = []
        for model in models:
            for instance in model.instances:
                if instance.state is State.READY:
                    if instance.channel.in_flight:
                        found.append(f"{instance.name}: in flight {list(instance.channel.in_flight)[:5]}")
                    loans = instance.channel.loans
                    for what in ("_lent", "_lent_again", "_kept"):
                        if getattr(loans, what):
                            found.append(f"{instance.name}: {what} {list(getattr(loans, what))[:5]}")
                    if instance.open_calls:
                        found.append(f"{instance.name}: calls {list(instance.open_calls)[:5]}")
            with model.lock:
                model.arena.collect()
                used = [block for block in model.arena._blocks.values() if block.holders]
            if used:
                found.append(f"{model.name}: {len(used)} blocks of its arena")
        return found

    def nothing() -> bool:
        return not held()

    try:
        until(nothing, 0.05)
    except AssertionError:
        # A reference cycle of the model's text may hold something: its garbage collector has not come by.
        for model in models:
            for _ in model.instances:
                scripted = Scripted(server, model.name)
                if any(spec.name == "CODE" for spec in model.inputs) and scripted.pids:
                    scripted.tell("gc.collect()")
        try:
            until(nothing, 5)
        except AssertionError:
            raise AssertionError("still held: " + "; ".join(held())) from None
