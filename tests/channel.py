"""Channels for tests: one segment, both bells, all four ends."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple

from stublet.shm.ring import CHANNEL_BYTES, Consumer, Producer, Words
from stublet.shm.segment import Segment

DIRECTIONS = ("down", "up")


class Channel(NamedTuple):
    segment: Segment
    words: Words
    bells: Dict[str, int]
    producers: Dict[str, Producer]
    consumers: Dict[str, Consumer]


@contextmanager
def open_channel() -> Iterator[Channel]:
    """A formatted channel whose four ends are all in this process."""
    segment = Segment.create(0, CHANNEL_BYTES)
    bells = {direction: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for direction in DIRECTIONS}
    try:
        words = Words(segment)
        words.format()
        yield Channel(
            segment,
            words,
            bells,
            {direction: Producer(words, direction, bells[direction]) for direction in DIRECTIONS},
            {direction: Consumer(words, direction, bells[direction]) for direction in DIRECTIONS},
        )
    finally:
        segment.close()
        for bell in bells.values():
            os.close(bell)
