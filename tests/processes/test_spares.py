"""Instances that are kept in reserve."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Iterator

import pytest
from mortal import Mortals, error_of, mortal, result_of
from server_process import ServerProcess, alive, serving, until

PID = "result = os.getpid()"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("spares")
    models = root / "models"
    for name in ("one", "busy", "quiet"):
        mortal(models, name, spares="1")
    mortal(models, "two", instances=2, spares="1")
    mortal(models, "aged", max_age="1", spares="1")
    mortal(models, "grouped", spares="1")
    with serving(root, models, "--model-control-mode", "explicit", "--load-model", "*") as server:
        yield server


@pytest.fixture
def mortals(server: ServerProcess, tmp_path: Path) -> Iterator[Mortals]:
    with Mortals(server, tmp_path / "gate") as found:
        yield found


def spare_of(mortals: Mortals, model: str) -> int:
    (pid,) = until(lambda: mortals.pids(model, "SPARE"), what="the spare")
    return pid


def test_a_spare_takes_the_place_of_one_that_dies(mortals: Mortals) -> None:
    spare = spare_of(mortals, "one")
    assert result_of(mortals.ask("one", PID)) != str(spare)
    (old,) = mortals.kill("one")
    assert result_of(mortals.ask("one", PID)) == str(spare)
    assert mortals.pids("one") == [spare] and mortals.ready("one") and not alive(old)
    assert mortals.metric("stublet_instance_restarts_total", "one_0_0") == 1
    assert spare_of(mortals, "one") not in (spare, old)
    assert [(instance["name"], instance["state"]) for instance in mortals.instances("one")] == [("one_0_0", "READY"), ("one_0_0", "SPARE")]
    assert "instance 'one_0_0': the spare takes its place" in mortals.server.log


def test_what_waited_at_the_dead_one_goes_to_the_spare(mortals: Mortals) -> None:
    spare = spare_of(mortals, "busy")
    fatal = mortals.begin_fatal("busy")
    waiting = mortals.begin_waiting("busy", 20, PID)
    mortals.gate.unlink()
    assert "exit code 3" in error_of(fatal.result())
    assert [result_of(answer.result()) for answer in waiting] == [str(spare)] * 20


def test_it_takes_the_name_of_whom_it_replaces(mortals: Mortals) -> None:
    spare = spare_of(mortals, "two")
    pids = {instance["name"]: instance["pid"] for instance in mortals.instances("two") if instance["state"] == "READY"}
    os.kill(pids["two_0_1"], signal.SIGKILL)
    until(lambda: spare in mortals.pids("two"))
    found = {instance["name"]: instance["pid"] for instance in mortals.instances("two") if instance["state"] == "READY"}
    assert found == {"two_0_0": pids["two_0_0"], "two_0_1": spare}
    assert mortals.metric("stublet_instance_restarts_total", "two_0_1") == 1


def test_a_spare_that_dies_is_no_loss(mortals: Mortals) -> None:
    serving = mortals.pids("quiet")
    spare = spare_of(mortals, "quiet")
    os.kill(spare, signal.SIGKILL)
    until(lambda: spare not in mortals.pids("quiet", "SPARE"))
    assert mortals.ready("quiet") and mortals.pids("quiet") == serving
    assert spare_of(mortals, "quiet") != spare
    assert mortals.metric("stublet_instance_restarts_total", "quiet_0_0") == 0


def test_a_spare_replaces_one_that_is_old(mortals: Mortals) -> None:
    spare = spare_of(mortals, "aged")
    until(lambda: spare in mortals.pids("aged"))
    assert mortals.ask("aged", PID).status_code == 200
    assert spare_of(mortals, "aged") != spare


def test_spares_go_with_their_model(mortals: Mortals) -> None:
    pids = [spare_of(mortals, "grouped"), *mortals.pids("grouped")]
    mortals.unload("grouped")
    until(lambda: not any(map(alive, pids)))
