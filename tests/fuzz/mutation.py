"""Mutations of a corpus, the same ones every time: for tests, which have no coverage to be guided by."""

from __future__ import annotations

from random import Random
from typing import Iterator, Sequence

_LONGEST = 4096
_INTERESTING = [
    b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b" ", b"-1", b"0", b"1e999", b"\xed\xa0\x80", b"\xc3", b"\xef\xbb\xbf", b"9" * 30,
    *[number.to_bytes(8, "little") for number in (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)],
    *[number.to_bytes(4, "little") for number in (0, 1, 2**31 - 1, 2**32 - 1)],
]  # fmt: skip


def mutations(corpus: Sequence[bytes], tokens: Sequence[bytes], count: int, seed: str) -> Iterator[bytes]:
    """So many inputs, each made of one of the corpus by a few changes."""
    random = Random(seed)
    pieces = [*_INTERESTING, *tokens]
    for _ in range(count):
        data = bytearray(random.choice(corpus))
        for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
            _change(data, random, corpus, pieces)
        yield bytes(data[:_LONGEST])


def _change(data: bytearray, random: Random, corpus: Sequence[bytes], pieces: Sequence[bytes]) -> None:
    start, stop = sorted(random.randint(0, len(data)) for _ in range(2))
    near = min(start + random.randint(0, 8), len(data))
    kind = random.randrange(8)
    if kind == 0 and data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == 1 and data:
        data[random.randrange(len(data))] = random.randrange(256)
    elif kind == 2:
        data[start:start] = random.choice(pieces)
    elif kind == 3:
        data[start:near] = random.choice(pieces)
    elif kind == 4:
        del data[start:near]
    elif kind == 5:
        data[stop:stop] = data[start:stop] * random.choice((1, 1, 2, 20))
    elif kind == 6:
        del data[start:]
    else:
        other = random.choice(corpus)
        begin = random.randint(0, len(other))
        data[start:stop] = other[begin : begin + random.randint(0, 64)]
