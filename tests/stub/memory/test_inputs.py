"""Inputs are views of their request's block, which goes back when the last of them is gone."""

from __future__ import annotations

import gc
import threading
from typing import Any, Callable, List, Tuple

import numpy as np
import pytest
from stub_runtime import FOREIGN, REQUESTS, SEGMENT_BYTES, Memory
from stub_tensors import BORROWED, LARGE, PAGE, SMALL, borrowed_input, request_input
from stublet.shm.errors import ProtocolError
from stublet.stub.tensor import Tensor


def test_a_segment_is_fetched_once(both: Memory) -> None:
    for offset in (0, 64, 128):
        for take in (both.memory.receive, both.memory.borrow):
            (base,) = take([(REQUESTS, offset, 64)])
            assert base.size == 64
    assert both.fetched == [REQUESTS]


@pytest.mark.parametrize(
    "location",
    [
        (REQUESTS, 0, SEGMENT_BYTES + 1),
        (REQUESTS, SEGMENT_BYTES, 1),
        (REQUESTS, SEGMENT_BYTES - BORROWED + 1, BORROWED),
        (REQUESTS, -64, 64),
        (REQUESTS, 0, -1),
        (5, 0, 1),
    ],
)
@pytest.mark.parametrize("how", ["receive", "borrow"])
def test_a_location_elsewhere_is_a_protocol_error(both: Memory, how: str, location: Tuple[int, int, int]) -> None:
    with pytest.raises(ProtocolError):
        getattr(both.memory, how)([(REQUESTS, 0, 64), location])


def test_several_blocks_of_one_request(both: Memory) -> None:
    places = [(REQUESTS, 0, SMALL), (REQUESTS, LARGE, LARGE), (REQUESTS, 4 * LARGE, 0)]
    for number, take in enumerate((both.memory.receive, both.memory.borrow)):
        both.others[REQUESTS].memory[:SEGMENT_BYTES] = bytes([number]) * SEGMENT_BYTES
        bases = take(places)
        assert [base.size for base in bases] == [SMALL, LARGE, 0]
        assert all((base == number).all() for base in bases)


@pytest.mark.parametrize("nbytes", [0, SMALL, LARGE])
def test_a_block_that_nobody_views_goes_back_with_the_reply(both: Memory, nbytes: int) -> None:
    tensor, ref = request_input(both, nbytes)
    tensor.as_numpy()
    del tensor
    assert ref() is None and not both.memory.let_go((REQUESTS, 0, nbytes), ref())
    assert not both.memory.dropped and not both.memory._homes


KEEPERS: List[Callable[[Tensor], Any]] = [
    lambda tensor: tensor,
    lambda tensor: tensor.as_numpy(),
    lambda tensor: tensor.as_numpy()[1:2],
    lambda tensor: memoryview(tensor.as_numpy()),
    lambda tensor: tensor.as_numpy().view(np.uint16).reshape(2, -1).T,
    lambda tensor: tensor.to_dlpack(),
    lambda tensor: np.from_dlpack(tensor),
    lambda tensor: Tensor("y", tensor.as_numpy()),
]


@pytest.mark.parametrize("source, nbytes", [(request_input, SMALL), (request_input, LARGE), (borrowed_input, BORROWED)])
@pytest.mark.parametrize("keep", KEEPERS)
def test_a_block_is_pinned_until_its_last_view_is_gone(both: Memory, source: Any, nbytes: int, keep: Any) -> None:
    tensor, ref = source(both, nbytes, offset=PAGE)
    key = (REQUESTS if source is request_input else FOREIGN, PAGE)
    kept = keep(tensor)
    del tensor
    assert both.memory.let_go((*key, nbytes), ref())
    gc.collect()
    assert not both.memory.dropped
    del kept
    assert list(both.memory.dropped) == [key]
    assert not both.memory._pins and not both.memory._homes


def test_the_last_view_may_go_in_another_thread(both: Memory) -> None:
    kept = [request_input(both, LARGE)]
    tensor, ref = kept[0]
    assert both.memory.let_go((REQUESTS, 0, LARGE), ref())
    del tensor, ref
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert list(both.memory.dropped) == [(REQUESTS, 0)]


def test_a_block_that_several_requests_have_is_given_back_by_each(both: Memory) -> None:
    """The same tensor may be an input of several requests of another model. What is written to one is not seen in another, and those
    beyond the fourth are copies, which need no pin."""
    block = (FOREIGN, 0, BORROWED)
    views = [borrowed_input(both, BORROWED)[0] for _ in range(5)]
    for number, view in enumerate(views):
        view.as_numpy()[:] = number
    assert all((view.as_numpy() == number).all() for number, view in enumerate(views))
    assert [both.memory.let_go(block, view._data) for view in views] == [True, True, True, True, False]
    both.memory.keep(block, views[4]._data)
    assert list(both.memory.dropped) == [(FOREIGN, 0)], "as in a response to a call, where it is given back when it has been copied"
    del view
    views.clear()
    assert list(both.memory.dropped) == [(FOREIGN, 0)] * 5
    assert (borrowed_input(both, BORROWED)[0].as_numpy() == 9).all(), "nothing that was written is left"
