"""The rules of sequence batching, each as a story told to a clock that only the test moves (spec 5.4)."""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, Tuple

import pytest
from stublet.parent.scheduling.scheduler import Actions, Reason
from stublet.parent.sequence.batcher import Member, SequenceBatcher, Strategy
from stublet.parent.sequence.strategies import Direct, Oldest

A, B = "instance a", "instance b"
IDLE = 1000


class Story:
    """A batcher, and what it has had done. A request is named by its sequence and its number in it, as "x1"."""

    def __init__(self, *instances: str, strategy: Strategy, iterative: bool = False, most: int = 0) -> None:
        self.members: Dict[str, Member] = {}
        self.ended: List[Hashable] = []
        self.batcher: SequenceBatcher[str, str] = SequenceBatcher(
            strategy, self.members.__getitem__, IDLE, iterative, self.ended.append, most
        )
        self.now = 0
        self.batches: List[Tuple[str, List[str]]] = []
        self.refused: List[Tuple[str, Reason]] = []
        for instance in instances:
            self.did(self.batcher.add(instance, self.now))

    def did(self, actions: Actions) -> Story:
        batches, refused = actions
        self.batches += batches
        self.refused += refused
        return self

    def come(self, *requests: str, **member: Any) -> Story:
        """Requests come at the same moment: "x1" is the START of x, "x9" its END, "x0" both."""
        for request in requests:
            self.members[request] = Member(**{
                "sequence": request[0], "start": request[1] in "01", "end": request[1] in "09", **member,
            })  # fmt: skip
            self.did(self.batcher.enqueue(request, self.now))
        if (due := self.batcher.due) is not None and due <= self.now:
            self.did(self.batcher.tick(self.now))
        return self

    def finish(self, instance: str = A) -> Story:
        return self.did(self.batcher.finished(instance, 1, self.now))

    def wait(self, ns: int) -> Story:
        """Time passes, and whoever keeps the clock wakes when it is due."""
        end = self.now + ns
        while (due := self.batcher.due) is not None and due <= end:
            self.now = max(self.now, due)
            self.did(self.batcher.tick(self.now))
            assert self.batcher.due is None or self.batcher.due > self.now, "it would have to wake at once again"
        self.now = end
        return self

    @property
    def members_of_batches(self) -> List[List[str]]:
        return [batch for _, batch in self.batches]


def direct(*instances: str, places: int = 3, **settings: Any) -> Story:
    return Story(*(instances or (A,)), strategy=Direct(places, **settings))


def oldest(*instances: str, places: int = 4, max_size: int = 2, **settings: Any) -> Story:
    return Story(*(instances or (A,)), strategy=Oldest(places, max_size, **settings))


# ---- sequences ----


def test_the_first_request_has_to_be_a_start() -> None:
    assert direct().come("x2").refused == [("x2", Reason.NO_START)]


def test_requests_of_a_sequence_are_executed_one_by_one_and_in_order() -> None:
    story = direct().come("x1", "x2", "x3", "x9")
    assert story.batches == [(A, ["x1"])]
    story.finish().finish().finish()
    assert story.members_of_batches == [["x1"], ["x2"], ["x3"], ["x9"]]


def test_after_its_end_a_sequence_is_none() -> None:
    story = direct().come("x1", "x9", "x2")
    assert story.refused == [("x2", Reason.NO_START)], "though its end is not executed yet"
    assert story.finish().ended == [] and story.finish().ended == ["x"]
    assert story.come("x3").refused[1:] == [("x3", Reason.NO_START)]


def test_one_that_begins_anew_does_so_after_what_came_before() -> None:
    story = direct().come("x1", "x9")
    story.members["x1 again"] = Member("x", start=True)
    story.did(story.batcher.enqueue("x1 again", 0)).come("x2").finish().finish().finish()
    assert story.members_of_batches == [["x1"], ["x9"], ["x1 again"], ["x2"]]
    assert story.ended == []


def test_a_start_in_its_middle_is_its_next_request() -> None:
    story = direct(B, A).come("x1").finish(B).come("x0")
    assert story.batches == [(B, ["x1"]), (B, ["x0"])] and not story.refused


