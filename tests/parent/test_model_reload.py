"""Models that are replaced while they serve, and what becomes of requests to those that leave: spec 1.12 and 5.6."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict

import pytest
from controlled import NO_MODEL, Controlled, constant, controlled
from model_repository import obey
from server_process import alive, until
from stublet.parent import InvalidArgument, NotFound, Unavailable


def test_a_reload_replaces_what_has_changed(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    (old,) = models.pids("m")
    models.write("m", 2)
    models.load("m")
    assert models.value("m") == 2
    assert models.pids("m") != [old]
    until(lambda: not alive(old))


def test_a_reload_of_what_has_not_changed_does_nothing(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    pids = models.pids("m")
    models.load("m")
    assert models.pids("m") == pids
    (models.root / "m" / "1" / "model.py").touch()
    models.load("m")
    assert models.pids("m") != pids


def test_a_reload_brings_a_dead_model_back(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    (pid,) = models.pids("m")
    os.kill(pid, 9)
    until(lambda: not models.ready("m") or models.pids("m") != [pid])
    models.load("m")
    assert models.value("m") == 1


def test_a_reload_brings_a_dead_instance_back(models: Controlled) -> None:
    obey(models.root, instances=2, restart_limit="0")
    models.load("obey")
    pids = models.pids("obey")
    os.kill(pids[0], 9)
    until(lambda: not alive(pids[0]))
    until(lambda: len({instance.state for instance in models.core.find("obey").instances}) > 1 or models.pids("obey") != pids)
    models.load("obey")
    assert {instance.state.value for instance in models.core.find("obey").instances} == {"READY"}


def test_a_reload_with_other_versions(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    models.write("m", 2, version=2)
    models.load("m")
    assert (models.value("m"), models.value("m", version=1)) == (2, 1)
    (models.root / "m" / "1").rename(models.root / "away")
    models.load("m")
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'm' version 1 is not found$"):
        models.value("m", version=1)


@pytest.mark.parametrize("initialize", ["raise ValueError('odd')", "import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_failed_reload_changes_nothing(models: Controlled, initialize: str) -> None:
    models.write("m", 1)
    models.load("m")
    pids = models.pids("m")
    models.write("m", 2, initialize)
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=r"^load failed for model 'm': version 1 is at UNAVAILABLE state: "):
            models.load("m")
        assert models.value("m") == 1 and models.pids("m") == pids
        assert models.core.ready and models.ready("m")


def test_a_reload_that_fails_in_one_version_changes_nothing(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    models.write("m", 3)
    models.write("m", 2, "raise ValueError('odd')", version=2)
    with pytest.raises(InvalidArgument, match="version 2 is at UNAVAILABLE state"):
        models.load("m")
    assert models.value("m") == 1


def test_a_reload_with_a_bad_configuration_changes_nothing(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    (models.root / "m" / "config.pbtxt").write_text("nonsense")
    with pytest.raises(InvalidArgument, match=r"^failed to load 'm', .*config.pbtxt:1:"):
        models.load("m")
    assert models.value("m") == 1 and models.core.ready


def test_no_request_fails_while_a_model_is_replaced(models: Controlled) -> None:
    models.write("m", 0)
    models.load("m")
    stop = threading.Event()
    seen: Dict[float, int] = {}

    def ask() -> None:
        while not stop.is_set():
            value = models.value("m", 0.001)
            seen[value] = seen.get(value, 0) + 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for value in range(1, 5):
                models.write("m", value)
                models.load("m")
                until(lambda value=value: value in seen)
        finally:
            stop.set()
    for future in asking:
        future.result()
    assert set(seen) == {0, 1, 2, 3, 4}


def test_what_a_replaced_model_was_asked_is_answered(models: Controlled, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    models.write("m", 1, f"self.gate = {str(gate)!r}")
    models.load("m")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m")
        until(lambda: models.busy("m"))
        models.write("m", 2)
        models.load("m")
        assert models.value("m") == 2
        assert not asked.done()
        gate.touch()
        assert asked.result() == 1


def test_what_an_unloaded_model_was_asked_is_answered(models: Controlled, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    models.write("m", 1, f"self.gate = {str(gate)!r}")
    models.load("m")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m")
        until(lambda: models.busy("m"))
        unloading = models.begin(models.core.unload_model("m"))
        until(lambda: "m" not in models.core.models)
        with pytest.raises(NotFound, match=rf"^{NO_MODEL.format('m')}$"):
            models.value("m")
        assert not asked.done() and not unloading.done()
        gate.touch()
        assert asked.result() == 1
        unloading.result(30)


def test_a_model_can_be_loaded_while_it_is_still_leaving(models: Controlled, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    models.write("m", 1, f"self.gate = {str(gate)!r}")
    models.load("m")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m")
        until(lambda: models.busy("m"))
        unloading = models.begin(models.core.unload_model("m"))
        models.write("m", 2)
        models.load("m")
        assert models.value("m") == 2
        assert not asked.done()
        gate.touch()
        assert asked.result() == 1
        unloading.result(30)


def test_loads_of_one_model_happen_one_after_the_other(models: Controlled, tmp_path: Path) -> None:
    count = tmp_path / "count"
    body = f"open({str(count)!r}, 'a').write('('); time.sleep(0.1); open({str(count)!r}, 'a').write(')')"
    models.write("m", 1, body)
    configs = [json.dumps({"backend": "python", "parameters": {"n": {"string_value": str(n)}}}) for n in range(4)]
    loads = [models.begin(models.core.load_model("m", config)) for config in configs]
    for load in loads:
        load.result(30)
    assert count.read_text() == "()" * 4
    assert len(models.pids("m")) == 1


def test_models_are_loaded_at_the_same_time(models: Controlled, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    models.write("slow", 1, f"wait({str(gate)!r})")
    models.write("m", 2)
    loading = models.begin(models.core.load_model("slow"))
    models.load("m")
    assert models.value("m") == 2
    assert models.core.ready and not loading.done()
    assert not models.ready("slow")
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'slow' has no available versions$"):
        models.value("slow")
    gate.touch()
    loading.result(30)
    assert models.value("slow") == 1


def test_who_asked_may_go_away(models: Controlled, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    models.write("m", 1, f"wait({str(gate)!r})")
    loading = models.begin(models.core.load_model("m"))
    until(lambda: models.core._control.is_loading("m"))
    loading.cancel()
    gate.touch()
    until(lambda: "m" in models.core.models)
    assert models.value("m") == 1


def test_the_end_of_the_server_ends_a_load(repository: Path, temporary: Path) -> None:
    with controlled(repository) as models:
        file = constant(1, "time.sleep(600)").encode()
        loading = models.begin(models.core.load_model("m", '{"backend": "python"}', {"file:1/model.py": file}))
        until(lambda: models.core._control.is_loading("m"))
        until(lambda: any(model.instances and model.instances[0].pid for model in models.core._control.alive))
        started = time.monotonic()
    assert time.monotonic() - started < 5
    with pytest.raises(Unavailable, match=r"^the server is ending$"):
        loading.result(5)
    assert os.listdir(temporary) == []


def test_the_end_of_the_server_ends_what_is_leaving(repository: Path) -> None:
    with controlled(repository, exit_timeout_secs=1) as models:
        models.write("m", 1)
        models.load("m")
        (pid,) = models.pids("m")
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(models.value, "m", 600)
            until(lambda: models.busy("m"))
            models.write("m", 2)
            models.load("m")
            assert alive(pid)
            models.server.__exit__()
            with pytest.raises(Unavailable):
                asked.result()
        assert not alive(pid)
        models.server.__enter__()


@pytest.mark.parametrize("serves", [False, True])
def test_a_model_that_loads_makes_no_other_unready(models: Controlled, tmp_path: Path, serves: bool) -> None:
    """Nor the server; and one that is replaced is ready all the time."""
    gate = tmp_path / "gate"
    models.write("m", 1)
    models.load("m")
    if serves:
        models.write("slow", 1)
        models.load("slow")
    models.write("slow", 2, f"wait({str(gate)!r})")
    loading = models.begin(models.core.load_model("slow"))
    until(lambda: any(model.name == "slow" and model.instances and not model.ready for model in list(models.core._control.alive)))
    for _ in range(50):
        assert models.ready("m") and models.core.ready and models.begin(models.core.check_ready()).result(30)
        assert models.ready("slow") == serves
        assert models.value("m") == 1
    assert not loading.done()
    gate.touch()
    loading.result(30)
    assert models.value("slow") == 2


@pytest.mark.parametrize("retries, loads", [(0, False), (1, False), (2, True)])
def test_a_load_that_fails_is_tried_again(repository: Path, tmp_path: Path, retries: int, loads: bool) -> None:
    tries = tmp_path / "tries"
    with controlled(repository, model_load_retry_count=retries) as models:
        models.write("m", 1, f"file = open({str(tries)!r}, 'a'); file.write('x'); file.flush(); assert file.tell() == 3, 'not yet'")
        if loads:
            models.load("m")
            assert models.value("m") == 1
        else:
            with pytest.raises(InvalidArgument, match="AssertionError: not yet"):
                models.load("m")
        assert tries.read_text() == "x" * (retries + 1)
        assert len(models.core.alive) == 1
