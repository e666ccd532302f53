"""What the repository index says of models that come and go."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List

import pytest
from controlled import CONFIG, Controlled, constant
from model_repository import write_model
from server_process import until
from stublet.parent import InvalidArgument


def test_the_index_through_the_life_of_a_model(models: Controlled, tmp_path: Path) -> None:
    def index(ready: bool = False) -> List[Dict[str, str]]:
        return models.call(models.core.repository_index, ready)

    gate = tmp_path / "gate"
    models.write("m", 1)
    models.write("m", 2, f"self.gate = {str(gate)!r}", version=3)
    (models.root / "empty").mkdir()
    assert index() == [{"name": "empty"}, {"name": "m"}]
    models.load("m")
    serving = [{"name": "m", "version": version, "state": "READY"} for version in ("1", "3")]
    assert index() == [{"name": "empty"}, *serving]
    assert index(ready=True) == serving
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m")
        until(lambda: models.busy("m"))
        unloading = models.begin(models.core.unload_model("m"))
        until(lambda: "m" not in models.core.models)
        assert index()[1:] == [{**row, "state": "UNLOADING"} for row in serving]
        gate.touch()
        asked.result()
    unloading.result(30)
    assert index()[1:] == [{**row, "state": "UNAVAILABLE", "reason": "unloaded"} for row in serving]
    assert index(ready=True) == []
    models.load("m")
    assert index(ready=True) == serving


def test_what_does_not_load_in_the_index(models: Controlled, tmp_path: Path) -> None:
    def index() -> List[Dict[str, str]]:
        return models.call(models.core.repository_index)

    models.write("m", 1)
    models.write("m", 2, "raise ValueError('odd')", version=2)
    write_model(models.root, "bad", config="nonsense")
    for name in ("m", "bad"):
        with pytest.raises(InvalidArgument):
            models.load(name)
    bad, first, second = index()
    assert (bad["name"], bad["state"], "version" in bad) == ("bad", "UNAVAILABLE", False)
    assert bad["reason"].endswith('config.pbtxt:2:1: Message type "inference.ModelConfig" has no field named "nonsense".')
    assert first == {"name": "m", "version": "1", "state": "READY"}
    assert (second["version"], second["state"]) == ("2", "UNAVAILABLE") and second["reason"].startswith("ValueError: odd")
    gate = tmp_path / "gate"
    models.write("m", 2, f"wait({str(gate)!r})", version=2)
    loading = models.begin(models.core.load_model("m"))
    until(lambda: index()[1:] == [first, {"name": "m", "version": "2", "state": "LOADING"}])
    gate.touch()
    loading.result(30)
    assert index()[1:] == [first, {"name": "m", "version": "2", "state": "READY"}]


def test_a_dead_instance_in_the_index(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    (pid,) = models.pids("m")
    os.kill(pid, 9)
    (row,) = until(lambda: [row for row in models.call(models.core.repository_index) if row["state"] != "READY"])
    assert row["state"] == "UNAVAILABLE" and "it ended with SIGKILL" in row["reason"]


def test_an_unloaded_model_that_is_removed_is_forgotten(models: Controlled) -> None:
    models.load("m", CONFIG, {"file:1/model.py": constant(5).encode()})
    models.unload("m")
    assert models.call(models.core.repository_index) == []