def test_a_sequence_stays_with_its_instance() -> None:
    story = direct(A, B).come("x1", "y1").finish(A).finish(B).come("y2").finish(B).come("x2")
    assert story.batches == [(A, ["x1"]), (B, ["y1"]), (B, ["y2"]), (A, ["x2"])]


def test_sequences_go_where_there_are_the_fewest() -> None:
    story = direct(A, B).come("x1", "y0", "z1").finish(B).come("u1")
    assert story.batches == [(A, ["x1", "z1"]), (B, ["y0"]), (B, ["u1"])]


def test_ids_of_both_kinds_are_different() -> None:
    story = direct()
    for request, sequence in (("number", 1), ("text", "1")):
        story.members[request] = Member(sequence, start=True)
        story.did(story.batcher.enqueue(request, 0))
    assert story.batcher.expects(1) and story.batcher.expects("1")
    assert [story.batcher.place_of(one) for one in (1, "1", 2)] == [0, 1, -1]


def test_a_queue_that_is_full() -> None:
    story = Story(A, strategy=Direct(1), most=2).come("x1", "x2", "x3", "x4")
    assert story.refused == [("x3", Reason.FULL), ("x4", Reason.FULL)]


# ---- the end of sequences ----


def test_one_that_is_idle_is_dropped() -> None:
    story = direct().come("x1").finish().wait(IDLE - 1)
    assert story.batcher.expects("x") and story.batcher.due == IDLE
    story.wait(1)
    assert story.ended == ["x"] and story.come("x2").refused == [("x2", Reason.NO_START)]


def test_one_that_is_executed_or_waits_is_not_idle() -> None:
    story = direct(places=1).come("x1", "x2").wait(5 * IDLE)
    assert not story.ended
    story.finish().wait(5 * IDLE).finish().wait(IDLE - 1).come("x3").wait(5 * IDLE)
    assert not story.ended and story.batches[-1] == (A, ["x3"])


def test_an_idle_place_is_used_again() -> None:
    story = direct(places=1).come("x1").come("y1", "y2").finish()
    assert story.batches == [(A, ["x1"])], "x has the place"
    story.wait(IDLE)
    assert story.batches[1:] == [(A, ["y1"])] and story.ended == ["x"]


def test_an_instance_that_dies_takes_its_sequences_along() -> None:
    story = direct(A, B, places=1).come("x1", "x2", "y1", "z1")
    assert story.batches == [(A, ["x1"]), (B, ["y1"])]
    story.did(story.batcher.remove(A, ["x1"], 0))
    assert story.refused == [("x1", Reason.LOST), ("x2", Reason.LOST)] and story.ended == ["x"]
    story.come("x3", "y9")
    assert story.refused[2:] == [("x3", Reason.NO_START)]
    assert story.finish(B).batches[2:] == [(B, ["y9"])]
    assert story.finish(B).batches[3:] == [(B, ["z1"])], "which waits for any place"


def test_an_instance_that_is_retired_finishes_its_sequences() -> None:
    story = direct(A, B, places=1).come("x1").finish()
    story.batcher.retire(A)
    story.come("y1", "z1", "x2")
    assert story.batches[1:] == [(A, ["x2"]), (B, ["y1"])] and story.batcher.is_bound(A)
    story.finish().come("x9").finish()
    assert not story.batcher.is_bound(A) and story.ended == ["x"]
    story.finish(B).come("y9").finish(B)
    assert story.batches[-1] == (B, ["z1"])


def test_a_request_that_is_cancelled_ends_its_sequence() -> None:
    story = direct(places=1).come("x1", "x2", "x3", "x4", "y1")
    assert story.batcher.withdraw("x3")
    assert story.wait(1).refused == [("x2", Reason.CANCELLED), ("x4", Reason.CANCELLED)] and story.ended == ["x"]
    assert not story.batcher.withdraw("x3") and not story.batcher.withdraw("x1")
    assert story.finish().batches[1:] == [(A, ["y1"])]


