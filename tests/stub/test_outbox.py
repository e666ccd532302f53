"""The outbox: any thread may write, each record arrives whole and once, and what comes at a bad moment is not lost."""

from __future__ import annotations

import json
import select
import threading
from typing import Any, Iterator, List, Tuple

import pytest
from leaks import eventually
from stub_runtime import Runtime, running
from stublet.shm.errors import OutOfSharedMemory
from stublet.shm.message import EMPTY, FINAL, INDIRECT, NEWS, RETURNED, decode_up
from stublet.shm.ring import RECORD_BYTES, SLOTS

THREADS, ROUNDS = 32, 40
SECONDS = 30.0

Row = Tuple[Any, ...]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    with running(monkeypatch) as runtime:
        yield runtime


def result(key: int, text: str = "") -> Row:
    return key, RETURNED | EMPTY, 0, (), (), (), (), text


def rung(runtime: Runtime) -> bool:
    poll = select.poll()
    poll.register(runtime.channel.bells["up"], select.POLLIN)
    return bool(poll.poll(0))


def test_a_record_has_everything_that_was_to_be_said(runtime: Runtime) -> None:
    runtime.memory.dropped.extend([(100, 0), (100, 64)])
    call = (7, 0, "model", -1, (), (), (), ("", "{}", 0, 0, 0))
    runtime.outbox.post([result(1), result(2)], [call, (3,)])
    assert runtime.records() == [(((100, 0), (100, 64)), (result(1), result(2)), (call, (3,)))]
    assert not runtime.memory.dropped
    runtime.outbox.post(())
    assert runtime.records() == [((), (), ())]


def test_who_sleeps_is_woken(runtime: Runtime) -> None:
    runtime.outbox.post([result(1)])
    assert not rung(runtime), "nobody sleeps"
    runtime.records()
    assert runtime.channel.consumers["up"].lie_down()
    runtime.outbox.post([result(2)])
    assert rung(runtime)
    runtime.channel.consumers["up"].silence()


@pytest.mark.parametrize("longer", [-100, -1, 0, 1, 100, 100_000])
def test_a_record_too_long_for_the_ring_lies_in_a_block(runtime: Runtime, longer: int) -> None:
    def parameters(length: int) -> str:
        return json.dumps({"a": "x" * (length - 9)})

    fits = RECORD_BYTES - len(runtime.outbox._pack((NEWS, [], [result(1, parameters(1000))], ()))) + 1000
    runtime.outbox.post([result(1, parameters(fits + longer))])
    record = runtime.channel.consumers["up"].pop()
    assert record is not None
    message = decode_up(record)
    assert message[0] == (INDIRECT if longer > 0 else NEWS)
    assert runtime.store.in_use() == (longer > 0)
    if longer > 0:
        _, segment, offset, nbytes = message
        message = decode_up(runtime.store.bytes_at(segment, offset, nbytes))
        runtime.memory.release([(segment, offset)])
        assert runtime.store.in_use() == 0
    assert message == (NEWS, (), (result(1, parameters(fits + longer)),), ())


def test_a_record_that_finds_no_room_is_told_and_the_next_one_arrives(runtime: Runtime) -> None:
    runtime.store.room = 0
    with pytest.raises(OutOfSharedMemory):
        runtime.outbox.post([result(1, "x" * 10_000)])
    runtime.outbox.post([result(2)])
    assert runtime.results() == [result(2)]


def test_a_release_is_not_lost_when_there_is_no_room(runtime: Runtime) -> None:
    """The server would keep the block for ever."""
    runtime.store.room = 0
    runtime.memory.dropped.append((100, 0))
    with pytest.raises(OutOfSharedMemory):
        runtime.outbox.post([result(1, "x" * 10_000)])
    runtime.outbox.post(())
    assert runtime.records() == [(((100, 0),), (), ())]


def test_a_full_ring_is_waited_for(runtime: Runtime) -> None:
    for key in range(SLOTS):
        runtime.outbox.post([result(key)])
    runtime.channel.consumers["up"].lie_down()
    runtime.channel.consumers["up"]._words[runtime.channel.consumers["up"]._asleep] = 1
    writer = threading.Thread(target=lambda: runtime.outbox.post([result(SLOTS)]))
    writer.start()
    assert eventually(lambda: rung(runtime)), "the server is woken, should it sleep"
    assert writer.is_alive()
    runtime.channel.consumers["up"].silence()
    assert runtime.channel.consumers["up"].pop() is not None
    writer.join(SECONDS)
    assert not writer.is_alive()
    assert [key for key, *_ in runtime.results()] == list(range(1, SLOTS + 1))


