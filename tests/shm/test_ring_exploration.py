"""The real ring and the real doorbell in every order of their loads and stores: no record is lost, changed or early, and nobody oversleeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable, Hashable, List, Tuple

import pytest
from exploration import Machine, Program, Stuck, explore
from stublet.shm import ring
from stublet.shm.errors import ProtocolError
from stublet.shm.ring import Consumer, Producer

BELL = "bell"

Consume = Callable[[Machine, Consumer], None]

Setting = Callable[[], Tuple[Machine, List[Program]]]

ORDERS = pytest.mark.parametrize("weak", [False, True], ids=["strong", "weak"])


class _Words:
    """The channel's memory as ``Words`` shows it, each access a step."""

    def __init__(self) -> None:
        self.machine: Any = None

    @property
    def view(self) -> _Words:
        return self

    @property
    def memory(self) -> _Bytes:
        return _Bytes(self)

    def __getitem__(self, word: int) -> Any:
        return self.machine.load(word)

    def __setitem__(self, word: int, value: int) -> None:
        self.machine.store(word, value)


class _Bytes:
    def __init__(self, words: _Words) -> None:
        self._words = words

    def __getitem__(self, place: slice) -> Any:
        return self._words.machine.load(("bytes", place.start))

    def __setitem__(self, place: slice, record: bytes) -> None:
        self._words.machine.store(("bytes", place.start), record)


def records() -> int:
    return ring.SLOTS + 1


def record(number: int) -> bytes:
    return b"%d" % number


def setting(weak: bool, consume: Consume, patch: pytest.MonkeyPatch) -> Setting:
    """A producer that rings after each record, and a consumer; one record more than slots, so that every slot comes round. One machine
    runs at a time."""
    words: Any = _Words()
    bell = SimpleNamespace(write=lambda *_: words.machine.ring(BELL), read=lambda *_: words.machine.silence(BELL))
    patch.setattr(ring, "os", bell)
    patch.setattr(ring, "fence", lambda: words.machine.fence())
    patch.setattr(ring, "WEAKLY_ORDERED", weak)

    def make() -> Tuple[Machine, List[Program]]:
        producer, consumer = Producer(words, "down", 0), Consumer(words, "down", 0)

        def state() -> Hashable:
            return producer._produced, producer._consumed, consumer._consumed

        machine = words.machine = Machine(weak, state)
        return machine, [lambda: produce(machine, producer), lambda: consume(machine, consumer)]

    return make


def produce(machine: Machine, producer: Producer) -> None:
    for number in range(records()):
        while not producer.push(record(number)):
            machine.wait_for_change(ring.CONSUMED["down"] // 8, producer._consumed)
        producer.ring()


def take(consumer: Consumer, taken: int) -> int:
    while (found := consumer.pop()) is not None:
        assert found == record(taken), "a record is lost, or overwritten"
        taken += 1
    return taken


def sleep_between(machine: Machine, consumer: Consumer) -> None:
    """As the stub does: takes everything, sleeps, empties the bell."""
    taken = take(consumer, 0)
    while taken < records():
        if consumer.lie_down():
            machine.sleep(BELL)
            consumer.stay_awake()
            consumer.silence()
        taken = take(consumer, taken)


def rely_on_the_bell(machine: Machine, consumer: Consumer) -> None:
    """As the parent's event loop does: awake by the bell only, unless more has come meanwhile."""
    taken = 0
    while not consumer.lie_down():
        taken = take(consumer, taken)
    while taken < records():
        machine.sleep(BELL)
        consumer.silence()
        taken = take(consumer, taken)
        while not consumer.lie_down():
            taken = take(consumer, taken)


@pytest.fixture(params=[1, 2], ids=["1 slot", "2 slots"], autouse=True)
def _few_slots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "SLOTS", request.param)


CONSUMERS = pytest.mark.parametrize("consume", [sleep_between, rely_on_the_bell])


@ORDERS
@CONSUMERS
def test_every_record_arrives_and_nobody_oversleeps(weak: bool, consume: Consume, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explore(setting(weak, consume, monkeypatch)) > 200


@ORDERS
@CONSUMERS
def test_without_the_fences_of_the_doorbell_both_sides_can_miss(weak: bool, consume: Consume, monkeypatch: pytest.MonkeyPatch) -> None:
    unfenced = setting(weak, consume, monkeypatch)
    monkeypatch.setattr(ring, "fence", lambda: None)
    with pytest.raises((Stuck, AssertionError, ProtocolError)):
        explore(unfenced)


@CONSUMERS
def test_where_loads_and_stores_reorder_a_record_needs_its_own_fences(consume: Consume, monkeypatch: pytest.MonkeyPatch) -> None:
    unfenced = setting(True, consume, monkeypatch)
    monkeypatch.setattr(ring, "WEAKLY_ORDERED", False)
    with pytest.raises((AssertionError, ProtocolError)):
        explore(unfenced)


@ORDERS
def test_a_producer_that_does_not_look_at_what_was_taken_overwrites(weak: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Producer, "_refresh", lambda self: self._produced)
    with pytest.raises((Stuck, AssertionError, ProtocolError)):
        explore(setting(weak, sleep_between, monkeypatch))
