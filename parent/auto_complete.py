"""``auto_complete_config``: what a model's own code says of its configuration, asked in a process of its own (spec 2.2).

What comes back was written by a model. It is read field by field, and only where Triton takes it over: sizes, tensors, dynamic
batching and the transaction policy.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Tuple, Union

from ..shm.control import ANSWER, ASK, AUTO_COMPLETE, COMPLETED, FAILED, GROW, HELLO, LOG, NO_ROOM, TELL
from ..shm.errors import ProtocolError
from ..shm.message import PROTOCOL_VERSION
from . import model_config, repository
from .environments import environment
from .instance import LoadFailed
from .log import VERBOSE, about, facts, stub_logger
from .model_config import ConfigError
from .repository import ModelFiles
from .sandbox.prepare import prepare as prepare_sandbox
from .stub_process import StubProcess, why_not_loaded
from .supervision.cause import Cause, Death, Kind
from .supervision.stacks import stacks_of

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)

_EXIT_SECONDS = 2.0
"""How long a stub that has answered may take to end by itself."""

_STACKS_SECONDS = 2.0
_MOST_BATCH = (1 << 31) - 1
_TENSORS = ("input", "output")
_BATCHING = "dynamic_batching"
_POLICY = "model_transaction_policy"


async def run(core: Core, files: ModelFiles, version: int, config: Any) -> Any:
    """The configuration as the model's ``auto_complete_config`` completes it; it is for the caller to complete and check that.

    Args:
        config: completed and checked as far as it can be without the model.

    Raises:
        LoadFailed: the model does not load, raised, died, or took too long.
        ConfigError: its environment cannot be had, or what it returned is not a configuration.
    """
    loop = asyncio.get_running_loop()
    seconds = core.options.backend.auto_complete_timeout_seconds
    prepared = await loop.run_in_executor(core.preparing, environment.prepare, config, files.path, core.ending)
    limits = await loop.run_in_executor(None, prepare_sandbox, core, config, files.path)
    file = repository.model_file(core.options.backend_directory, files, version, config)
    completion = _Completion(
        files.name,
        version,
        {**file.settings(), "model_name": files.name, "config": json.dumps(offered(config)), "verbose": logger.isEnabledFor(VERBOSE)},
        core.options.expose_tracebacks,
    )
    try:
        completion.process.start(core.spawner, prepared.interpreter, prepared.variables, sandbox=limits)
    except OSError as error:
        raise LoadFailed(f"a process to complete the configuration of model '{files.name}' cannot be started: {error}") from error
    try:
        text = await asyncio.wait_for(completion.answer, seconds)
        await asyncio.wait([completion.process.ended], timeout=_EXIT_SECONDS)
    except asyncio.TimeoutError:
        stacks = await stacks_of(completion.process, _STACKS_SECONDS)
        text = "auto_complete_config of model '%s' (pid %s) takes too long and is ended; these are its stacks:\n%s"
        logger.error(text, files.name, completion.pid, stacks, extra=about(completion.facts))
        raise LoadFailed(
            f"model '{files.name}' has not been imported and its auto_complete_config has not returned within {seconds} seconds"
        ) from None
    finally:
        completion.end()
        await asyncio.shield(completion.process.ended)
    return adopt(config, text, files.name)


class _Completion:
    """The process that runs a model's ``auto_complete_config``, and its answer. What it says is not trusted."""

    def __init__(self, name: str, version: int, settings: Dict[str, Any], expose_tracebacks: bool) -> None:
        self.name = name
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._expose = expose_tracebacks
        self.facts = facts(name, version)
        self.process = StubProcess(self, stub_logger(self))

    @property
    def pid(self) -> Optional[int]:
        return self.process.pid

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()

    def on_spawned(self) -> None:
        """It says hello when it can be told what to do."""

    def on_message(self, message: Tuple[Any, ...], fds: Sequence[int]) -> None:
        kind, *parts = message
        if kind == LOG:
            (lines,) = parts
            self.process.log(lines)
        elif kind == HELLO:
            protocol, python, numpy, executable = parts
            if protocol != PROTOCOL_VERSION:
                raise ProtocolError(f"the stub speaks protocol {protocol}, this server {PROTOCOL_VERSION}; install one version of stublet")
            logger.debug("auto-complete stub '%s' (pid %s): Python %s, numpy %s, %s", self.name, self.pid, python, numpy, executable)
            self.process.tell((AUTO_COMPLETE, {**self._settings, "expose_tracebacks": self._expose}))
        elif kind == COMPLETED:
            (text,) = parts
            if not isinstance(text, str):
                raise ProtocolError(f"a configuration is text, not {type(text).__name__}")
            self._settle(text)
        elif kind == FAILED:
            text, trace = why_not_loaded(*parts)
            if trace:
                logger.error("model '%s' did not complete its configuration", self.name, extra=about(self.facts, trace))
            self._settle(LoadFailed(text))
        elif kind == ASK:
            number, what, _ = parts
            self.process.tell((ANSWER, number, f"'{what}' is not available in auto_complete_config", None))
        elif kind == GROW:
            self.process.tell((NO_ROOM, "There is none in auto_complete_config."))
        elif kind != TELL:
            raise ProtocolError(f"no control message begins with {kind!r}")

    def on_violation(self, why: str) -> None:
        self.process.condemn(Cause(Kind.PROTOCOL_ERROR, f"it was ended for a protocol error: {why}"))
        self.process.kill()

    def on_end(self, death: Death) -> None:
        if not self.answer.done():
            summary = death.summary(self.name, "loading the model to complete its configuration", self.name)
            logger.error("%s", death.for_log(summary), extra=about(self.facts, death.stack))
            self._settle(LoadFailed(death.for_client(summary, self._expose)))

    def _settle(self, outcome: Union[str, LoadFailed]) -> None:
        if self.answer.done():
            return
        if isinstance(outcome, str):
            self.answer.set_result(outcome)
        else:
            self.answer.set_exception(outcome)


