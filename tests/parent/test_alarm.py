"""An alarm that is more exact than the clock of the loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns
from typing import List

import pytest
from stublet.parent.scheduling.alarm import Alarm

MILLI = 10**6


async def rung(*delays: int, elsewhere: bool = False) -> List[int]:
    """When it rang, in ns from the setting; it was set to these times."""
    rings: List[int] = []
    enough = asyncio.Event()

    def ring() -> None:
        rings.append(perf_counter_ns() - start)
        enough.set()

    alarm = Alarm(ring)
    start = perf_counter_ns()
    for delay in delays:
        if elsewhere:
            with ThreadPoolExecutor(1) as pool:
                await asyncio.wrap_future(pool.submit(alarm.set, start + delay))
        else:
            alarm.set(start + delay)
    await asyncio.wait_for(enough.wait(), 30)
    return rings


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("delay", [-MILLI, 0, MILLI // 10, 5 * MILLI])
def test_it_never_rings_too_early(delay: int, elsewhere: bool) -> None:
    (after,) = asyncio.run(rung(delay, elsewhere=elsewhere))
    assert after >= delay


def test_the_earliest_time_counts() -> None:
    (after,) = asyncio.run(rung(60_000 * MILLI, 3 * MILLI, 30_000 * MILLI))
    assert 3 * MILLI <= after < 20_000 * MILLI


def test_it_can_be_set_again_when_it_has_rung() -> None:
    async def twice() -> int:
        count = 0
        done = asyncio.Event()

        def ring() -> None:
            nonlocal count
            count += 1
            if count == 2:
                done.set()
            else:
                alarm.set(perf_counter_ns() + MILLI)

        alarm = Alarm(ring)
        alarm.set(perf_counter_ns() + MILLI)
        await asyncio.wait_for(done.wait(), 30)
        return count

    assert asyncio.run(twice()) == 2
