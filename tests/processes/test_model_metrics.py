"""Metrics of models, from ``pb_utils.MetricFamily`` in their processes to the text that Prometheus reads (spec 1.11)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, Dict, List

from http_wire import Wire, infer, request, tensor
from model_repository import obey
from server_process import ServerProcess, until

MAKE = """
model.family = pb_utils.MetricFamily(name="requests", description="how many", kind=pb_utils.MetricFamily.COUNTER)
model.all = model.family.Metric(labels={"model": "obey"})
model.sizes = pb_utils.MetricFamily("sizes", "how large", pb_utils.MetricFamily.HISTOGRAM)
model.size = model.sizes.Metric(buckets=[0.1, 1, 2.5])
"""


def told(server: ServerProcess, code: str) -> str:
    with server.wire() as wire:
        answer = wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]}))
        assert answer.status == 200, answer.error
        result: str = answer.json()["outputs"][0]["data"][0]
        return result


def custom(server: ServerProcess) -> List[str]:
    """The lines that are not the server's own."""
    with Wire(server.metrics_port) as wire:
        answer = wire.ask(request("GET", "/metrics"))
    assert answer.status == 200
    lines = answer.body.decode().splitlines()
    return [line for line in lines if not line.replace("# HELP ", "").replace("# TYPE ", "").startswith(("nv_", "stublet_"))]


def values(server: ServerProcess) -> Dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in custom(server) if not line.startswith("#"))


def test_they_are_exposed_with_what_was_said_before(repository: Path, serve: Any) -> None:
    obey(repository, initialize=MAKE)
    server = serve()
    assert custom(server) == [
        "# HELP requests how many",
        "# TYPE requests counter",
        'requests{model="obey"} 0',
        "# HELP sizes how large",
        "# TYPE sizes histogram",
        'sizes_bucket{le="0.1"} 0',
        'sizes_bucket{le="1"} 0',
        'sizes_bucket{le="2.5"} 0',
        'sizes_bucket{le="+Inf"} 0',
        "sizes_sum 0",
        "sizes_count 0",
    ]
    for count in range(1, 20):
        assert float(told(server, "model.all.increment(1); model.size.observe(1); result = str(model.all.value())")) == count
        assert values(server)['requests{model="obey"}'] == str(count)
    assert values(server)['sizes_bucket{le="1"}'] == values(server)["sizes_count"] == "19"
    server.stop()


def test_instances_add_to_the_same_series(repository: Path, serve: Any) -> None:
    """And what an instance has added stays when it is gone, as long as another holds the series."""
    obey(repository, instances=2, initialize=MAKE + "model.all.increment(1)", restart_limit="0")
    server = serve()
    until(lambda: values(server)['requests{model="obey"}'] == "2")
    first, second = sorted(server.stubs().values())
    os.kill(first, signal.SIGKILL)
    until(lambda: f"(pid {first}, " in server.log)
    assert values(server)['requests{model="obey"}'] == "2"
    assert told(server, "model.all.increment(1.5); result = str(model.all.value())") == "3.5"
    os.kill(second, signal.SIGKILL)
    until(lambda: not values(server))
    server.stop()


def test_they_go_with_the_last_reference(repository: Path, serve: Any) -> None:
    obey(repository, initialize=MAKE)
    server = serve()
    told(server, 'model.one = model.family.Metric({"n": "1"}); model.two = model.family.Metric({"n": "2"}); model.one.increment(1)')
    assert values(server)['requests{n="1"}'] == "1"
    told(server, "del model.one")
    until(lambda: 'requests{n="1"}' not in values(server))
    assert 'requests{n="2"}' in values(server)
    told(server, "del model.family")
    until(lambda: not any(name.startswith("requests") for name in values(server)))
    text = told(server, "try: model.two.increment(1)\nexcept pb_utils.TritonModelException as error: result = str(error)")
    assert text.startswith(
        "Failed to increment metric value: Invalid metric operation as the corresponding 'MetricFamily' has been deleted."
    )
    server.stop()


REFUSALS = {
    'pb_utils.MetricFamily("a b", "", pb_utils.MetricFamily.GAUGE)': (
        "Error when creating MetricFamily: Failed to process the request for model 'obey_0_0', message: Invalid metric name 'a b'"
    ),
    'pb_utils.MetricFamily("requests", "", pb_utils.MetricFamily.GAUGE)': (
        "Error when creating MetricFamily: Failed to process the request for model 'obey_0_0', message: "
        "Family name already exists with different type"
    ),
    'model.family.Metric({"a b": "c"})': (
        "Error when creating Metric: Failed to process the request for model 'obey_0_0', message: Invalid label name 'a b'"
    ),
}


def test_what_is_refused_is_told_to_the_model(repository: Path, serve: Any) -> None:
    obey(repository, initialize=MAKE)
    server = serve()
    code = "errors = []\n" + "".join(
        f"try: {statement}\nexcept pb_utils.TritonModelException as error: errors.append(str(error))\n" for statement in REFUSALS
    )
    assert json.loads(told(server, code + "result = json.dumps(errors)")) == list(REFUSALS.values())
    server.stop()


def test_threads_may_count(repository: Path, serve: Any) -> None:
    obey(repository, initialize=MAKE)
    server = serve()
    code = """
import threading
def count():
    for _ in range(1000): model.all.increment(1)
threads = [threading.Thread(target=count) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
result = str(model.all.value())
"""
    assert told(server, code) == "4000.0"
    assert values(server)['requests{model="obey"}'] == "4000"
    server.stop()
