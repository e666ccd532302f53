"""Instances that come and go while their model serves, without a reload (spec 5.3)."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from controlled import Controlled, controlled
from server_process import alive, until
from stublet.parent import InvalidArgument, Unavailable


def test_more_and_fewer_instances_without_a_reload(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    first = models.pids("m")
    models.regroup("m", 3)
    models.load("m")
    assert len(models.pids("m")) == 3 and models.pids("m")[:1] == first
    assert [row.instance for row in models.core.status()] == ["m_0_0", "m_0_1", "m_0_2"]
    assert models.core.find("m").config_dict["instance_group"][0]["count"] == 3
    with ThreadPoolExecutor() as pool:
        assert set(pool.map(lambda _: models.value("m", 0.05), range(9))) == {1}
    models.regroup("m", 1)
    models.load("m")
    until(lambda: models.pids("m") == first)
    assert models.value("m") == 1 and models.core.ready


def test_instances_that_go_finish_what_they_were_asked(models: Controlled, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    models.write("m", 1, f"self.gate = {str(gate)!r}")
    models.regroup("m", 3)
    models.load("m")
    pids = models.pids("m")
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(models.value, "m") for _ in range(3)]
        until(lambda: all(instance.channel.in_flight for instance in models.core.find("m").instances))
        models.regroup("m", 1)
        models.load("m")
        more = [pool.submit(models.value, "m") for _ in range(5)]
        gate.touch()
        assert [future.result() for future in asked + more] == [1] * 8
    until(lambda: models.pids("m") == pids[:1])
    assert not any(map(alive, pids[1:]))


def test_no_request_fails_while_instances_come_and_go(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    stop = threading.Event()

    def ask() -> int:
        count = 0
        while not stop.is_set():
            assert models.value("m", 0.001) == 1
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for count in (3, 1, 2, 4, 1):
                models.regroup("m", count)
                models.load("m")
        finally:
            stop.set()
    assert sum(future.result() for future in asking) > 20


@pytest.mark.parametrize("serves", [1, 2])
def test_instances_that_do_not_load_change_nothing(models: Controlled, serves: int) -> None:
    condition = f"args['model_instance_name'] == 'm_0_{serves + 1}'"
    models.write("m", 1, f"assert not ({condition}), 'one too many'")
    models.write("m", 2, f"assert not ({condition}), 'one too many'", version=2)
    models.regroup("m", serves)
    models.load("m")
    pids = models.pids("m")
    models.regroup("m", serves + 2)
    with pytest.raises(InvalidArgument, match=r"^load failed for model 'm': AssertionError: one too many"):
        models.load("m")
    assert models.pids("m") == pids and models.core.ready
    assert models.core.find("m").config_dict["instance_group"][0]["count"] == serves
    models.regroup("m", serves + 1)
    models.load("m")
    assert len(models.pids("m")) == 2 * (serves + 1) and set(pids) < set(models.pids("m"))


def test_other_places_without_a_reload(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    with controlled(tmp_path / "models", host_policies=[f"mine,cpu-cores={core}"]) as models:
        models.write("m", 1, extra="instance_group { count: 1 }")
        models.load("m")
        path = models.root / "m" / "config.pbtxt"
        before = path.read_text().split("instance_group")[0]
        model, (first,) = models.core.find("m"), models.pids("m")
        path.write_text(before + 'instance_group { count: 1 } instance_group { count: 1 host_policy: "mine" }')
        models.load("m")
        (added,) = set(models.pids("m")) - {first}
        assert os.sched_getaffinity(added) == {core} and os.sched_getaffinity(first) == os.sched_getaffinity(0)
        path.write_text(before + 'instance_group { count: 1 passive: true } instance_group { count: 1 host_policy: "mine" }')
        models.load("m")
        until(lambda: len(models.pids("m")) == 2)
        assert added in models.pids("m") and first not in models.pids("m")
        assert models.value("m") == 1 and models.core.find("m") is model
        assert sorted(instance.spec.passive for instance in model.instances) == [False, True]


def test_instance_groups_that_cannot_be(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    pids = models.pids("m")
    models.regroup("m", 1, "KIND_GPU")
    with pytest.raises(InvalidArgument, match="has kind KIND_GPU"):
        models.load("m")
    assert models.pids("m") == pids and models.core.ready


def test_other_files_with_other_groups_are_a_reload(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    pids = models.pids("m")
    models.write("m", 2)
    models.regroup("m", 2)
    models.load("m")
    assert models.value("m") == 2 and not set(pids) & set(models.pids("m"))


def test_instances_that_go_finish_when_the_server_ends(tmp_path: Path) -> None:
    with controlled(tmp_path / "models") as models, ThreadPoolExecutor() as pool:
        models.write("m", 1)
        models.regroup("m", 2)
        models.load("m")
        asked = [pool.submit(models.value, "m", 1.0) for _ in range(2)]
        until(lambda: all(instance.channel.in_flight for instance in models.core.find("m").instances))
        models.regroup("m", 1)
        models.load("m")
        models.server.__exit__()
        assert [future.result() for future in asked] == [1, 1]
        models.server.__enter__()


def test_the_end_of_the_server_while_instances_load(tmp_path: Path) -> None:
    with controlled(tmp_path / "models") as models:
        models.write("m", 1, "if args['model_instance_name'] == 'm_0_1': time.sleep(600)")
        models.load("m")
        models.regroup("m", 2)
        loading = models.begin(models.core.load_model("m"))
        until(lambda: len(models.pids("m")) == 2)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    with pytest.raises(Unavailable, match=r"^the server is ending$"):
        loading.result(5)