def offered(config: Any) -> Dict[str, Any]:
    """What the model is shown: the configuration as it is, in which ``input``, ``output`` and ``max_batch_size`` are always present."""
    return model_config.as_dict(config)


def adopt(config: Any, returned: Union[str, Mapping[str, Any]], name: str) -> Any:
    """The configuration with what the model made of it. What ``returned`` does not have stays as it is; batching stays too if
    ``config`` has chosen a scheduler.

    Args:
        config: as it was offered; it is not changed.
        returned: what the model returned, as JSON or as a dict.

    Raises:
        ConfigError: it is not the JSON of a configuration. Whether the configuration holds is for ``model_config.check`` to say.
    """
    document = _document(returned, name)
    wanted: Dict[str, Any] = {}
    if "max_batch_size" in document:
        wanted["max_batch_size"] = _batch_size(document["max_batch_size"], name)
    wanted.update((key, document[key]) for key in (*_TENSORS, _POLICY) if document.get(key) is not None)
    if document.get(_BATCHING) is not None and config.WhichOneof("scheduling_choice") is None:
        wanted[_BATCHING] = document[_BATCHING]
    read = model_config.from_dict(wanted, f"auto_complete_config of model '{name}' returned what is not a configuration")
    completed = type(config)()
    completed.CopyFrom(config)
    for field in wanted:
        completed.ClearField(field)
    completed.MergeFrom(read)
    return completed


def _document(returned: Union[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    if isinstance(returned, str):
        try:
            returned = json.loads(returned)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"auto_complete_config of model '{name}' returned what is not JSON: {error}") from error
    if not isinstance(returned, Mapping):
        raise ConfigError(f"auto_complete_config of model '{name}' returned {type(returned).__name__}, not a configuration")
    return returned


def _batch_size(value: Any, name: str) -> int:
    if type(value) is not int or abs(value) > _MOST_BATCH:
        raise ConfigError(f"auto_complete_config of model '{name}' set max_batch_size to {value!r}, which is not a 32-bit integer")
    return value