def test_a_request_that_is_skipped_ends_its_sequence() -> None:
    story = direct(places=1).come("x1", "x2", "y1")
    story.batcher.skip("x2")
    assert story.wait(1).refused == [], "it waits, and was not handed over"
    story.batcher.skip("x1")
    assert story.wait(1).refused == [("x2", Reason.CANCELLED)] and story.ended == ["x"]
    assert story.finish().batches == [(A, ["x1"]), (A, ["y1"])]


def test_one_that_waits_for_a_place_is_cancelled() -> None:
    story = direct(places=1).come("x1", "y1", "y2", "z1")
    assert story.batcher.withdraw("y1")
    assert story.wait(0).refused == [("y2", Reason.CANCELLED)]
    assert story.finish().come("x9").finish().batches[2:] == [(A, ["z1"])]


def test_everything_is_dropped() -> None:
    story = direct(places=1).come("x1", "x2", "y1")
    story.did(story.batcher.remove(A, [], 0))
    assert story.batcher.drop_all() == ["y1"] and story.batcher.waiting == 0
    assert sorted(story.ended) == ["x", "y"] and story.batcher.due is None


# ---- the backlog ----


def test_sequences_wait_for_a_place_first_come_first_served() -> None:
    story = direct(places=1).come("x1", "y1", "z1", "y9", "x9")
    story.finish()
    assert story.members_of_batches == [["x1"], ["x9"]]
    story.finish().finish().finish()
    assert story.members_of_batches[2:] == [["y1"], ["y9"], ["z1"]]


def test_a_sequence_that_waits_for_too_long() -> None:
    story = direct(places=1).come("x1").come("y1", timeout_ns=50).come("y2").wait(49)
    assert not story.refused
    story.wait(1)
    assert story.refused == [("y1", Reason.SEQUENCE_EXPIRED), ("y2", Reason.SEQUENCE_EXPIRED)]
    assert story.come("y3").refused[2:] == [("y3", Reason.NO_START)]


def test_one_that_has_a_place_has_time() -> None:
    story = direct(places=1).come("x1", timeout_ns=50).come("x2", timeout_ns=50).wait(500)
    assert not story.refused
    assert story.finish().batches[1:] == [(A, ["x2"])]


def test_sequences_wait_for_an_instance() -> None:
    story = direct(A, places=2).finish()
    story.did(story.batcher.remove(A, [], 0)).come("x1", "y1")
    assert not story.batches
    assert story.did(story.batcher.add(B, 0)).batches == [(B, ["x1", "y1"])]


# ---- direct ----


def test_direct_requests_of_different_sequences_are_executed_together() -> None:
    story = direct().come("x1", "y1", "z1", "u1", "y2")
    assert story.batches == [(A, ["x1", "y1", "z1"])]
    assert story.finish().batches[1:] == [(A, ["y2"])], "u has no place"


def test_direct_places_are_rows() -> None:
    story = direct().come("x1", "y1", "z1").finish().come("z2", "x2")
    assert story.batches[1:] == [(A, ["x2", "z2"])]
    assert [story.batcher.place_of(one) for one in "xyz"] == [0, 1, 2]


def test_direct_only_the_same_shapes_go_together() -> None:
    story = direct().come("x1", shapes=((0, (2,)),)).finish().come("y1", shapes=((0, (3,)),)).come("x2", shapes=((0, (2,)),))
    story.come("z1", shapes=((0, (3,)),))
    assert story.finish().batches[2:] == [(A, ["x2"])], "which has waited longest"
    assert story.finish().batches[3:] == [(A, ["z1"])]


def test_direct_requests_are_held_for_company() -> None:
    story = direct(places=4, delay_ns=100, utilization=0.5).come("x1")
    assert not story.batches and story.batcher.due == 100
    assert story.wait(40).come("y1").batches == [(A, ["x1", "y1"])], "half of the places"
    story.finish().come("x2").wait(99)
    assert len(story.batches) == 1
    assert story.wait(1).batches[1:] == [(A, ["x2"])]


def test_direct_a_delay_without_utilization_is_none() -> None:
    assert direct(delay_ns=100).come("x1").batches == [(A, ["x1"])]


