"""Models that come and go while the server runs: spec 1.12 and 5.6."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest
from controlled import Controlled, constant, controlled
from hypothesis import given, settings
from hypothesis import strategies as st
from model_repository import ECHO, obey, write_model
from server_process import alive, until
from stublet.parent import InvalidArgument, NotFound, Server, ServerError, Unavailable
from stublet.parent.options import ServerOptions

NO_MODEL = "Request for unknown model: '{}' is not found"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def models(repository: Path) -> Iterator[Controlled]:
    with controlled(repository) as models:
        yield models


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


# At the start


def test_nothing_is_loaded_at_first(repository: Path) -> None:
    write_model(repository, "m")
    with controlled(repository) as models:
        assert models.core.ready
        assert models.core.status() == []
        with pytest.raises(NotFound, match=rf"^{NO_MODEL.format('m')}$"):
            models.value("m")


@pytest.mark.parametrize("names, expected", [(["a"], ["a"]), (["a", "b", "a"], ["a", "b"]), (["*"], ["a", "b", "c"])])
def test_what_is_loaded_at_the_start(repository: Path, names: List[str], expected: List[str]) -> None:
    for name in "abc":
        write_model(repository, name)
    with controlled(repository, load_models=names) as models:
        assert sorted(models.core.models) == expected
        assert models.core.ready


@pytest.mark.parametrize("name", ["unknown", "../m", ""])
def test_a_start_with_a_model_that_is_not_there(repository: Path, name: str) -> None:
    write_model(repository, "m")
    with controlled(repository, load_models=["m", name]) as models:
        assert list(models.core.models) == ["m"]
        assert list(models.core.failures) == [name]
        assert not models.core.ready


def test_without_control(repository: Path) -> None:
    write_model(repository, "m")
    with controlled(repository, mode="none") as models:
        for change in (models.load, models.unload):
            with pytest.raises(Unavailable, match=r"^explicit model load / unload is not allowed if polling is enabled$"):
                change("m")
        assert models.ready("m")


# Loading and unloading


def test_a_model_comes_and_goes(models: Controlled) -> None:
    for value in (1, 2):
        models.write("m", value)
        models.load("m")
        assert models.value("m") == value
        assert models.ready("m") and models.core.ready
        (pid,) = models.pids("m")
        models.unload("m")
        assert not alive(pid)
        with pytest.raises(NotFound, match=rf"^{NO_MODEL.format('m')}$"):
            models.value("m")
        assert models.core.ready


def test_unloading_what_is_not_there_succeeds(models: Controlled) -> None:
    models.unload("m")


@pytest.mark.parametrize(
    "name, error, text",
    [
        ("unknown", NotFound, "failed to load 'unknown', failed to poll from model repository"),
        ("", InvalidArgument, "Model name cannot be empty. Please enter a valid name to deploy."),
        ("../models/m", InvalidArgument, "model name must not contain path traversal characters"),
        (".hidden", NotFound, "failed to load '.hidden', failed to poll from model repository"),
    ],
)
def test_names_that_cannot_be_loaded(models: Controlled, name: str, error: type, text: str) -> None:
    models.write("m", 1)
    with pytest.raises(error) as caught:
        models.load(name)
    assert str(caught.value) == text
    assert models.core.ready


@pytest.mark.parametrize("name", ["a b", "a-b_c.d", "ü", "x" * 100])
def test_odd_names_that_can(models: Controlled, name: str) -> None:
    models.write(name, 3)
    models.load(name)
    assert models.value(name) == 3


@pytest.mark.parametrize("name", ["a{b", "a;b", "$a", "a*"])
def test_odd_names_that_cannot(models: Controlled, name: str) -> None:
    models.write(name, 3)
    with pytest.raises(InvalidArgument) as caught:
        models.load(name)
    assert str(caught.value) == f"failed to load '{name}', Invalid stub name: contains invalid characters: '{name}'"


def test_a_model_that_does_not_load(models: Controlled) -> None:
    models.write("m", 1, "raise ValueError('odd')")
    with pytest.raises(InvalidArgument, match=r"^load failed for model 'm': version 1 is at UNAVAILABLE state: ValueError: odd"):
        models.load("m")
    assert not models.core.ready
    assert not models.ready("m")
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'm' has no available versions$"):
        models.value("m")
    models.write("m", 2)
    models.load("m")
    assert models.core.ready and models.value("m") == 2


def test_a_failed_model_can_be_unloaded(models: Controlled) -> None:
    models.write("m", 1, "raise ValueError('odd')")
    with pytest.raises(InvalidArgument):
        models.load("m")
    models.unload("m")
    assert models.core.ready and models.core.status() == []


def test_a_version_that_fails_beside_one_that_serves(models: Controlled) -> None:
    models.write("m", 1)
    models.write("m", 2, "raise ValueError('odd')", version=2)
    with pytest.raises(InvalidArgument, match=r"^load failed for model 'm': version 2 is at UNAVAILABLE state: ValueError: odd"):
        models.load("m")
    assert models.value("m") == models.value("m", version=1) == 1
    assert (models.ready("m"), models.ready("m", "1"), models.ready("m", "2")) == (True, True, False)
    assert not models.core.ready
    assert [(row.version, row.state) for row in models.core.status()] == [("1", "READY"), ("2", "UNAVAILABLE")]


def test_an_error_of_the_server_fails_the_load(
    models: Controlled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models.write("m", 1)
    with monkeypatch.context() as patch:
        patch.setattr("stublet.parent.model_config.check", lambda config, name: 1 // 0)
        with pytest.raises(InvalidArgument, match=r"version 1 is at UNAVAILABLE state: internal error: the server's log has the details"):
            models.load("m")
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()  # its frames hold the server
    models.load("m")
    assert models.value("m") == 1


# Reloading


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
    obey(models.root, instances=2)
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


def test_what_a_replaced_model_was_asked_is_answered(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m", 2.5)
        until(lambda: not asked.done() and models.core.models["m"][1].instances)
        time.sleep(0.1)
        models.write("m", 2)
        models.load("m")
        assert models.value("m") == 2
        assert not asked.done()
        assert asked.result() == 1


def test_what_an_unloaded_model_was_asked_is_answered(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m", 1.0)
        time.sleep(0.2)
        unloading = models.begin(models.core.unload_model("m"))
        until(lambda: "m" not in models.core.models)
        with pytest.raises(NotFound, match=rf"^{NO_MODEL.format('m')}$"):
            models.value("m")
        assert not asked.done() and not unloading.done()
        assert asked.result() == 1
        unloading.result(30)


def test_a_model_can_be_loaded_while_it_is_still_leaving(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m", 1.0)
        time.sleep(0.2)
        unloading = models.begin(models.core.unload_model("m"))
        models.load("m")
        assert not asked.done()
        assert models.value("m") == 1
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
    models.write("slow", 1, f"import os\n        while not os.path.exists({str(gate)!r}): time.sleep(0.01)")
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


def test_who_asked_may_go_away(models: Controlled) -> None:
    models.write("m", 1, "time.sleep(0.3)")
    loading = models.begin(models.core.load_model("m"))
    until(lambda: models.core._control.is_loading("m"))
    loading.cancel()
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
            time.sleep(0.2)
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
    models.write("slow", 2, f"import os\n        while not os.path.exists({str(gate)!r}): time.sleep(0.01)")
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


# Version policies, and configurations by name


@pytest.mark.parametrize(
    "policy, expected",
    [
        ("", [3]),
        ("version_policy { latest { num_versions: 2 } }", [2, 3]),
        ("version_policy { all { } }", [1, 2, 3]),
        ("version_policy { specific { versions: [1, 3] } }", [1, 3]),
    ],
)
def test_which_versions_are_served(models: Controlled, policy: str, expected: List[int]) -> None:
    for version in (1, 2, 3):
        models.write("m", version, version=version)
    path = models.root / "m" / "config.pbtxt"
    path.write_text(path.read_text().replace("version_policy { all { } }", policy))
    models.load("m")
    assert sorted(models.core.models["m"]) == expected
    assert models.value("m") == expected[-1]
    for version in expected:
        assert models.ready("m", str(version)) and models.value("m", version=version) == version
    for version in {1, 2, 3} - set(expected):
        with pytest.raises(NotFound, match=rf"^Request for unknown model: 'm' version {version} is not found$"):
            models.ready("m", str(version))


def test_a_version_that_the_policy_names_and_that_is_not_there(models: Controlled) -> None:
    models.write("m", 1)
    path = models.root / "m" / "config.pbtxt"
    path.write_text(path.read_text().replace("all { }", "specific { versions: [1, 7] }"))
    with pytest.raises(InvalidArgument, match=r"^failed to load 'm', model 'm' has no version 7, which its version_policy names$"):
        models.load("m")


def test_a_configuration_by_name(repository: Path) -> None:
    with controlled(repository, model_config_name="big") as models:
        for name in ("m", "n"):
            models.write(name, 1)
        (repository / "m" / "configs").mkdir()
        named = (repository / "m" / "config.pbtxt").read_text() + 'name: "of another" instance_group { count: 2 kind: KIND_CPU }'
        (repository / "m" / "configs" / "big.pbtxt").write_text(named)
        (repository / "m" / "configs" / "small.pbtxt").write_text("nonsense")
        for name, count in (("m", 2), ("n", 1)):
            models.load(name)
            assert len(models.pids(name)) == count
            assert models.core.find(name).config_dict["name"] == name
        (repository / "m" / "configs" / "big.pbtxt").write_text("nonsense")
        with pytest.raises(InvalidArgument, match=r"^failed to load 'm', .*configs/big.pbtxt:1:"):
            models.load("m")


def test_a_model_in_two_repositories_keeps_no_other_from_serving(tmp_path: Path) -> None:
    for root, names in (("x", ["twice", "a"]), ("y", ["twice", "b"])):
        for name in names:
            write_model(tmp_path / root, name)
    options = ServerOptions()
    with Server([tmp_path / "x", tmp_path / "y"], exit_on_error=False, options=options) as server:
        models = Controlled(server, tmp_path)
        rows = models.call(server.core.repository_index)
        assert [(row["name"], row["state"]) for row in rows] == [("a", "READY"), ("b", "READY"), ("twice", "UNAVAILABLE")]
        assert rows[2]["reason"].startswith("model 'twice' appears in two or more repositories: ")
        assert not server.ready()


# Configurations and files that come with the request


def test_a_configuration_in_the_place_of_the_file(models: Controlled) -> None:
    models.write("m", 1)
    config = {
        "backend": "python", "max_batch_size": 4, "instance_group": [{"count": 2}],
        "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [1]}], "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    }  # fmt: skip
    models.load("m", json.dumps(config))
    model = models.core.find("m")
    assert (model.max_batch_size, len(model.instances), model.inputs[0].shape) == (4, 2, (-1, 1))
    models.load("m")
    model = models.core.find("m")
    assert (model.max_batch_size, len(model.instances)) == (0, 1)


@pytest.mark.parametrize(
    "config, text",
    [
        ("{", "the configuration is not JSON: "),
        ('{"nonsense": 1}', "the configuration does not hold: "),
        ('{"name": "other", "backend": "python"}', "the model's directory is named 'm', but its configuration says name: 'other'"),
        ('{"backend": "onnx"}', "unable to find backend library for backend 'onnx' of model 'm': "),
        ('{"backend": "python", "default_model_filename": "../../n/1/model.py"}', "'default_model_filename' of model 'm' must be below"),
    ],
)
def test_a_configuration_that_cannot_be(models: Controlled, config: str, text: str) -> None:
    models.write("m", 1)
    models.write("n", 1)
    with pytest.raises(InvalidArgument) as caught:
        models.load("m", config)
    assert str(caught.value).startswith(f"failed to load 'm', {text}")


CONFIG = json.dumps(
    {
        "backend": "python",
        "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    }
)


@pytest.mark.parametrize("key", ["file:1/model.py", "file:/1/model.py"])
def test_a_model_made_of_files(models: Controlled, temporary: Path, key: str) -> None:
    models.load("m", CONFIG, {key: constant(5).encode(), "file:1/data/weights.bin": b"\0" * 1000})
    assert models.value("m") == 5
    (directory,) = temporary.iterdir()
    assert Path(models.core.find("m").directory) == directory / "m"
    models.unload("m")
    assert not directory.exists()


def test_files_in_the_place_of_those_of_the_repository(models: Controlled, temporary: Path) -> None:
    models.write("m", 1)
    models.load("m")
    models.load("m", CONFIG, {"file:7/model.py": constant(5).encode()})
    assert models.value("m") == 5
    assert list(models.core.models["m"]) == [7]
    models.load("m", CONFIG, {"file:8/model.py": constant(6).encode()})
    assert models.value("m") == 6
    until(lambda: len(os.listdir(temporary)) == 1)
    models.load("m")
    assert models.value("m") == 1
    until(lambda: not os.listdir(temporary))


def test_files_that_do_not_load(models: Controlled, temporary: Path) -> None:
    models.write("m", 1)
    models.load("m")
    for files in ({"file:1/model.py": b"x = "}, {"file:1/model.py": constant(5, "raise ValueError()").encode()}, {"file:labels.txt": b""}):
        with pytest.raises(InvalidArgument):
            models.load("m", CONFIG, files)
        with pytest.raises(InvalidArgument):
            models.load("other", CONFIG, files)
        until(lambda: not os.listdir(temporary))
    assert models.value("m") == 1


@pytest.mark.parametrize(
    "config, files, text",
    [
        ("", {"file:1/model.py": b""}, "failed to load 'm', failed to poll from model repository: files are given without a configuration"),
        (CONFIG, {"file:../../x": b""}, "failed to load 'm', the path of 'file:../../x' must lead to a file in the model's directory"),
        (CONFIG, {"1/model.py": b""}, "failed to load 'm', a file is named 'file:<version>/<path>', not '1/model.py'"),
    ],
)
def test_files_that_cannot_be(models: Controlled, temporary: Path, config: str, files: Dict[str, bytes], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        models.load("m", config, files)
    assert str(caught.value) == text
    assert os.listdir(temporary) == []


def test_the_end_of_the_server_removes_the_files(repository: Path, temporary: Path) -> None:
    with controlled(repository) as models:
        models.load("m", CONFIG, {"file:1/model.py": constant(5).encode()})
        assert os.listdir(temporary)
    assert os.listdir(temporary) == []


# The index


def test_the_index_through_the_life_of_a_model(models: Controlled) -> None:
    def index(ready: bool = False) -> List[Dict[str, str]]:
        return models.call(models.core.repository_index, ready)

    models.write("m", 1)
    models.write("m", 2, version=3)
    (models.root / "empty").mkdir()
    assert index() == [{"name": "empty"}, {"name": "m"}]
    models.load("m")
    serving = [{"name": "m", "version": version, "state": "READY"} for version in ("1", "3")]
    assert index() == [{"name": "empty"}, *serving]
    assert index(ready=True) == serving
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(models.value, "m", 0.5)
        until(lambda: models.busy("m"))
        unloading = models.begin(models.core.unload_model("m"))
        until(lambda: "m" not in models.core.models)
        assert index()[1:] == [{**row, "state": "UNLOADING"} for row in serving]
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
    models.write("m", 2, f"import os\n        while not os.path.exists({str(gate)!r}): time.sleep(0.01)", version=2)
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


# Readiness, and what models ask


@pytest.mark.parametrize("version", ["x", "1.5", "\uff11", "1_0", " 1", "9" * 30])
def test_a_version_that_is_no_number(models: Controlled, version: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        models.ready("m", version)
    assert str(caught.value) == (
        f"failed to get model version from specified version string '{version}' (details: stol), version should be an integral value > 0"
    )


@pytest.mark.parametrize("version", ["0", "-1"])
def test_a_version_that_is_no_version(models: Controlled, version: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        models.ready("m", version)
    assert str(caught.value) == (
        f"failed to get model version from specified version string '{version}', version should be an integral value > 0"
    )


def test_whether_an_unknown_model_is_ready(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    assert models.ready("m", "1")
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'n' is not found$"):
        models.ready("n")
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'm' version 2 is not found$"):
        models.ready("m", "2")


ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.sampled_from(["m", "..", "file:1/x", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=200)
@given(
    what=st.sampled_from(["model.load", "model.unload", "model.ready", "model", ""]) | ARGUMENTS,
    arguments=st.lists(ARGUMENTS, max_size=4).map(tuple) | st.tuples(st.text(max_size=4), st.text(max_size=4), ARGUMENTS),
)
def test_any_question_of_a_stub_is_answered_or_refused(some: Controlled, what: Any, arguments: Any) -> None:
    try:
        some.begin(some.core.ask(what, arguments)).result(30)
    except ServerError as error:
        assert str(error)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    with controlled(tmp_path_factory.mktemp("some") / "models") as models:
        yield models


# From inside a model


def run(models: Controlled, code: str, name: str = "obey") -> str:
    """What the model ``obey`` says to a piece of Python."""
    (result,) = models.server.infer(name, {"CODE": np.array([code], object)})["RESULT"].reshape(-1)
    return bytes(result).decode()


def refused(call: str) -> str:
    return f"\ntry:\n    {call}\nexcept pb_utils.TritonModelException as error:\n    result = str(error)\n"


def test_a_model_controls_another(models: Controlled) -> None:
    obey(models.root)
    models.write("m", 1)
    models.load("obey")
    assert run(models, "pb_utils.load_model('m'); result = str(pb_utils.is_model_ready('m'))") == "True"
    assert models.value("m") == 1
    assert run(models, f"pb_utils.load_model('m', {CONFIG!r}, {{'file:3/model.py': {constant(3).encode()!r}}})") == ""
    assert models.value("m", version=3) == 3
    assert NO_MODEL.format("m") in run(models, "pb_utils.unload_model('m')" + refused("pb_utils.is_model_ready('m')"))


def test_what_a_model_is_told_of_what_cannot_be(models: Controlled) -> None:
    obey(models.root)
    models.load("obey")
    assert "failed to load 'm', failed to poll from model repository" in run(models, refused("pb_utils.load_model('m')"))
    assert NO_MODEL.format("m") in run(models, refused("pb_utils.is_model_ready('m')"))


def test_a_model_loads_another_in_initialize(models: Controlled) -> None:
    obey(models.root, initialize="pb_utils.load_model('m')")
    models.write("m", 1)
    models.load("obey")
    assert models.value("m") == 1


def test_a_model_unloads_itself(models: Controlled) -> None:
    obey(models.root)
    models.load("obey")
    assert run(models, "pb_utils.unload_model('obey'); result = 'gone'") == "gone"
    with pytest.raises(NotFound):
        run(models, "pass")


def test_a_model_reloads_itself(models: Controlled) -> None:
    path = obey(models.root)
    models.load("obey")
    (pid,) = models.pids("obey")
    (path / "1" / "model.py").touch()
    assert run(models, "pb_utils.load_model('obey'); result = str(os.getpid())") == str(pid)
    assert run(models, "result = str(os.getpid())") != str(pid)


def test_a_model_cannot_wait_for_itself_to_be_loaded(models: Controlled) -> None:
    obey(models.root, initialize="pb_utils.load_model('obey')")
    with pytest.raises(InvalidArgument, match="model 'obey' is being loaded and cannot wait for 'obey', which waits for it"):
        models.load("obey")


def test_models_cannot_wait_for_each_other_to_be_loaded(models: Controlled) -> None:
    obey(models.root, "a", initialize="pb_utils.load_model('b')")
    obey(models.root, "b", initialize="pb_utils.load_model('a')")
    with pytest.raises(InvalidArgument, match="is being loaded and cannot wait for"):
        models.load("a")


def test_a_model_cannot_control_others_in_a_server_without_control(repository: Path) -> None:
    obey(repository)
    write_model(repository, "m", ECHO)
    with controlled(repository, mode="none") as models:
        assert "explicit model load / unload is not allowed" in run(models, refused("pb_utils.unload_model('m')"))
        assert run(models, "result = str(pb_utils.is_model_ready('m'))") == "True"
