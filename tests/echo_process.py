"""The far side of the ping-pong: sends every record back. Run as a program, with the descriptors of the channel and its bells."""

from __future__ import annotations

import os
import random
import select
import sys
from typing import Tuple

from stublet.shm.ring import CHANNEL_BYTES, Consumer, Producer, Words
from stublet.shm.segment import Segment

END = b"end"


def next_record(consumer: Consumer, bell: select.poll, spins: int, seconds: float) -> Tuple[bytes, bool]:
    """The next record, and whether this side slept for it. It looks ``spins`` times before it sleeps.

    Raises:
        TimeoutError: the bell did not ring in time.
    """
    slept = False
    for _ in range(spins):
        record = consumer.pop()
        if record is not None:
            return record, slept
    while True:
        record = consumer.pop()
        if record is not None:
            return record, slept
        if consumer.lie_down():
            slept = True
            if not bell.poll(seconds * 1000):
                raise TimeoutError(f"no bell; a record is there: {consumer.ready()}")
            consumer.stay_awake()
            consumer.silence()


def main() -> int:
    channel, down_bell, up_bell, seconds = map(int, sys.argv[1:])
    words = Words(Segment.attach(0, channel, CHANNEL_BYTES))
    words.check()
    down, up = Consumer(words, "down", down_bell), Producer(words, "up", up_bell)
    bell = select.poll()
    bell.register(down_bell, select.POLLIN)
    chance = random.Random(1)
    while True:
        record, _ = next_record(down, bell, chance.randrange(60), seconds)
        while not up.push(record):
            os.sched_yield()
        up.ring()
        if record == END:
            return 0


if __name__ == "__main__":
    sys.exit(main())
