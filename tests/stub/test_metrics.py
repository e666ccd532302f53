"""``pb_utils.MetricFamily`` and its metrics: spec 1.11, row by row; and what they tell the server."""

from __future__ import annotations

import gc
import math
import threading
from contextlib import contextmanager
from typing import Any, Iterator, List, Tuple

import numpy as np
import pytest
from stublet.stub.error import TritonModelException
from stublet.stub.host import Host, host
from stublet.stub.metrics import MetricFamily, MetricKind

KINDS = list(MetricKind)
GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should be deleted AFTER "
    "its corresponding 'Metric' objects have been deleted."
)
REFUSED = "Failed to process the request for model 'model_0_0', message: "


class Server:
    """Answers like one, and writes down what it was asked and told."""

    def __init__(self) -> None:
        self.asked: List[Tuple[Any, ...]] = []
        self.told: List[Tuple[Any, ...]] = []
        self.refusal = ""

    def ask(self, *question: Any) -> Any:
        if self.refusal:
            raise TritonModelException(self.refusal)
        self.asked.append(question)
        return len(self.asked)

    def tell(self, *order: Any) -> None:
        self.told.append(order)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(host, "ask", server.ask)
    monkeypatch.setattr(host, "tell", server.tell)
    monkeypatch.setattr(host, "instance", "model_0_0")
    return server