def test_thirty_two_threads_write_at_once(runtime: Runtime) -> None:
    """More than the ring holds; some of it too long for a slot, some with blocks to be given back."""
    ended = threading.Event()
    found: List[Row] = []

    def server() -> None:
        while not ended.is_set() or runtime.channel.consumers["up"].ready():
            for releases, results, calls in runtime.records():
                found.extend([("release", key) for key in releases] + [("result", r[0]) for r in results] + [("call", c[0]) for c in calls])

    def work(number: int) -> None:
        for round_ in range(ROUNDS):
            key = number * ROUNDS + round_
            kind = round_ % 4
            if kind == 0:
                runtime.outbox.post([result(key)], [(key,)])
            elif kind == 1:
                runtime.outbox.post_late(result(key))
            elif kind == 2:
                runtime.memory.dropped.append((100, key))
                runtime.outbox.post([result(key, json.dumps({"a": "x" * 5000}) if round_ % 8 == 2 else "")])
            else:
                with runtime.outbox.lock:
                    runtime.outbox.write([result(key)])
                runtime.outbox.sweep()

    runtime.store.room = 64 << 20
    reader = threading.Thread(target=server)
    reader.start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    ended.set()
    reader.join(SECONDS)
    assert not reader.is_alive() and not any(thread.is_alive() for thread in threads)
    keys = range(THREADS * ROUNDS)
    assert sorted(key for kind, key in found if kind == "result") == list(keys)
    assert sorted(key for kind, key in found if kind == "call") == [key for key in keys if key % ROUNDS % 4 == 0]
    assert sorted(key for kind, key in found if kind == "release") == [(100, key) for key in keys if key % ROUNDS % 4 == 2]
    for number in range(THREADS):
        own = [key for kind, key in found if kind == "result" and key // ROUNDS == number and key % 4 in (0, 2, 3)]
        assert own == sorted(own), "what one thread says stays in order"


def test_what_the_collector_says_waits_for_the_lock(runtime: Runtime) -> None:
    with runtime.outbox.lock:
        runtime.outbox.post_late(result(1))
        runtime.outbox.post_late(result(2))
        assert runtime.records() == []
    runtime.outbox.sweep()
    assert runtime.records() == [((), (result(1), result(2)), ())]
    runtime.outbox.post_late(result(3))
    assert runtime.results() == [result(3)], "at once, when nobody holds it"


def test_what_the_collector_says_while_a_thread_writes_is_written_by_that_thread(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = runtime.outbox._pack

    def collect_and_pack(message: Any) -> bytes:
        runtime.outbox._pack = pack
        runtime.outbox.post_late(result(1))
        return pack(message)

    runtime.outbox._pack = collect_and_pack
    runtime.outbox.post([result(0)])
    assert runtime.results() == [result(0), result(1)]


def test_it_is_written_also_when_the_thread_fails(runtime: Runtime) -> None:
    """Nobody else may come for a long time."""
    runtime.store.room = 0
    pack = runtime.outbox._pack

    def collect_and_pack(message: Any) -> bytes:
        runtime.outbox._pack = pack
        runtime.outbox.post_late(result(1))
        return pack(message)

    runtime.outbox._pack = collect_and_pack
    with pytest.raises(OutOfSharedMemory):
        runtime.outbox.post([result(0, "x" * 10_000)])
    assert runtime.results() == [result(1)]


def test_nothing_is_written_after_the_end(runtime: Runtime) -> None:
    runtime.outbox.closed = True
    runtime.outbox.post([result(1)])
    runtime.outbox.post_late(result(2))
    assert runtime.records() == []


def test_a_forked_process_writes_nothing_and_waits_for_nobody(runtime: Runtime) -> None:
    with runtime.outbox.lock:
        runtime.outbox.forked()
        runtime.outbox.post([(1, FINAL, 0, (), (), (), (), "")])
    assert runtime.records() == []
