"""``--model-control-mode=poll``: what is in the repository is what is served."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Coroutine, Dict, Iterator, List, Tuple

import pytest
from controlled import Controlled, controlled
from model_repository import write_model
from server_process import alive, until
from stublet.parent import NotFound, Server, Unavailable
from stublet.parent.model_source import Source
from stublet.parent.options import ServerOptions
from stublet.parent.repository_poller import Poller, compare

SECONDS = 0.05


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Controlled]:
    """A server that follows its repository."""
    with controlled(tmp_path / "models", mode="poll", repository_poll_secs=SECONDS) as models:
        yield models


def served(models: Controlled, name: str, value: float) -> bool:
    try:
        return models.value(name) == value
    except (NotFound, Unavailable):
        return False


def index(models: Controlled, name: str) -> List[Dict[str, str]]:
    return [row for row in models.call(models.core.repository_index) if row["name"] == name]


@pytest.mark.parametrize(
    "before, now, faults_before, faults, expected",
    [
        ({}, {}, {}, {}, ([], [], [])),
        ({}, {"m": 1}, {}, {}, (["m"], [], [])),
        ({"m": 1}, {"m": 1}, {}, {}, ([], [], [])),
        ({"m": 1}, {"m": 2}, {}, {}, (["m"], [], [])),
        ({"m": 1, "n": 1}, {"n": 1}, {}, {}, ([], ["m"], [])),
        ({"m": 1}, {}, {}, {"m": "twice"}, ([], [], ["m"])),
        ({"m": 1}, {}, {"m": "twice"}, {"m": "twice"}, ([], [], [])),
        ({"m": 1}, {}, {"m": "twice"}, {"m": "unreadable"}, ([], [], ["m"])),
        ({"m": 1}, {"m": 1}, {"m": "twice"}, {}, ([], [], [])),
        ({}, {"m": 1}, {"m": "twice"}, {}, (["m"], [], [])),
        ({}, {}, {"m": "twice"}, {}, ([], ["m"], [])),
    ],
)
def test_what_is_to_be_done(
    before: Dict[str, int], now: Dict[str, int], faults_before: Dict[str, str], faults: Dict[str, str], expected: Tuple[List[str], ...]
) -> None:
    assert tuple(compare(before, now, faults_before, faults)) == expected


class Told:
    """An owner that keeps what it was told."""

    def __init__(self) -> None:
        self.news: List[str] = []

    def changed(self, source: Source) -> None:
        self.news.append(f"changed {source.files.name} {source.files.versions}")

    def gone(self, name: str) -> None:
        self.news.append(f"gone {name}")

    def failed(self, name: str, reason: str) -> None:
        self.news.append(f"failed {name}")

    def of(self, look: Coroutine[Any, Any, None]) -> List[str]:
        """What it is told at a look."""
        self.news.clear()
        asyncio.run(look)
        return list(self.news)


def test_what_is_still_being_written_is_not_loaded(tmp_path: Path) -> None:
    told = Told()
    poller = Poller([str(tmp_path)], "", "", told)
    write_model(tmp_path, "a")
    assert told.of(poller.look(settled=True)) == ["changed a [1]"]
    directory = write_model(tmp_path, "b")
    assert told.of(poller.look()) == []
    (directory / "config.pbtxt").write_text("")
    assert told.of(poller.look()) == []
    (directory / "2").mkdir()
    (directory / "2" / "model.py").write_text("")
    assert told.of(poller.look()) == []
    assert told.of(poller.look()) == ["changed b [1, 2]"]
    assert told.of(poller.look()) == []
    (directory / "config.pbtxt").write_text("#")
    assert told.of(poller.look()) == []
    (directory / "config.pbtxt").write_text("##")
    shutil.rmtree(tmp_path / "a")
    assert told.of(poller.look()) == ["gone a"]
    shutil.rmtree(directory)
    assert told.of(poller.look()) == ["gone b"]


def test_what_was_never_whole_is_nothing_that_goes(tmp_path: Path) -> None:
    told = Told()
    poller = Poller([str(tmp_path)], "", "", told)
    assert told.of(poller.look(settled=True)) == []
    directory = write_model(tmp_path, "a")
    assert told.of(poller.look()) == []
    shutil.rmtree(directory)
    assert told.of(poller.look()) == []


def test_models_come_change_and_go(models: Controlled) -> None:
    assert models.core.ready
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    models.write("m", 2)
    until(lambda: served(models, "m", 2))
    pids = models.pids("m")
    shutil.rmtree(models.root / "m")
    until(lambda: "m" not in models.core.models and not any(map(alive, pids)))
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'm' is not found$"):
        models.value("m")
    until(lambda: index(models, "m") == [])


def test_what_is_there_at_the_start_is_waited_for(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for name in ("a", "b"):
        write_model(root, name)
    write_model(root, "bad", config="nonsense")
    with controlled(root, mode="poll", repository_poll_secs=3600) as models:
        assert models.ready("a") and models.ready("b")
        assert list(models.core.failures) == ["bad"]


def test_what_has_not_changed_stays(models: Controlled) -> None:
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    pids = models.pids("m")
    models.write("n", 1)
    until(lambda: served(models, "n", 1))
    assert models.pids("m") == pids


def test_versions_come_and_go(models: Controlled) -> None:
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    models.write("m", 2, version=2)
    until(lambda: served(models, "m", 2))
    assert models.value("m", version=1) == 1
    shutil.rmtree(models.root / "m" / "1")
    until(lambda: list(models.core.models["m"]) == [2])


def test_a_failing_reload_keeps_what_serves_and_is_tried_once(models: Controlled, caplog: pytest.LogCaptureFixture) -> None:
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    pids = models.pids("m")
    (models.root / "m" / "1" / "model.py").write_text("x = 1 / 0")
    until(lambda: "ZeroDivisionError" in caplog.text)
    for name in ("n", "o"):  # each is seen by a look of its own
        models.write(name, 1)
        until(lambda name=name: served(models, name, 1))
    assert caplog.text.count("failed to load 'm'") == 1
    assert models.pids("m") == pids and models.value("m") == 1 and models.core.ready
    models.write("m", 3)
    until(lambda: served(models, "m", 3))


def test_a_model_that_failed_is_loaded_when_it_has_changed(models: Controlled) -> None:
    write_model(models.root, "m", "x = 1 / 0")
    until(lambda: "m" in models.core.failures)
    assert not models.core.ready
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    assert models.core.ready


def test_a_model_that_failed_and_is_removed_is_no_failure(models: Controlled) -> None:
    write_model(models.root, "m", "x = 1 / 0")
    until(lambda: "m" in models.core.failures)
    shutil.rmtree(models.root / "m")
    until(lambda: models.core.ready)


def test_instance_groups_change_in_place(models: Controlled) -> None:
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    first = models.pids("m")
    models.regroup("m", 3)
    until(lambda: len(models.pids("m")) == 3 and "m" in models.core.models)
    assert models.pids("m")[:1] == first
    models.regroup("m", 1)
    until(lambda: models.pids("m") == first)


def test_no_request_fails_while_the_repository_changes(models: Controlled) -> None:
    models.write("m", 0)
    until(lambda: served(models, "m", 0))
    stop = threading.Event()
    seen = set()

    def ask() -> None:
        while not stop.is_set():
            seen.add(models.value("m", 0.001))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for value in (1, 2):
                models.write("m", value)
                until(lambda value=value: value in seen)
        finally:
            stop.set()
    for future in asking:
        future.result()
    assert seen == {0, 1, 2}


def test_a_model_that_comes_into_a_second_repository(tmp_path: Path) -> None:
    for root in ("x", "y"):
        (tmp_path / root).mkdir()
    options = ServerOptions(model_control_mode="poll", repository_poll_secs=SECONDS)
    with Server([tmp_path / "x", tmp_path / "y"], exit_on_error=False, options=options) as server:
        models, others = Controlled(server, tmp_path / "x"), Controlled(server, tmp_path / "y")
        models.write("m", 1)
        until(lambda: served(models, "m", 1))
        pids = models.pids("m")
        others.write("m", 2)
        others.write("n", 2)
        until(lambda: served(others, "n", 2))
        assert models.pids("m") == pids and models.value("m") == 1
        shutil.rmtree(tmp_path / "y" / "m")
        others.write("n", 3)
        until(lambda: served(others, "n", 3))
        assert models.pids("m") == pids
        others.write("m", 4)
        shutil.rmtree(tmp_path / "x" / "m")
        until(lambda: served(models, "m", 4))


def test_a_repository_that_is_away_changes_nothing(models: Controlled, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    models.root.rename(tmp_path / "away")
    until(lambda: "the model repositories cannot be polled: " in caplog.text)
    assert models.value("m") == 1 and models.core.ready
    (tmp_path / "away").rename(models.root)
    models.write("m", 2)
    until(lambda: served(models, "m", 2))
    assert caplog.text.count("cannot be polled") == 1


def test_nothing_is_loaded_or_unloaded_on_request(models: Controlled) -> None:
    models.write("m", 1)
    until(lambda: served(models, "m", 1))
    for change in (models.load, models.unload):
        with pytest.raises(Unavailable, match=r"^explicit model load / unload is not allowed if polling is enabled$"):
            change("m")
