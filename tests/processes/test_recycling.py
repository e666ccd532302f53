"""Instances that have grown old are replaced while they serve."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Iterator, Set

import pytest
from mortal import Mortals, mortal, result_of
from server_process import ServerProcess, alive, serving, until

PID = "result = os.getpid()"
SEQUENCED = "max_batch_size: 1 sequence_batching { max_sequence_idle_microseconds: 60000000 oldest { max_candidate_sequences: 4 } }"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recycling")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    """Replacements do not load while there is the file ``held``, and fail while there is ``broken``."""
    models = root / "models"
    waits = f"while os.path.exists({str(root / 'held')!r}): time.sleep(0.001)"
    fails = f"assert not os.path.exists({str(root / 'broken')!r}), 'out of order'"
    mortal(models, "counted", max_requests="20")
    mortal(models, "pair", instances=2, max_requests="20")
    mortal(models, "aged", max_age="0.5")
    mortal(models, "sequenced", SEQUENCED, max_requests="2")
    mortal(models, "greedy", max_rss="300MiB")
    mortal(models, "broken", max_requests="5", initialize=fails)
    mortal(models, "held", max_requests="5", initialize=waits)
    mortal(models, "killed", max_requests="5", initialize=waits)
    with serving(root, models, tracebacks=True) as server:
        yield server


@pytest.fixture
def mortals(server: ServerProcess, tmp_path: Path) -> Iterator[Mortals]:
    with Mortals(server, tmp_path / "gate") as found:
        yield found


@pytest.mark.parametrize("model", ["counted", "pair"])
def test_no_request_fails_while_instances_are_replaced(mortals: Mortals, model: str) -> None:
    before = mortals.pids(model)
    seen: Set[str] = set()
    while len(seen) < len(before) + 2:
        answers = [mortals.begin(model, PID) for _ in range(10)]
        seen.update(result_of(answer.result()) for answer in answers)
        assert mortals.ready(model)
    until(lambda: not any(map(alive, before)), what="the end of those who were replaced")
    assert all(instance["restarts"] == 0 for instance in mortals.instances(model))
    assert f"instance '{model}_0_0' is replaced: it was handed " in mortals.server.log
    until(lambda: [instance["state"] for instance in mortals.instances(model)] == ["READY"] * len(before))
    assert [instance["name"] for instance in mortals.instances(model)] == [f"{model}_0_{number}" for number in range(len(before))]
    assert mortals.metric("stublet_instance_up", f"{model}_0_0") == 1


def test_what_the_old_one_has_it_finishes(mortals: Mortals) -> None:
    mortals.gate.touch()
    long = mortals.begin("aged", mortals.behind(PID))
    until(lambda: mortals.pids("aged", "DRAINING"))
    (old,) = mortals.pids("aged", "DRAINING")
    assert result_of(mortals.ask("aged", PID)) != str(old)
    mortals.gate.unlink()
    assert result_of(long.result()) == str(old)
    until(lambda: not alive(old))


def test_a_sequence_stays_where_it_is(mortals: Mortals) -> None:
    old = result_of(mortals.ask("sequenced", PID, 1, sequence_id=1, sequence_start=True))
    assert result_of(mortals.ask("sequenced", PID, 1, sequence_id=1)) == old
    until(lambda: mortals.pids("sequenced", "DRAINING") == [int(old)])
    assert result_of(mortals.ask("sequenced", PID, 1, sequence_id=2, sequence_start=True, sequence_end=True)) != old
    assert result_of(mortals.ask("sequenced", PID, 1, sequence_id=1)) == old
    assert result_of(mortals.ask("sequenced", PID, 1, sequence_id=1, sequence_end=True)) == old
    until(lambda: not alive(int(old)))


def test_one_that_takes_too_much_memory(mortals: Mortals) -> None:
    (old,) = mortals.pids("greedy")
    assert mortals.ask("greedy", "model.hoard = np.ones(400 << 20, np.uint8)").status_code == 200
    until(lambda: not alive(old))
    assert result_of(mortals.ask("greedy", PID)) != str(old)
    assert "instance 'greedy_0_0' is replaced: " in mortals.server.log
    assert " of its memory are resident, of at most 300MiB" in mortals.server.log


def test_the_old_one_serves_on_if_the_next_does_not_load(mortals: Mortals, root: Path) -> None:
    (old,) = mortals.pids("broken")
    (root / "broken").touch()
    assert [mortals.ask("broken").status_code for _ in range(10)] == [200] * 10
    text = "instance 'broken_0_0' should be replaced, but the next one did not load, and it serves on; it is tried again in 60 s"
    until(lambda: text in mortals.server.log)
    assert "out of order" in mortals.server.log
    assert result_of(mortals.ask("broken", PID)) == str(old)
    until(lambda: [instance["state"] for instance in mortals.instances("broken")] == ["READY"])
    assert mortals.ready("broken")


def test_one_that_dies_while_the_next_loads_is_replaced_by_it(mortals: Mortals, root: Path) -> None:
    (old,) = mortals.pids("killed")
    (root / "held").touch()
    assert [mortals.ask("killed").status_code for _ in range(10)] == [200] * 10
    (new,) = until(lambda: mortals.pids("killed", "LOADING"))
    os.kill(old, signal.SIGKILL)
    waiting = mortals.begin_waiting("killed", 3, PID)
    assert not mortals.ready("killed") and mortals.pids("killed", "LOADING") == [new]
    (root / "held").unlink()
    assert [result_of(answer.result()) for answer in waiting] == [str(new)] * 3
    assert [(instance["state"], instance["restarts"]) for instance in mortals.instances("killed")] == [("READY", 1)]


def test_the_server_ends_while_a_replacement_loads(mortals: Mortals, root: Path) -> None:
    """The end of the server is the fixture's, which sees to it that it is a good one."""
    (root / "held").touch()
    assert [mortals.ask("held").status_code for _ in range(10)] == [200] * 10
    until(lambda: mortals.pids("held", "LOADING"))
