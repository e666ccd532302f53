"""Models as a server has them before their processes start: all that is needed to read a request to one."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import contextmanager
from typing import Any, Dict, Iterator, NamedTuple, Sequence

from model_repository import MODELS
from stublet.parent import model_config, repository
from stublet.parent.core import Core
from stublet.parent.model import Model
from stublet.parent.options import ServerOptions
from stublet.parent.repository import ModelFiles

NAMES = ("add_sub", "every_type", "identity_batch", "identity_bytes", "matrix", "optional", "vector")


class NoProcess:
    """Takes the place of the fork server: the test is the process."""

    far: socket.socket
    """The stub's end of the control socket of the one that was spawned last."""

    def remove_at_end(self, directory: str) -> None:
        return

    def spawn(self, stub: Any, interpreter: Any, environment: Any, placement: Any, sandbox: Any, fds: Sequence[int]) -> None:
        self.far = socket.socket(fileno=os.dup(fds[0]))


class Offered(NamedTuple):
    """A server whose models do not run."""

    core: Core
    models: Dict[str, Model]

    def assert_nothing_held(self) -> None:
        """Every block of every request arena has come back."""
        for model in self.models.values():
            model.arena.collect()
            held = [block for block in model.arena._blocks.values() if block.holders > 0]
            assert not held, f"{len(held)} blocks of '{model.name}' are held"


@contextmanager
def offered() -> Iterator[Offered]:
    """The models of ``tests/models`` that ``NAMES`` has."""
    core = Core(ServerOptions(allow_client_shm=True), NoProcess())  # type: ignore[arg-type]

    async def make() -> Dict[str, Model]:
        models = {}
        for name in NAMES:
            files = ModelFiles(name, str(MODELS / name), [1])
            config = repository.read_config(files)
            model_config.complete(config, name)
            model_config.check(config, name)
            models[name] = Model(core, files, 1, config)
        return models

    models = asyncio.run(make())
    try:
        yield Offered(core, models)
    finally:
        core.client_memory.close()
        for model in models.values():
            for segment in model.segments:
                segment.close()
