"""Requests with shared memory of clients."""

from __future__ import annotations

import itertools
from typing import Iterator, List, Optional, Sequence, Tuple

import pytest
from shared_memory import client_file
from stub_end import DONE, OWN, UINT8, Stub, result
from stublet.parent import errors
from stublet.parent.client_memory import ClientMemory, RegionSlice
from stublet.parent.request import Request, Response
from stublet.shm.errors import ProtocolError
from stublet.shm.message import EMPTY, FINAL, IN_REGION, RETURNED


@pytest.fixture
def registry() -> Iterator[ClientMemory]:
    """With a region "a", number 70, and a region "b", number 71."""
    with client_file(4096) as file:
        registry = ClientMemory(True, itertools.count(70).__next__, lambda ids: None)
        for name in ("a", "b"):
            registry.register_system(name, file.key, 0, 4096)
        yield registry
        registry.close()


def in_regions(
    stub: Stub, registry: ClientMemory, reads: Sequence[RegionSlice] = (), writes: Sequence[Tuple[int, RegionSlice]] = ()
) -> Request:
    request = stub.request(100)
    request.regions = registry.use(reads, writes)
    return request


def held(registry: ClientMemory) -> List[str]:
    """The regions that requests use."""
    registry.unregister_system()
    return [row["name"] for row in registry.system_status()]


A, B = RegionSlice("a", 0, 8), RegionSlice("b", 16, 8)


def test_a_stub_is_told_of_a_region_before_the_first_request_with_it(stub: Stub, registry: ClientMemory) -> None:
    stub.hand(in_regions(stub, registry, [A, A], [(1, B)]))
    assert stub.regions == [70, 71]
    stub.hand(stub.request(100), in_regions(stub, registry, [B]))
    assert stub.regions == [70, 71]
    _, requests, _ = stub.work()
    assert [request[5] for request in requests] == [(((70, 0, 8), (70, 0, 8)), ((1, 71, 16, 8),)), (), (((71, 16, 8),), ())]
    assert stub.channel.loans.forgettable([70, 99]) == {70}
    stub.hand(in_regions(stub, registry, [A]))
    assert stub.regions == [70, 71, 70], "it is told again"


def test_a_region_is_in_use_until_the_request_is_over(stub: Stub, registry: ClientMemory) -> None:
    stub.hand(in_regions(stub, registry, [A]), in_regions(stub, registry, [], [(0, B)]))
    assert held(registry) == ["a", "b"]
    stub.say(result(0, FINAL))
    assert held(registry) == ["a", "b"], "execute is not over"
    stub.say(result(0, RETURNED | EMPTY))
    assert held(registry) == ["b"]
    stub.say(result(1, error=(1, "failed")))
    assert held(registry) == []


def test_an_output_in_a_region_is_described_and_has_no_bytes(stub: Stub, registry: ClientMemory) -> None:
    stub.hand(in_regions(stub, registry, [], [(1, B)]))
    stub.own.memory[64:72] = b"response"
    outputs = [(1, UINT8.code, (2, 4), IN_REGION, 0, 8), (0, UINT8.code, (8,), 0, 0, 8)]
    stub.say((0, DONE, 5, (), [(OWN, 64)], outputs, (), ""))
    ((_, outcome, _),) = stub.settled
    assert isinstance(outcome, Response)
    there, here = outcome.plan.outputs
    assert (there.name, there.shape, there.block, there.nbytes) == ("other", (2, 4), IN_REGION, 8)
    assert (outcome.plan.nbytes, outcome.plan.extents) == (8, [8])
    assert (outcome.copy(there), outcome.copy(here)) == (b"", b"response")
    assert [view.tobytes() for view in outcome.views()] == [b"", b"response"]


@pytest.mark.parametrize("writes", [None, [], [(0, B)]], ids=["no regions", "inputs only", "another output"])
def test_an_output_in_a_region_that_the_client_did_not_name_is_refused(
    stub: Stub, registry: ClientMemory, writes: Optional[List[Tuple[int, RegionSlice]]]
) -> None:
    stub.hand(stub.request(100) if writes is None else in_regions(stub, registry, [A], writes))
    with pytest.raises(ProtocolError, match="request 0 has no region for an output that is said to be in one"):
        stub.say((0, DONE, 5, (), [(OWN, 64)], [(1, UINT8.code, (8,), IN_REGION, 0, 8)], (), ""))
    assert list(stub.channel.loans.releases) == [(OWN, 64)]


def test_at_the_end_of_a_stub_only_what_is_handed_on_uses_regions(stub: Stub, registry: ClientMemory) -> None:
    executing, next_one = in_regions(stub, registry, [A]), in_regions(stub, registry, [B])
    stub.hand(executing, next_one)
    stub.begin(executing.key)
    assert held(registry) == ["a", "b"]
    _, unstarted = stub.channel.abandon(errors.Unavailable("it died"))
    assert unstarted == [next_one] and held(registry) == ["b"]
    next_one.release()
    assert held(registry) == []
