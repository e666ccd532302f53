"""A stream of gRPC that a test writes to and reads from step by step, and what it tells models to do."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any, List, Tuple

from grpc_client import SECONDS, Client, final, said

THREE = "for i in range(3): sender.send(response(i))\nsender.send(flags=FINAL)"


class Stream:
    """A stream that a test writes to and reads from step by step."""

    def __init__(self, client: Client, **more: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = client.stub.ModelStreamInfer(iter(self._requests.get, None), **{"timeout": SECONDS, **more})

    def ask(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request)

    def half_close(self) -> None:
        self._requests.put(None)

    def take(self, count: int = 1) -> List[Any]:
        return [next(self.call) for _ in range(count)]

    def rest(self) -> List[Any]:
        return list(self.call)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()
        self._requests.put(None)


def told(responses: List[Any]) -> List[Tuple[str, str, bool]]:
    """Id, text and finality of each."""
    return [(response.infer_response.id, said(response), final(response)) for response in responses]


def waits(directory: Path, name: str) -> str:
    """Leaves a file when it begins, and another one when it has been cancelled."""
    return (
        f"open({str(directory / name)!r} + ' began', 'w').close()\n"
        "sender and sender.send(response('begun')) if model.decoupled else None\n"
        "until(request.is_cancelled)\n"
        f"open({str(directory / name)!r} + ' cancelled', 'w').close()\n"
        "sender.send(flags=FINAL) if model.decoupled else None"
    )
