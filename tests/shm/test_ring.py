"""Rings and doorbells: every record arrives once and in order, nobody oversleeps, and nothing that the other side writes is trusted."""

from __future__ import annotations

import random
import re
import select
import subprocess
import sys
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, List, Set, Tuple

import echo_process
import pytest
from channel import DIRECTIONS, Channel, open_channel
from echo_process import END, next_record
from hypothesis import given
from hypothesis import strategies as st
from stublet.shm import ring
from stublet.shm.errors import ProtocolError
from stublet.shm.ring import CHANNEL_BYTES, OPEN_REQUESTS, RECORD_BYTES, SLOT_BYTES, SLOTS, Words
from stublet.shm.segment import Segment

MESSAGES = 50_000
LOST_AFTER_SECONDS = 20

WORDS = st.integers(0, 2**64 - 1)


@pytest.fixture
def channel() -> Iterator[Channel]:
    with open_channel() as channel:
        yield channel


def rung(channel: Channel, direction: str) -> bool:
    poll = select.poll()
    poll.register(channel.bells[direction], select.POLLIN)
    return bool(poll.poll(0))


# ---- order ----


@given(
    st.lists(
        st.tuples(st.sampled_from(DIRECTIONS), st.sampled_from(["push", "pop"]), st.integers(1, 80), st.integers(0, RECORD_BYTES)),
        max_size=30,
    )
)
def test_every_record_arrives_in_order(actions: List[Tuple[str, str, int, int]]) -> None:
    with open_channel() as channel:
        due: Dict[str, Deque[bytes]] = {direction: deque() for direction in DIRECTIONS}
        pushed = 0
        for direction, action, times, size in actions:
            expected = due[direction]
            for _ in range(times):
                if action == "push":
                    pushed += 1
                    record = (b"%d %s " % (pushed, direction.encode()) * (size // 8 + 1))[:size]
                    fits = channel.producers[direction].push(record)
                    assert fits == (len(expected) < SLOTS)
                    if fits:
                        expected.append(record)
                else:
                    assert channel.consumers[direction].ready() == bool(expected)
                    assert channel.consumers[direction].pop() == (expected.popleft() if expected else None)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_full_ring_takes_another_record_once_one_was_taken(channel: Channel, direction: str) -> None:
    producer, consumer = channel.producers[direction], channel.consumers[direction]
    for _ in range(3):
        assert [producer.push(b"%d" % i) for i in range(SLOTS + 1)] == [True] * SLOTS + [False]
        assert consumer.pop() == b"0"
        assert producer.push(b"one more") and not producer.push(b"too much")
        assert [consumer.pop() for _ in range(SLOTS + 1)] == [b"%d" % i for i in range(1, SLOTS)] + [b"one more", None]


def test_the_longest_record_fits_and_a_longer_one_is_refused(channel: Channel) -> None:
    longest = bytes(range(256)) * 16
    assert channel.producers["up"].push(longest[:RECORD_BYTES])
    assert channel.consumers["up"].pop() == longest[:RECORD_BYTES]
    with pytest.raises(ValueError, match="at most 4080 bytes, this one has 4081"):
        channel.producers["up"].push(longest[: RECORD_BYTES + 1])
    assert channel.consumers["up"].pop() is None


# ---- distrust ----


def slot_word(direction: str, number: int, word: int) -> int:
    """Index of a word of a slot in the view."""
    return (ring.FIRST_SLOT[direction] + number % SLOTS * SLOT_BYTES) // 8 + word


@given(st.sampled_from(DIRECTIONS), st.integers(0, 2 * SLOTS), WORDS)
def test_any_other_sequence_is_refused(direction: str, before: int, sequence: int) -> None:
    with open_channel() as channel:
        for _ in range(before):
            channel.producers[direction].push(b"record")
            channel.consumers[direction].pop()
        assert channel.consumers[direction].pop() is None
        channel.words.view[slot_word(direction, before, 0)] = sequence
        if sequence == before + 1:
            assert channel.consumers[direction].pop() is not None
        elif sequence == max(before + 1 - SLOTS, 0):
            assert channel.consumers[direction].pop() is None
        else:
            with pytest.raises(ProtocolError, match=f"holds record .* where {before} was due"):
                channel.consumers[direction].pop()


@given(st.sampled_from(DIRECTIONS), st.one_of(st.integers(0, RECORD_BYTES + 1), WORDS))
def test_any_longer_length_is_refused(direction: str, length: int) -> None:
    with open_channel() as channel:
        channel.producers[direction].push(b"record")
        channel.words.view[slot_word(direction, 0, 1)] = length
        if length <= RECORD_BYTES:
            record = channel.consumers[direction].pop()
            assert record is not None and len(record) == length
        else:
            with pytest.raises(ProtocolError, match=f"record of {length} bytes"):
                channel.consumers[direction].pop()


@given(st.sampled_from(DIRECTIONS), st.integers(0, SLOTS), st.one_of(st.integers(0, 2 * SLOTS), WORDS))
def test_any_other_count_of_taken_records_is_refused(direction: str, taken: int, claimed: int) -> None:
    with open_channel() as channel:
        producer, consumer = channel.producers[direction], channel.consumers[direction]
        for _ in range(SLOTS):
            producer.push(b"record")
        for _ in range(taken):
            consumer.pop()
        for _ in range(taken):
            producer.push(b"record")
        assert not producer.push(b"full")
        channel.words.view[ring.CONSUMED[direction] // 8] = claimed
        if taken <= claimed <= SLOTS + taken:
            assert producer.push(b"record") == (claimed > taken)
        else:
            with pytest.raises(ProtocolError, match=f"{claimed} records are said to be taken, of {SLOTS + taken}"):
                producer.push(b"record")


@given(WORDS.filter(lambda word: word != ring.MAGIC))
def test_another_magic_word_is_refused(word: int) -> None:
    with open_channel() as channel:
        channel.words.check()
        channel.words.view[0] = word
        with pytest.raises(ProtocolError, match=f"begins with {word:#x} instead of {ring.MAGIC:#x}"):
            channel.words.check()


def test_a_channel_that_is_too_short_is_refused() -> None:
    segment = Segment.create(7, CHANNEL_BYTES - 4096)
    segment.close()
    with pytest.raises(ProtocolError, match=f"a channel has {CHANNEL_BYTES} bytes, segment 7 has {CHANNEL_BYTES - 4096}"):
        Words(segment)


# ---- the picture ----

PICTURE = {
    match["word"].removesuffix(": a byte for each open request"): (int(match["offset"]), match["bytes"], match["writer"])
    for match in re.finditer(
        r"^ +(?:slot: +)?(?P<offset>\d+) +(?P<bytes>\d+(?: \* \d+)?) +(?P<word>\w[\w: ]*?)(?:,| {2,})(?P<writer>.*)$",
        ring.__doc__ or "",
        re.MULTILINE,
    )
}


def test_the_picture_is_held_to_the_constants() -> None:
    offsets = {word: offset for word, (offset, _, _) in PICTURE.items()}
    assert offsets == {
        "magic and version": 0,
        **{f"{direction}: consumed": ring.CONSUMED[direction] for direction in DIRECTIONS},
        **{f"{direction}: asleep": ring.ASLEEP[direction] for direction in DIRECTIONS},
        "started": ring.STARTED,
        "verbose": ring.VERBOSE,
        "core": ring.CORE,
        **{f"{direction}: slots": ring.FIRST_SLOT[direction] for direction in DIRECTIONS},
        "cancelled": ring.CANCELLED,
        "held": ring.HELD,
        "sequence": 0,
        "length": 8,
        "record": SLOT_BYTES - RECORD_BYTES,
    }
    sizes = {word: size for word, (_, size, _) in PICTURE.items()}
    assert sizes.pop("down: slots") == sizes.pop("up: slots") == f"{SLOTS} * {SLOT_BYTES}"
    assert int(sizes.pop("record")) == RECORD_BYTES
    assert int(sizes.pop("cancelled")) == int(sizes.pop("held")) == OPEN_REQUESTS
    assert set(sizes.values()) == {"8"}
    assert f"one segment of {ring.HEADER_BYTES:,} + 2 * {SLOTS} * {SLOT_BYTES:,} + 2 * {OPEN_REQUESTS:,} bytes" in (ring.__doc__ or "")
    assert ring.FIRST_SLOT["up"] + SLOTS * SLOT_BYTES == ring.CANCELLED
    assert ring.CANCELLED + OPEN_REQUESTS == ring.HELD and ring.HELD + OPEN_REQUESTS == CHANNEL_BYTES
    assert OPEN_REQUESTS.bit_count() == 1 and f"at its key modulo {OPEN_REQUESTS:,}" in (ring.__doc__ or "")
    header = [offset for word, offset in offsets.items() if offset < ring.HEADER_BYTES and word not in ("sequence", "length", "record")]
    assert len({offset // 64 for offset in header}) == len(header), "words of two writers share a cache line"


def write_and_wake(channel: Channel, direction: str) -> None:
    channel.consumers[direction].lie_down()
    channel.producers[direction].push(b"record")
    channel.producers[direction].ring()


@pytest.mark.parametrize(
    "act, changed",
    [
        (lambda channel, d: channel.producers[d].push(b"record"), {"{}: slots"}),
        (lambda channel, d: channel.consumers[d].pop(), set()),
        (lambda channel, d: channel.consumers[d].lie_down(), {"{}: asleep"}),
        (lambda channel, d: (channel.producers[d].push(b""), channel.consumers[d].pop()), {"{}: slots", "{}: consumed"}),
        (write_and_wake, {"{}: slots"}),
        (lambda channel, d: setattr(channel.words, "verbose", True), {"verbose"}),
        (lambda channel, d: channel.words.cancelled.__setitem__(OPEN_REQUESTS - 1, 1), {"cancelled"}),
    ],
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_end_writes_only_what_the_picture_says(
    channel: Channel, direction: str, act: Callable[[Channel, str], Any], changed: Set[str]
) -> None:
    before = bytes(channel.segment.memory)
    act(channel, direction)
    after = bytes(channel.segment.memory)
    words = {
        name: (offset, eval(size))
        for name, (offset, size, _) in PICTURE.items()
        if ":" in name or name in ("started", "verbose", "core", "cancelled")
    }
    found = {name for name, (offset, size) in words.items() if before[offset : offset + size] != after[offset : offset + size]}
    assert found == {name.format(direction) for name in changed}


# ---- the doorbell ----


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_bell_rings_for_a_sleeper_only(channel: Channel, direction: str) -> None:
    producer, consumer = channel.producers[direction], channel.consumers[direction]
    producer.push(b"1")
    producer.ring()
    assert not rung(channel, direction), "nobody sleeps"
    assert not consumer.lie_down(), "a record is there"
    producer.ring()
    assert not rung(channel, direction), "whoever could not lie down is awake"
    consumer.pop()
    assert consumer.lie_down()
    producer.push(b"2")
    producer.ring()
    assert rung(channel, direction)
    consumer.silence()
    assert not rung(channel, direction)
    producer.ring()
    assert not rung(channel, direction), "the sleeper was woken before"
    consumer.pop()
    assert consumer.lie_down()
    consumer.stay_awake()
    producer.ring()
    assert not rung(channel, direction)
    consumer.silence()


def test_the_two_directions_have_nothing_in_common(channel: Channel) -> None:
    assert channel.consumers["down"].lie_down()
    channel.producers["up"].push(b"up")
    channel.producers["up"].ring()
    assert not rung(channel, "up") and not rung(channel, "down")
    assert channel.consumers["down"].pop() is None
    assert channel.consumers["up"].pop() == b"up"


def test_started_is_the_stubs_word(channel: Channel) -> None:
    assert channel.words.started == 0
    channel.words.view[ring.STARTED // 8] = 2**64 - 1
    assert channel.words.started == 2**64 - 1


@pytest.mark.parametrize("table, offset", [("cancelled", ring.CANCELLED), ("held", ring.HELD)])
def test_there_is_a_byte_for_each_open_request(channel: Channel, table: str, offset: int) -> None:
    flags = getattr(channel.words, table)
    assert len(flags) == OPEN_REQUESTS and not any(flags)
    flags[OPEN_REQUESTS - 1] = 1
    assert channel.segment.memory[offset + OPEN_REQUESTS - 1] == 1
    assert sum(channel.segment.memory[ring.CANCELLED : CHANNEL_BYTES]) == 1
    other = getattr(Words(channel.segment), table)
    assert other[OPEN_REQUESTS - 1] == 1 and other[0] == 0


@pytest.mark.parametrize("meanwhile", ["lie_down", "ring"])
def test_whatever_happens_at_the_fence_is_seen(channel: Channel, monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    """The fence stands between what each side says and what it looks at: the other side's whole turn may fall there."""
    producer, consumer = channel.producers["down"], channel.consumers["down"]
    turns: List[Any] = []

    def other_turn() -> None:
        if not turns:
            turns.append(None)
            turns[0] = (producer.push(b"record"), producer.ring()) if meanwhile == "lie_down" else consumer.lie_down()

    monkeypatch.setattr(ring, "fence", other_turn)
    if meanwhile == "lie_down":
        assert not consumer.lie_down() and consumer.pop() == b"record"
    else:
        producer.ring()
        assert turns == [True] and rung(channel, "down")
        consumer.silence()
    assert turns, "there was no fence"


def test_two_processes_lose_no_wake_up() -> None:
    """Both sides look a few times, a random number, and then sleep: so that one lies down just when the other one writes."""
    with open_channel() as channel:
        fds = [channel.segment.fd, channel.bells["down"], channel.bells["up"]]
        peer = subprocess.Popen(
            [sys.executable, echo_process.__file__, *map(str, fds), str(LOST_AFTER_SECONDS)],
            pass_fds=[fd for fd in fds if fd is not None],
            stderr=subprocess.PIPE,
        )
        try:
            slept = ping_pong(channel, random.Random(0))
            assert peer.wait(LOST_AFTER_SECONDS) == 0
        finally:
            peer.kill()
            _, errors = peer.communicate()
            assert not errors, errors.decode()
    assert slept, "the handshake was never put to the test"


def ping_pong(channel: Channel, chance: random.Random) -> int:
    """Sends bursts and waits for their echoes; returns how often it slept."""
    down, up = channel.producers["down"], channel.consumers["up"]
    bell = select.poll()
    bell.register(channel.bells["up"], select.POLLIN)
    sent = slept = 0
    while sent < MESSAGES:
        burst = [b"%d" % (sent + i) for i in range(chance.choice([1] * 30 + [2, 3, 70]))]
        sent += len(burst)
        echoes = []
        for record in burst:
            while not down.push(record):
                down.ring()
                echo = up.pop()
                if echo is not None:
                    echoes.append(echo)
        down.ring()
        while len(echoes) < len(burst):
            echo, waited = next_record(up, bell, chance.randrange(60), LOST_AFTER_SECONDS)
            echoes.append(echo)
            slept += waited
        assert echoes == burst
    down.push(END)
    down.ring()
    assert next_record(up, bell, 0, LOST_AFTER_SECONDS)[0] == END
    return slept
