"""The two rings between a parent and a stub, and their doorbells.

Both lie in one segment of 4,096 + 2 * 64 * 4,096 + 2 * 16,384 bytes, the channel. "down" is parent to stub, "up" is stub to parent:

    offset  bytes  word                 written by
    0       8      magic and version    parent, before the stub starts
    64      8      down: consumed       stub      records taken so far
    128     8      down: asleep         stub 1, parent 0
    192     8      up: consumed         parent
    256     8      up: asleep           parent 1, stub 0
    320     8      started              stub      key of the last request whose execute has begun, plus one
    384     8      verbose              parent    1 when lines of level VERBOSE are wanted
    448     8      core                 parent    the core from which it last wrote to the stub, plus one; 0 when that is not known
    4096    64 * 4096                   down: slots, written by the parent
    266240  64 * 4096                   up: slots, written by the stub
    528384  16384                       cancelled: a byte for each open request, at its key modulo 16,384; 1 when nobody wants its
                                        answer any more. Written by the parent, which gives no two open requests the same byte
    544768  16384                       held: a byte for each open request, at the same place; 1 while so many responses wait for its client
                                        that no more should be sent. Written by the parent

    slot:   0      8      sequence      producer, last: n + 1 when the slot holds record n
            8      8      length        producer
            16     4080   record        producer

A slot's life: FREE -> WRITING (producer) -> FULL -> READING (consumer) -> FREE. Only the side in brackets may touch the bytes.
The sequence word is stored after the record, so a consumer that sees n + 1 also sees record n (x86-TSO; elsewhere a fence
stands between the two stores, and between the two loads). A slot is free again once "consumed" has passed it. Each word that
one side writes has a cache line of its own, and is stored whole: through a ``memoryview`` of format Q, never by
``struct.pack_into``, which zeroes the field first.

The doorbell: before it sleeps, the consumer stores asleep = 1, passes a full fence and looks at the ring once more. The producer,
after a record, passes a full fence and looks at asleep. Either the producer sees the sleeper or the consumer sees the record;
without the fences both can miss.
"""

from __future__ import annotations

import os
from typing import Optional, Tuple

from .cores import current_core
from .errors import ProtocolError
from .fence import WEAKLY_ORDERED, fence
from .segment import Segment

SLOTS = 64
SLOT_BYTES = 4096
HEADER_BYTES = 4096
MAGIC = 0x7374_7562_6C65_7401
CONSUMED = {"down": 64, "up": 192}
ASLEEP = {"down": 128, "up": 256}
STARTED = 320
VERBOSE = 384
CORE = 448
FIRST_SLOT = {"down": HEADER_BYTES, "up": HEADER_BYTES + SLOTS * SLOT_BYTES}
CANCELLED = HEADER_BYTES + 2 * SLOTS * SLOT_BYTES
OPEN_REQUESTS = 16384
"""How many requests of one stub may be open at a time; a power of two."""
HELD = CANCELLED + OPEN_REQUESTS
CHANNEL_BYTES = HELD + OPEN_REQUESTS

_PREFIX = 16
RECORD_BYTES = SLOT_BYTES - _PREFIX
"""The longest record that fits a slot."""

_ONE = (1).to_bytes(8, "little")


