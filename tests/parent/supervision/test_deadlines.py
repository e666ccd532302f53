"""When a stub is ended: what is seen of it goes in, findings come out, and the clock is a number."""

from __future__ import annotations

from typing import Any, List, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.supervision.cause import Kind
from stublet.parent.supervision.deadlines import NOTICE_SECONDS, Finding, Limits, Notice, Process, Seen, Verdict, Watch

RUNS, SLEEPS, STOPPED, TRACED, STUCK = (Process(state, 0) for state in "RSTtD")


def seen(now: float, **what: Any) -> Seen:
    known = {"loading": False, "calls": (), "busy": bool(what.get("calls")), "process": SLEEPS, "unanswered": None, **what}
    return Seen(now, **known)


def shown(watch: Watch, every: float, until: float, start: float = 0.0, **what: Any) -> List[Any]:
    """What follows from the same sight again and again: (when, finding)."""
    found = []
    for look in range(int((until - start) / every) + 1):
        now = start + look * every
        found += [(now, finding) for finding in watch.look(seen(now, **what))]
    return found


def only_verdict(found: Sequence[Any]) -> Any:
    ((when, verdict),) = [(when, finding) for when, finding in found if isinstance(finding, Verdict)]
    return when, verdict.cause.kind, verdict.cause.text, verdict.overdue


def test_a_call_that_takes_too_long() -> None:
    found = shown(Watch(Limits(execute=2), 0), 0.5, 10, calls=[7])
    assert only_verdict(found) == (2, Kind.TIMED_OUT, "execute took longer than its 'execute_timeout' of 2 s", (7,))
    assert len(found) == 1


def test_each_call_has_its_own_time() -> None:
    watch = Watch(Limits(execute=2), 0)
    assert not watch.look(seen(0, calls=[1]))
    assert not watch.look(seen(1, calls=[1, 2]))
    assert not watch.look(seen(1.9, calls=[2]))
    assert not watch.look(seen(2.5, calls=[2, 3]))
    (verdict,) = watch.look(seen(3, calls=[2, 3]))
    assert isinstance(verdict, Verdict) and verdict.overdue == (2,)


def test_without_a_limit_a_call_may_take_for_ever() -> None:
    assert not shown(Watch(Limits(), 0), 100, 1e6, calls=[1], process=RUNS, unanswered=0.0)


def test_what_is_in_the_background_has_no_deadline() -> None:
    """A decoupled model goes on after ``execute``."""
    assert not shown(Watch(Limits(execute=1), 0), 1, 1000, busy=True)


def test_what_is_in_the_background_may_be_silent_while_it_runs() -> None:
    watch = Watch(Limits(), 0)
    for second in range(1000):
        assert not watch.look(seen(second, busy=True, unanswered=0.0, process=Process("R", second)))
    found = shown(watch, 1, 1100, start=1000, busy=True, unanswered=0.0, process=Process("S", 1000))
    assert only_verdict(found)[:2] == (1031, Kind.HUNG)


def test_an_initialize_that_takes_too_long() -> None:
    found = shown(Watch(Limits(initialize=5), 100), 1, 200, start=100, loading=True)
    assert only_verdict(found) == (105, Kind.TIMED_OUT, "initialize took longer than its 'initialize_timeout' of 5 s", ())
    assert not shown(Watch(Limits(initialize=5), 100), 1, 200, start=100)
    assert not shown(Watch(Limits(), 100), 1, 1000, start=100, loading=True)


@pytest.mark.parametrize(
    "process, notice, cause",
    [
        (STOPPED, "it is stopped (SIGSTOP); it is ended if that lasts 30 s", "it was hung: it was stopped (SIGSTOP) for 30 s"),
        (
            STUCK,
            "it waits in the kernel for what does not come (state D); it is ended if that lasts 30 s",
            "it was hung: it waited in the kernel for what does not come (state D) for 30 s",
        ),
    ],
)
@pytest.mark.parametrize("what", [{}, {"calls": [1]}, {"loading": True}, {"busy": True}])
def test_a_stub_that_runs_nothing(process: Process, notice: str, cause: str, what: Any) -> None:
    found = shown(Watch(Limits(), 0), 0.5, 60, process=process, **what)
    (noticed, first), *_ = found
    assert first == Notice(notice) and NOTICE_SECONDS <= noticed <= NOTICE_SECONDS + 0.5
    when, kind, text, overdue = only_verdict(found)
    assert 30 <= when <= 30.5 and (kind, text, overdue) == (Kind.HUNG, cause, ())
    assert len(found) == 2


