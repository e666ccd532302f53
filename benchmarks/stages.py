"""What each stage of a small request's path costs, one request at a time, without a socket in between.

The real protocol object parses the real bytes of an HTTP request, the real model hands it over its ring to a real stub, and the reply
is encoded for a transport that only counts. What is missing to a whole request over HTTP is the kernel's part: reading and
writing the socket and waking up, which `serve` shows.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from .cases import add_sub
from .errors import BenchmarkError
from .report import Column, Result, save, show
from .startup import MODELS

STAGES = {
    "parse": "HTTP and JSON, checks, inputs into shared memory",
    "schedule": "queue, choice of the instance",
    "ring": "message packed and written, bell if the stub sleeps",
    "stub": "until the reply is there: wake-up, execute, outputs into shared memory",
    "reply": "message read and checked",
    "send": "response encoded and given to the transport",
    "count": "statistics",
    "put away": "blocks taken back, place in the queue",
}
_COLUMNS = (Column("p50_us", "p50 us", ".1f"), Column("p90_us", "p90 us", ".1f"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=20_000, help="how many to time (20000)")
    parser.add_argument("--quick", action="store_true", help="500 requests: does it work?")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stages.json"))


class _Transport(asyncio.Transport):
    """Takes what is written, as a socket would."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def writelines(self, pieces: Any) -> None:
        self.written.extend(pieces)

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        return

    def pause_reading(self) -> None:
        return


def run(arguments: argparse.Namespace) -> None:
    from stublet.parent import Server

    count = 500 if arguments.quick else arguments.requests
    with Server(str(MODELS)) as server:
        assert server.loop is not None
        future = asyncio.run_coroutine_threadsafe(_measure(server.core, count), server.loop)
        times = future.result()
    results = []
    for stage, what in STAGES.items():
        taken = sorted(times[stage])
        sample = {
            "p50_us": statistics.median(taken) / 1e3,
            "p90_us": taken[len(taken) * 9 // 10] / 1e3,
        }
        results.append(Result(stage, {what: [sample]}))
    show(f"Stages of one add_sub request, {count} requests", results, _COLUMNS)
    save(arguments.output, {"requests": count}, results)


async def _measure(core: Any, count: int) -> dict[str, list[int]]:
    """Runs in the server's own loop, which meanwhile does nothing else: bells wait, replies are looked for here."""
    import uvicorn
    from stublet.parent.http.door import Door
    from stublet.parent.http.front_end import HttpFrontEnd
    from stublet.parent.http.limits import HttpLimits
    from stublet.parent.http.protocol import InferProtocol
    from stublet.parent.news import News
    from uvicorn.server import ServerState

    model = core.find("add_sub")
    (instance,) = model.instances
    config = uvicorn.Config(HttpFrontEnd(core), http=InferProtocol, ws="none", log_config=None, proxy_headers=False)
    config.load()
    protocol = InferProtocol(config, ServerState(), {}, asyncio.get_running_loop(), door=Door(HttpLimits(), "HTTP"))
    transport = _Transport()
    protocol.connection_made(transport)
    request = add_sub()
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {request.header_length}\r\nContent-Length: {len(request.body)}\r\n\r\n"
    )
    data = head.encode() + request.body
    times: dict[str, list[int]] = {stage: [] for stage in STAGES}
    submitted: list[Any] = []
    submit, model.submit = model.submit, submitted.append
    spent: list[int] = []
    flush = instance.channel.flush

    def timed() -> None:
        began = perf_counter_ns()
        flush()
        spent.append(perf_counter_ns() - began)

    instance.channel.flush = timed
    for _ in range(count + count // 10):
        t0 = perf_counter_ns()
        protocol.data_received(data)
        t1 = perf_counter_ns()
        submit(submitted.pop())
        t2 = perf_counter_ns()
        (ring,) = spent
        spent.clear()
        deadline = t2 + 10**10
        while not instance.channel.ready():
            if perf_counter_ns() > deadline:
                raise BenchmarkError("the stub did not answer within 10 s")
        t3 = perf_counter_ns()
        news = News()
        with model.lock:
            instance.channel.drain(news)
        t4 = perf_counter_ns()
        ((answered, outcome, final),) = news.settled
        answered.respond(outcome, final)
        t5 = perf_counter_ns()
        model.statistics.settled(answered, outcome, final, t4, t5)
        t6 = perf_counter_ns()
        with model.lock:
            instance.channel.put_away(news)
            model._hand_over(model._scheduler.finished(instance, news.returned, perf_counter_ns()))
        t7 = perf_counter_ns()
        if not transport.written[0].startswith(b"HTTP/1.1 200"):
            raise BenchmarkError(f"a request failed: {transport.written[0]!r}")
        transport.written.clear()
        for stage, took in zip(STAGES, (t1 - t0, t2 - t1 - ring, ring, t3 - t2, t4 - t3, t5 - t4, t6 - t5, t7 - t6), strict=True):
            times[stage].append(took)
        await asyncio.sleep(0)
    return {stage: taken[count // 10 :] for stage, taken in times.items()}
