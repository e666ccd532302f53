"""The HTTP endpoints for shared memory, without a socket."""

from __future__ import annotations

import asyncio
import base64
import threading
from types import SimpleNamespace
from typing import Any

from stublet.parent.http.shared_memory import SharedMemoryApi

DOCUMENT = {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "device_id": 0, "byte_size": 1}


class Exchange:
    """A request to register that region."""

    async def document(self, limit: int) -> Any:
        return DOCUMENT

    async def answer(self) -> None:
        """It is registered."""


class Memory:
    """Registering takes until ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.registered = 0
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def register_cuda(self, *what: Any) -> None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.go.wait(30)
        with self._lock:
            self.at_once -= 1
            self.registered += 1


def test_registrations_that_wait_leave_the_threads_to_others() -> None:
    memory = Memory()
    core: Any = SimpleNamespace(client_memory=memory, options=SimpleNamespace(http_max_input_size=1 << 20))
    exchange: Any = Exchange()

    async def register() -> None:
        (route,) = [one for one in SharedMemoryApi(core).routes if one.path == "/v2/cudasharedmemory/region/{region}/register"]
        loop = asyncio.get_running_loop()
        tasks = [
            asyncio.ensure_future(route.handler(exchange, region=f"r{number}")) for number in range(100)
        ]  # more than there are threads
        await asyncio.sleep(0)  # they have all begun
        try:
            await asyncio.wait_for(loop.run_in_executor(None, lambda: None), 10)
        finally:
            memory.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(register())
    assert (memory.registered, memory.most_at_once) == (100, 1)