# ---- oldest ----


def test_oldest_requests_first() -> None:
    story = oldest().come("x1", "y1").come("z1", "u1", "x2", "y2", "v1")
    assert story.batches == [(A, ["x1", "y1"])]
    story.finish().finish()
    assert story.members_of_batches[1:] == [["z1", "u1"], ["x2", "y2"]]
    assert story.finish().batches[3:] == [], "v is no candidate"


def test_oldest_sizes_that_are_preferred() -> None:
    story = oldest(places=8, max_size=4, preferred=(2, 4)).come("a0").come("b1", "c1", "d1").finish()
    assert story.members_of_batches == [["a0"], ["b1", "c1"]]
    assert story.finish().members_of_batches[2:] == [["d1"]], "none is to be waited for"


def test_oldest_requests_are_held_for_company() -> None:
    story = oldest(max_size=2, preferred=(2,), delay_ns=100).come("x1")
    assert not story.batches
    assert story.wait(99).come("y1").batches == [(A, ["x1", "y1"])]
    assert story.finish().come("y2").wait(100).batches[1:] == [(A, ["y2"])]


def test_oldest_only_the_same_shapes_go_together() -> None:
    story = oldest(max_size=4).come("x1", "y1", shapes=((0, (2,)),)).finish()
    story.come("x2", shapes=((0, (2,)),)).come("z1", shapes=((0, (3,)),)).come("y2", shapes=((0, (2,)),))
    story.finish().finish()
    assert story.members_of_batches[1:] == [["x2"], ["z1"], ["y2"]]


# ---- iterative ----


def iterative(**strategy: Any) -> Story:
    return Story(A, strategy=Direct(**{"places": 2, **strategy}), iterative=True)


def again(story: Story, *requests: str, instance: str = A) -> Story:
    """The model gives these back, and is done with the rest of its batch."""
    for request in requests:
        story.members[request] = story.members[request]._replace(start=False)
        reason = story.batcher.again(request, story.now)
        if reason is not None:
            story.refused.append((request, reason))
    return story.finish(instance)


def test_one_that_is_given_back_is_executed_again() -> None:
    story = again(iterative().come("x1"), "x1")
    assert story.batches == [(A, ["x1"])] * 2 and not story.ended
    assert story.finish().ended == ["x"]


def test_others_join_it() -> None:
    story = again(iterative().come("x1").come("y1", "z1"), "x1")
    assert story.batches[1:] == [(A, ["x1", "y1"])]
    assert again(story, "y1").batches[2:] == [(A, ["z1", "y1"])], "z has the place of x"
    assert story.ended == ["x"]


def test_one_that_is_not_given_back_in_time() -> None:
    story = iterative().come("x1").wait(IDLE)
    assert story.ended == ["x"]
    assert again(story, "x1").refused == [("x1", Reason.NO_START)]
    assert not story.batcher.is_bound(A)


def test_one_that_waits_for_its_turn_has_time() -> None:
    story = iterative(places=1).come("x1").come("y1").wait(IDLE - 1)
    again(story, "x1").wait(IDLE - 1)
    assert not story.ended
    story.finish().wait(IDLE - 1).finish()
    assert story.ended == ["x", "y"] and not story.refused


def test_one_that_was_given_back_is_cancelled() -> None:
    story = iterative(places=1).come("x1")
    assert story.batcher.again("x1", 0) is None and story.batcher.withdraw("x1")
    assert story.finish().batches == [(A, ["x1"])] and story.ended == ["x"] and story.batcher.waiting == 0


@pytest.mark.parametrize("strategy", [Direct(64), Oldest(10_000, 64)])
def test_ten_thousand_sequences(strategy: Strategy) -> None:
    story = Story(A, strategy=strategy)
    for number in range(10_000):
        story.members[str(number)] = Member(number, True, True)
        story.did(story.batcher.enqueue(str(number), 0))
    story.wait(0)
    while story.batcher.waiting:
        story.finish()
    assert [one for batch in story.members_of_batches for one in batch] == [str(number) for number in range(10_000)]
    assert max(map(len, story.members_of_batches)) == 64