def test_one_that_goes_on_is_as_if_nothing_had_been() -> None:
    watch = Watch(Limits(), 0)
    assert len(shown(watch, 1, 29, process=STOPPED)) == 1
    assert watch.look(seen(29.5)) == [Notice("it goes on")]
    assert not watch.look(seen(30))
    found = shown(watch, 1, 70, start=35, process=STOPPED)
    assert only_verdict(found)[0] == 65


def test_a_short_stop_is_nobodys_business() -> None:
    watch = Watch(Limits(), 0)
    for second in range(100):
        assert not watch.look(seen(second, process=STOPPED if second % 2 else RUNS))


def test_a_disk_that_is_slow_is_not_one_that_hangs() -> None:
    watch = Watch(Limits(), 0)
    for second in range(100):
        assert not watch.look(seen(second, process=Process("D", second)))


def test_a_debugger_may_stop_it() -> None:
    assert not shown(Watch(Limits(), 0), 1, 1000, process=TRACED, unanswered=0.0)


def test_with_no_limit_a_stop_is_told_only() -> None:
    found = shown(Watch(Limits(hang=0), 0), 1, 1000, process=STOPPED, unanswered=0.0)
    assert [finding for _, finding in found] == [Notice("it is stopped (SIGSTOP); it is left so, because its 'hang_timeout' is 0")]


def test_an_idle_one_has_to_answer() -> None:
    found = shown(Watch(Limits(hang=10), 0), 1, 100, start=3, unanswered=2.0)
    when, kind, text, _ = only_verdict(found)
    assert (when, kind) == (13, Kind.HUNG)
    assert text == "it was hung: it executed nothing and did not answer for 10 s; something in it holds the interpreter"


def test_a_busy_one_need_not_answer_until_it_is_idle() -> None:
    """Native code may hold the interpreter."""
    watch = Watch(Limits(hang=10), 0)
    assert not shown(watch, 1, 500, calls=[1], process=RUNS, unanswered=2.0)
    assert not watch.look(seen(501, unanswered=2.0))
    assert not watch.look(seen(510, unanswered=2.0))
    assert not watch.look(seen(510.5))
    assert not watch.look(seen(511, unanswered=510.8))
    assert only_verdict(shown(watch, 1, 530, start=512, unanswered=510.8))[0] == 521


def test_after_a_verdict_there_is_no_other() -> None:
    watch = Watch(Limits(execute=1, hang=5), 0)
    found = shown(watch, 1, 100, calls=[1], process=STOPPED)
    assert [type(finding) for _, finding in found] == [Verdict]


def test_how_often_to_look() -> None:
    assert Limits().period(0.02, 1) == 1
    assert Limits(execute=2).period(0.02, 1) == 0.2
    assert Limits(execute=0.001).period(0.02, 1) == 0.02
    assert Limits(hang=0).period(0.02, 1) == 1


moments = st.lists(
    st.tuples(
        st.floats(0.01, 5),
        st.sampled_from([RUNS, SLEEPS, STOPPED, TRACED, STUCK, None]),
        st.sets(st.integers(0, 3)),
        st.booleans(),
        st.booleans(),
    ),
    max_size=60,
)


@given(moments, st.sampled_from([0.0, 3.0]), st.sampled_from([0.0, 4.0]), st.sampled_from([0.0, 5.0]))
def test_nothing_is_ended_too_early(moments: Any, execute: float, initialize: float, hang: float) -> None:
    """Whatever is seen, in whatever order: a verdict has lasted as long as its limit, and there is one at most."""
    limits = Limits(execute, initialize, hang)
    watch, now, verdicts = Watch(limits, 0), 0.0, 0
    since = {}
    for step, process, calls, loading, answers in moments:
        now += step
        since = {call: since.get(call, now) for call in calls}
        findings: List[Finding] = watch.look(seen(now, process=process, calls=calls, loading=loading, unanswered=None if answers else 0.0))
        for finding in findings:
            if isinstance(finding, Verdict):
                verdicts += 1
                if finding.overdue:
                    assert execute and all(now - since[call] >= execute for call in finding.overdue)
                elif finding.cause.kind is Kind.TIMED_OUT:
                    assert initialize and loading and now >= initialize
                else:
                    assert finding.cause.kind is Kind.HUNG and hang and now >= hang
    assert verdicts <= 1
