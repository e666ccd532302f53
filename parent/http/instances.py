"""What is running, over HTTP: an endpoint of our own, for ``stublet ps`` and for whoever watches a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, List

from .. import instance_report
from . import schemas
from .exchange import Exchange
from .routes import Operation, Route

if TYPE_CHECKING:
    from ..core import Core

PATH = "/v2/stublet/instances"

_SERVER = schemas.record({"id": schemas.STRING, "pid": schemas.UNSIGNED, "seconds": {"type": "number"}, "memory_bytes": schemas.ANY})
_INSTANCE = schemas.record(
    {
        "name": schemas.STRING,
        "pid": schemas.ANY,
        "device": schemas.STRING,
        "cores": schemas.STRING,
        "threads": schemas.ANY,
        "passive": schemas.BOOLEAN,
        "state": schemas.STRING,
        "reason": schemas.STRING,
        "executing": schemas.UNSIGNED,
        "restarts": schemas.UNSIGNED,
        "restart_in_seconds": schemas.ANY,
        "memory_bytes": schemas.ANY,
        "gpu_exported_bytes": schemas.UNSIGNED,
        "gpu_imported_bytes": schemas.UNSIGNED,
        "gpu_memory_bytes": schemas.ANY,
    }
)
_MODEL = schemas.record(
    {
        "name": schemas.STRING,
        "version": schemas.STRING,
        "state": schemas.STRING,
        "reason": schemas.STRING,
        "pending": schemas.UNSIGNED,
        "shared_memory_bytes": schemas.UNSIGNED,
        "instances": schemas.array(_INSTANCE),
    }
)
_REPORT = schemas.record({"server": _SERVER, "models": schemas.array(_MODEL)})


class InstancesApi:
    """Its ``routes`` tell what runs in ``core``."""

    def __init__(self, core: Core) -> None:
        self._core = core
        operation = Operation("Models with their instances, processes, queues and memory", _REPORT)
        self.routes: List[Route] = [Route("GET", PATH, "statistics", self._report, operation)]

    async def _report(self, exchange: Exchange) -> None:
        report = instance_report.collect(self._core)
        await exchange.answer_json(await asyncio.get_running_loop().run_in_executor(None, instance_report.weigh, report))