@pytest.fixture
def standalone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a server, in which nobody has made a metric."""
    fresh = Host()
    monkeypatch.setattr(host, "ask", fresh.ask)
    monkeypatch.setattr(host, "tell", fresh.tell)


def family(kind: MetricKind = MetricFamily.COUNTER, name: str = "requests") -> MetricFamily:
    return MetricFamily(name=name, description="how many", kind=kind)


@contextmanager
def refused(text: str) -> Iterator[None]:
    with pytest.raises(TritonModelException) as raised:
        yield
    assert str(raised.value) == text


# ---- families ----


def test_kinds_and_their_numbers() -> None:
    assert (MetricFamily.COUNTER, MetricFamily.GAUGE, MetricFamily.HISTOGRAM) == (0, 1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_is_asked_for(server: Server, kind: MetricKind) -> None:
    families = [MetricFamily("requests", "how many", kind), MetricFamily(name="requests", description="how many", kind=kind)]
    assert server.asked == [("metric.family", "requests", "how many", int(kind))] * 2
    assert type(server.asked[0][3]) is int
    assert not server.told
    families.pop()
    assert server.told == [("metric.drop_family", 2)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": None},
        {"name": 5},
        {"description": None},
        {"description": b"x"},
        {"kind": None},
        {"kind": 0},
        {"kind": "COUNTER"},
    ],
)
def test_a_family_of_wrong_types_is_a_type_error(server: Server, arguments: Any) -> None:
    with pytest.raises(TypeError, match=f"^MetricFamily: {next(iter(arguments))} must be"):
        MetricFamily(**{"name": "requests", "description": "how many", "kind": MetricFamily.GAUGE, **arguments})
    assert not server.asked


@pytest.mark.parametrize("missing", ["name", "description", "kind"])
def test_a_missing_argument_is_a_type_error(server: Server, missing: str) -> None:
    arguments: Any = {"name": "requests", "description": "how many", "kind": MetricFamily.GAUGE}
    del arguments[missing]
    with pytest.raises(TypeError, match=missing):
        MetricFamily(**arguments)


def test_what_the_server_refuses_is_told(server: Server) -> None:
    made = family()
    server.refusal = "Family name already exists with different type"
    with refused(f"Error when creating MetricFamily: {REFUSED}Family name already exists with different type"):
        family(MetricFamily.GAUGE)
    server.refusal = "Invalid label name"
    with refused(f"Error when creating Metric: {REFUSED}Invalid label name"):
        made.Metric({"a b": "c"})
    gc.collect()
    assert not server.told


# ---- making metrics ----


@pytest.mark.parametrize(
    "kind, buckets", [(MetricFamily.COUNTER, None), (MetricFamily.GAUGE, None), (MetricFamily.HISTOGRAM, [0.1, 1, 2.5])]
)
@pytest.mark.parametrize("labels", [None, {}, {"a": "1", "b": "ü"}])
def test_a_metric_is_asked_for(server: Server, kind: MetricKind, buckets: Any, labels: Any) -> None:
    made = family(kind)
    metric = made.Metric(labels=labels, buckets=buckets)
    assert server.asked[1:] == [("metric.metric", 1, labels or {}, buckets)]
    if labels:
        assert server.asked[1][2] is not labels
    del metric
    assert server.told == [("metric.drop_metric", 2)]


@pytest.mark.parametrize(
    "given, sent", [([], []), ([math.inf], []), ([1, math.inf], [1.0]), ([-1, np.float32(0.5), np.int64(3)], [-1.0, 0.5, 3.0])]
)
def test_buckets_are_floats_without_infinity(server: Server, given: Any, sent: List[float]) -> None:
    family(MetricFamily.HISTOGRAM).Metric(buckets=given)
    assert server.asked[1][3] == sent and all(type(bound) is float for bound in server.asked[1][3])


@pytest.mark.parametrize(
    "kind, arguments, text",
    [
        (MetricFamily.COUNTER, {"labels": []}, "Failed to create metric. Labels must be a dictionary."),
        (MetricFamily.GAUGE, {"labels": "a"}, "Failed to create metric. Labels must be a dictionary."),
        (MetricFamily.COUNTER, {"buckets": (1.0,)}, "Failed to create metric. Buckets must be a list."),
        (MetricFamily.HISTOGRAM, {"buckets": {}}, "Failed to create metric. Buckets must be a list."),
        (MetricFamily.HISTOGRAM, {"buckets": np.ones(1)}, "Failed to create metric. Buckets must be a list."),
        (MetricFamily.COUNTER, {"buckets": [1.0]}, "Failed to create metric. Unexpected buckets found."),
        (MetricFamily.GAUGE, {"buckets": []}, "Failed to create metric. Unexpected buckets found."),
        (MetricFamily.HISTOGRAM, {}, "Failed to create metric. Missing required buckets."),
        (MetricFamily.HISTOGRAM, {"labels": {}, "buckets": None}, "Failed to create metric. Missing required buckets."),
        (MetricFamily.COUNTER, {"labels": {"a": 1}}, f"Error when creating Metric: {REFUSED}Labels must be strings, found 'a': 1"),
        (MetricFamily.GAUGE, {"labels": {1: "a"}}, f"Error when creating Metric: {REFUSED}Labels must be strings, found 1: 'a'"),
        *(
            (
                MetricFamily.HISTOGRAM,
                {"buckets": buckets},
                f"Error when creating Metric: {REFUSED}Bucket Boundaries must be strictly sorted",
            )
            for buckets in ([2.0, 1.0], [1.0, 1], [math.nan], [1.0, math.nan, 2.0], [math.inf, 1.0], [math.inf, math.inf])
        ),
    ],
)
def test_wrong_metrics_are_refused_without_asking(server: Server, kind: MetricKind, arguments: Any, text: str) -> None:
    made = family(kind)
    with refused(text):
        made.Metric(**arguments)
    assert len(server.asked) == 1


@pytest.mark.parametrize("bound", ["1", None, b"1", [1]])
def test_a_bucket_that_is_no_number_is_a_type_error(server: Server, bound: Any) -> None:
    with pytest.raises(TypeError, match=r"^Metric: a bucket must be a number, not "):
        family(MetricFamily.HISTOGRAM).Metric(buckets=[bound])


# ---- using metrics ----

METHODS = {"increment": (MetricFamily.COUNTER, MetricFamily.GAUGE), "set": (MetricFamily.GAUGE,), "observe": (MetricFamily.HISTOGRAM,)}


def metric(made: MetricFamily) -> Any:
    return made.Metric(buckets=[1.0]) if made._kind is MetricFamily.HISTOGRAM else made.Metric()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_operations(server: Server, method: str, kind: MetricKind) -> None:
    made = family(kind)
    used = metric(made)
    if kind in METHODS[method]:
        for value in (1.5, 2, True, np.float32(0.5), np.int8(3), 0):
            assert getattr(used, method)(value) is None
            assert server.told.pop() == (f"metric.{method}", 2, float(value))
        return
    with refused(f"Failed to {method} metric value: {REFUSED}TRITONSERVER_METRIC_KIND_{kind.name} does not support {method.capitalize()}"):
        getattr(used, method)(1.0)
    assert not server.told


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [None, "1", b"1", [1.0], np.ones(2), 1j, 10**400], ids=repr)
def test_what_is_no_number_is_a_type_error(server: Server, method: str, value: Any) -> None:
    made = family(METHODS[method][0])
    used = metric(made)
    with pytest.raises(TypeError, match=f"^Metric.{method}: the value must be a number, not {type(value).__name__}$"):
        getattr(used, method)(value)
    assert not server.told


@pytest.mark.parametrize("value", [-1, -0.5, -math.inf, math.nan])
def test_a_counter_only_counts_up(server: Server, value: float) -> None:
    made = family()
    used = made.Metric()
    text = "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
    with refused(f"Failed to increment metric value: {REFUSED}{text}"):
        used.increment(value)
    assert not server.told


@pytest.mark.parametrize("value", [-1.0, 0.0, -math.inf, math.nan])
def test_a_gauge_takes_any_number(server: Server, value: float) -> None:
    made = family(MetricFamily.GAUGE)
    used = made.Metric()
    used.set(value)
    used.increment(value)
    assert str(server.told) == str([("metric.set", 2, value), ("metric.increment", 2, value)])


@pytest.mark.parametrize("kind", [MetricFamily.COUNTER, MetricFamily.GAUGE])
def test_a_value_is_asked_for(server: Server, kind: MetricKind) -> None:
    made = family(kind)
    used = made.Metric()
    value = used.value()
    assert server.asked[-1] == ("metric.value", 2)
    assert value == 3 and type(value) is float
    server.refusal = "why not"
    with refused(f"Failed to get metric value: {REFUSED}why not"):
        used.value()


def test_a_histogram_has_no_value(server: Server) -> None:
    made = family(MetricFamily.HISTOGRAM)
    with refused(f"Failed to get metric value: {REFUSED}TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Value"):
        made.Metric(buckets=[]).value()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb, arguments", [("increment", [1]), ("set", [1]), ("observe", [1]), ("get", [])])
def test_a_metric_is_useless_without_its_family(server: Server, kind: MetricKind, verb: str, arguments: Any) -> None:
    used = metric(family(kind))
    assert server.told == [("metric.drop_family", 1)]
    with refused(f"Failed to {verb} metric value: {GONE}"):
        getattr(used, "value" if verb == "get" else verb)(*arguments)
    assert len(server.told) == 1
    del used
    gc.collect()  # the exception's frames
    assert server.told[1:] == [("metric.drop_metric", 2)]


def test_what_is_collected_in_a_cycle_is_dropped(server: Server) -> None:
    class Model:
        def __init__(self) -> None:
            self.family = family()
            self.metric = self.family.Metric()
            self.me = self

    Model()
    gc.collect()
    assert sorted(server.told) == [("metric.drop_family", 1), ("metric.drop_metric", 2)]


# ---- without a server ----


def test_metrics_count_without_a_server(standalone: None) -> None:
    counters, gauges = family(), family(MetricFamily.GAUGE, "level")
    first, second, other = counters.Metric({"a": "1", "b": "2"}), family().Metric({"b": "2", "a": "1"}), counters.Metric({"a": "1"})
    with refused(f"Failed to increment metric value: {GONE}"):
        second.increment(1)
    same = counters.Metric({"b": "2", "a": "1"})
    first.increment(1)
    same.increment(2.5)
    assert (first.value(), same.value(), other.value()) == (3.5, 3.5, 0.0)
    level = gauges.Metric()
    level.set(4)
    level.increment(-1)
    assert level.value() == 3.0
    family(MetricFamily.HISTOGRAM, "sizes").Metric(buckets=[1.0])


def test_names_and_series_end_with_their_last_handle(standalone: None) -> None:
    counters = family()
    with refused("Error when creating MetricFamily: Family name already exists with different type"):
        family(MetricFamily.GAUGE)
    gc.collect()  # the exception's frames
    counted = counters.Metric()
    counted.increment(5)
    again = counters.Metric()
    del counted
    assert again.value() == 5
    del again
    assert counters.Metric().value() == 0
    del counters
    family(MetricFamily.GAUGE)


def test_only_a_server_knows_other_models(standalone: None) -> None:
    with refused("there is no server in this process"):
        host.ask("model.ready", "model", "")


def test_threads_may_share_a_metric(standalone: None) -> None:
    counters = family()
    counter = counters.Metric()

    def count() -> None:
        for _ in range(1000):
            counter.increment(1)
            counters.Metric({"a": "b"})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value() == 4000
