"""Handles of the metrics that models make: whose they are, how many there may be, and stubs that lie about them."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
from custom_metrics import exposed, made, refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from stublet.parent.metrics import custom
from stublet.parent.metrics.custom import COUNTER, GAUGE, HISTOGRAM, CustomMetricError, CustomMetrics


@pytest.fixture
def metrics() -> CustomMetrics:
    return CustomMetrics()


def test_a_handle_belongs_to_its_owner(metrics: CustomMetrics) -> None:
    family = metrics.family("a", "requests", "", GAUGE)
    metric = metrics.metric("a", family, {}, None)
    metrics.family("b", "other", "", GAUGE)
    for owner in ("b", "c"):
        for operation, arguments in (("drop_family", []), ("metric", [{}, None])):
            with refused(f"there is no metric family {family}"):
                getattr(metrics, operation)(owner, family, *arguments)
        for operation, arguments in (("set", [1]), ("increment", [1]), ("observe", [1]), ("value", []), ("drop_metric", [])):
            with refused(f"there is no metric {metric}"):
                getattr(metrics, operation)(owner, metric, *arguments)
    assert metrics.value("a", metric) == 0


def test_a_handle_is_dropped_once(metrics: CustomMetrics) -> None:
    family = metrics.family("a", "requests", "", GAUGE)
    metric = metrics.metric("a", family, {}, None)
    metrics.drop_metric("a", metric)
    with refused(f"there is no metric {metric}"):
        metrics.drop_metric("a", metric)
    metrics.drop_family("a", family)
    with refused(f"there is no metric family {family}"):
        metrics.drop_family("a", family)


def test_there_is_an_end_to_handles(metrics: CustomMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom, "_MOST_HANDLES", 3)
    family = metrics.family("a", "requests", "", GAUGE)
    handles = [metrics.metric("a", family, {"x": value}, None) for value in ("1", "2")]
    for refuse in (lambda: metrics.metric("a", family, {"x": "3"}, None), lambda: metrics.family("a", "more", "", GAUGE)):
        with refused("there are 3 metrics already; delete those that are no longer used"):
            refuse()
    assert len(exposed(metrics)["requests"]) == 2 and len(list(metrics.collect())) == 1
    metrics.family("b", "more", "", GAUGE)
    metrics.drop_metric("a", handles[0])
    metrics.metric("a", family, {"x": "3"}, None)


def test_there_is_an_end_to_labels(metrics: CustomMetrics) -> None:
    family = metrics.family("a", "requests", "", GAUGE)
    with refused("more than 1000 labels"):
        metrics.metric("a", family, {f"x{n}": "" for n in range(1001)}, None)


@pytest.mark.parametrize(
    "what, shown, arguments",
    [
        ("metric.drop", "'metric.drop'", [1]),
        ("family", "'family'", ["x", "", 0]),
        ("metric.family", "'metric.family'", ["x", ""]),
        ("metric.value", "'metric.value'", []),
        ("metric.value", "'metric.value'", [1, 2]),
        (7, "7", []),
        (None, "of type NoneType", []),
        ([], "of type list", []),
    ],
)
def test_what_is_no_operation(metrics: CustomMetrics, what: Any, shown: str, arguments: List[Any]) -> None:
    with refused(f"there is no metric operation {shown} with {len(arguments)} arguments"):
        metrics.perform("a", what, arguments)


def test_operations_by_name(metrics: CustomMetrics) -> None:
    family = metrics.perform("a", "metric.family", ["requests", "how many", GAUGE])
    metric = metrics.perform("a", "metric.metric", (family, {"x": "1"}, None))
    metrics.perform("a", "metric.set", (metric, 2.0))
    metrics.perform("a", "metric.increment", (metric, 0.5))
    assert metrics.perform("a", "metric.value", (metric,)) == 2.5
    with pytest.raises(CustomMetricError):
        metrics.perform("a", "metric.observe", (metric, 1.0))
    metrics.perform("a", "metric.drop_metric", (metric,))
    metrics.perform("a", "metric.drop_family", (family,))
    assert not list(metrics.collect())


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(4400, 5000).map(lambda digits: 10**digits)
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.integers(1, 3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=4,
)
OPERATION = st.sampled_from(
    [f"metric.{name}" for name in ("family", "metric", "value", "increment", "set", "observe", "drop_family", "drop_metric")]
)


@given(st.lists(st.tuples(OPERATION | ANYTHING, st.lists(ANYTHING, max_size=4)), max_size=10))
def test_anything_is_done_or_refused(orders: List[Tuple[Any, List[Any]]]) -> None:
    metrics = CustomMetrics()
    made(metrics, HISTOGRAM, "a")
    for what, arguments in orders:
        try:
            metrics.perform("a", what, arguments)
        except CustomMetricError as error:
            assert str(error).encode()
    list(metrics.collect())
    metrics.release("a")
    assert not list(metrics.collect())


class Handles(RuleBasedStateMachine):
    """Three stubs make, use and drop handles at random; a plain count of what each holds says what must be exposed."""

    families = Bundle("families")
    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.metrics = CustomMetrics()
        self.held: Dict[int, Tuple[str, str]] = {}  # families: owner, name
        self.stands: Dict[int, Tuple[int, str]] = {}  # metrics: family, label
        self.sums: Dict[Tuple[str, str], float] = {}

    @rule(target=families, owner=st.sampled_from("abc"), name=st.sampled_from("xy"))
    def make_family(self, owner: str, name: str) -> int:
        number = self.metrics.family(owner, name, "", COUNTER)
        self.held[number] = owner, name
        return number

    @rule(target=handles, family=families, label=st.sampled_from("pq"))
    def make_metric(self, family: int, label: str) -> int:
        if family not in self.held:
            return 0
        number = self.metrics.metric(self.held[family][0], family, {"label": label}, None)
        self.stands[number] = family, label
        self.sums.setdefault((self.held[family][1], label), 0.0)
        return number

    @rule(metric=handles, amount=st.integers(0, 9))
    def increment(self, metric: int, amount: int) -> None:
        if metric in self.stands:
            family, label = self.stands[metric]
            owner, name = self.held[family]
            self.metrics.increment(owner, metric, amount)
            self.sums[name, label] += amount

    @rule(metric=consumes(handles))
    def drop_metric(self, metric: int) -> None:
        if metric in self.stands:
            self.metrics.drop_metric(self.held[self.stands.pop(metric)[0]][0], metric)
            self.forget()

    @rule(family=consumes(families))
    def drop_family(self, family: int) -> None:
        if family in self.held:
            self.metrics.drop_family(self.held[family][0], family)
            self.gone([family])

    @rule(owner=st.sampled_from("abc"))
    def end(self, owner: str) -> None:
        self.metrics.release(owner)
        self.gone([family for family, (holder, _) in self.held.items() if holder == owner])

    def gone(self, families: List[int]) -> None:
        for family in families:
            del self.held[family]
        self.stands = {metric: at for metric, at in self.stands.items() if at[0] in self.held}
        self.forget()

    def forget(self) -> None:
        live = {(self.held[family][1], label) for family, label in self.stands.values()}
        self.sums = {series: value for series, value in self.sums.items() if series in live}

    @invariant()
    def what_is_held_is_exposed(self) -> None:
        assert {family.name for family in self.metrics.collect()} == {name for _, name in self.held.values()}
        found = exposed(self.metrics)
        assert {(name, labels[0][1]): value for name, lines in found.items() for labels, value in lines.items()} == self.sums


TestHandles = Handles.TestCase