class Words:
    """The channel as 64-bit words, by byte offset / 8. Loads and stores of one are single instructions."""

    __slots__ = ("cancelled", "held", "memory", "view")

    def __init__(self, segment: Segment) -> None:
        if segment.size < CHANNEL_BYTES:
            raise ProtocolError(f"a channel has {CHANNEL_BYTES} bytes, segment {segment.id} has {segment.size}")
        self.memory = segment.memory
        self.view = memoryview(segment.memory).cast("Q")
        self.cancelled = memoryview(segment.memory)[CANCELLED : CANCELLED + OPEN_REQUESTS]
        self.held = memoryview(segment.memory)[HELD : HELD + OPEN_REQUESTS]

    def format(self) -> None:
        """Writes the magic word (parent, before the stub starts)."""
        self.view[0] = MAGIC

    def check(self) -> None:
        """Raises ProtocolError unless the other side formatted this channel in the layout above."""
        if self.view[0] != MAGIC:
            raise ProtocolError(f"the channel begins with {self.view[0]:#x} instead of {MAGIC:#x}")

    @property
    def started(self) -> int:
        """Requests with a key below this one have begun to be executed."""
        return self.view[STARTED // 8]

    @property
    def verbose(self) -> bool:
        """Whether the log takes lines of level VERBOSE."""
        return self.view[VERBOSE // 8] != 0

    @verbose.setter
    def verbose(self, wanted: bool) -> None:
        self.view[VERBOSE // 8] = int(wanted)

    def note_core(self) -> None:
        """This thread is the parent's, and writes to the stub."""
        self.view[CORE // 8] = current_core() + 1

    def shares_core(self) -> bool:
        """Whether this thread runs where the parent last wrote from."""
        return current_core() + 1 == self.view[CORE // 8] != 0


class _End:
    """One end of one ring: "down" or "up", with the descriptor of its bell."""

    __slots__ = ("_asleep", "_bell", "_consumed", "_consumed_word", "_first", "_memory", "_words")

    def __init__(self, words: Words, direction: str, bell: int) -> None:
        self._memory = words.memory
        self._words = words.view
        self._first = FIRST_SLOT[direction]
        self._consumed_word = CONSUMED[direction] // 8
        self._asleep = ASLEEP[direction] // 8
        self._bell = bell
        self._consumed = 0


class Producer(_End):
    """The writing end of one ring."""

    __slots__ = ("_produced",)

    def __init__(self, words: Words, direction: str, bell: int) -> None:
        super().__init__(words, direction, bell)
        self._produced = 0

    def push(self, record: bytes) -> bool:
        """Writes one record of at most RECORD_BYTES bytes; False when every slot is taken.

        Raises:
            ProtocolError: the other side claims to have taken more records than there were.
            ValueError: the record is too long.
        """
        length = len(record)
        if length > RECORD_BYTES:
            raise ValueError(f"a record has at most {RECORD_BYTES} bytes, this one has {length}")
        n = self._produced
        if n - self._consumed >= SLOTS and n - self._refresh() >= SLOTS:
            return False
        slot = self._first + n % SLOTS * SLOT_BYTES
        self._memory[slot + _PREFIX : slot + _PREFIX + length] = record
        self._words[(slot >> 3) + 1] = length
        if WEAKLY_ORDERED:
            fence()
        self._words[slot >> 3] = n + 1
        self._produced = n + 1
        return True

    def ring(self) -> None:
        """Wakes the consumer if it said that it sleeps. Call after the last ``push`` of a turn."""
        fence()
        if self._words[self._asleep]:
            self._words[self._asleep] = 0
            os.write(self._bell, _ONE)

    def _refresh(self) -> int:
        consumed = self._words[self._consumed_word]
        if not self._consumed <= consumed <= self._produced:
            raise ProtocolError(f"{consumed} records are said to be taken, of {self._produced}")
        self._consumed = consumed
        return consumed


class Consumer(_End):
    """The reading end of one ring."""

    __slots__ = ()

    def ready(self) -> bool:
        """Whether a record is there."""
        n = self._consumed
        return self._words[(self._first + n % SLOTS * SLOT_BYTES) >> 3] == n + 1

    def awaited(self) -> Tuple[memoryview, int, int]:
        """What ``ready`` looks at, for who looks often: the words, which of them, and what it is when the next record is there."""
        n = self._consumed
        return self._words, (self._first + n % SLOTS * SLOT_BYTES) >> 3, n + 1

    def pop(self) -> Optional[bytes]:
        """The next record, or None.

        Raises:
            ProtocolError: the slot's words are not what a producer may write.
        """
        n = self._consumed
        slot = self._first + n % SLOTS * SLOT_BYTES
        sequence = self._words[slot >> 3]
        if sequence != n + 1:
            if sequence != max(n + 1 - SLOTS, 0):
                raise ProtocolError(f"slot {n % SLOTS} holds record {sequence - 1} where {n} was due")
            return None
        if WEAKLY_ORDERED:
            fence()
        length = self._words[(slot >> 3) + 1]
        if length > RECORD_BYTES:
            raise ProtocolError(f"a record of {length} bytes is announced in a slot of {RECORD_BYTES}")
        record = self._memory[slot + _PREFIX : slot + _PREFIX + length]
        self._consumed = n + 1
        self._words[self._consumed_word] = n + 1
        return record

    def lie_down(self) -> bool:
        """Says that this side is about to sleep; False (and awake again) when a record came meanwhile."""
        self._words[self._asleep] = 1
        fence()
        if self.ready():
            self._words[self._asleep] = 0
            return False
        return True

    def stay_awake(self) -> None:
        """Says that this side polls: no bell is needed."""
        self._words[self._asleep] = 0

    def silence(self) -> None:
        """Empties the bell (its descriptor does not block)."""
        try:
            os.read(self._bell, 8)
        except BlockingIOError:
            # Rung for a sleeper that found the record by itself.
            return
