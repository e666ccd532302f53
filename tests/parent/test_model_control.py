"""Models that come and go while the server runs, which of their versions serve, and who is ready: spec 1.12 and 5.6."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List

import pytest
from controlled import NO_MODEL, Controlled, controlled
from model_repository import write_model
from server_process import alive
from stublet.parent import InvalidArgument, NotFound, Server, Unavailable
from stublet.parent.options import ServerOptions

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
    path.write_text(path.read_text().replace("all { }", "specific { versions: [7] }"))
    with pytest.raises(InvalidArgument, match=r"^failed to load 'm', at least one version must be available under the version policy of"):
        models.load("m")
    path.write_text(path.read_text().replace("[7]", "[1, 7]"))
    models.load("m")
    assert sorted(models.core.models["m"]) == [1]
    models.write("m", 7, version=7)
    models.load("m")
    assert models.value("m") == 7 and models.value("m", version=1) == 1


def test_the_latest_follow_the_versions_that_there_are(models: Controlled) -> None:
    path = models.root / "m" / "config.pbtxt"

    def load(*written: int) -> List[int]:
        for version in written:
            models.write("m", version, version=version)
        path.write_text(path.read_text().replace("all { }", "latest { num_versions: 2 }"))
        models.load("m")
        served = sorted(models.core.models["m"])
        assert models.value("m") == served[-1]
        return served

    assert load(1, 4, 20) == [4, 20]
    assert load(100) == [20, 100]
    shutil.rmtree(models.root / "m" / "100")
    assert load() == [4, 20]
    models.unload("m")
    with pytest.raises(NotFound, match=rf"^{NO_MODEL.format('m')}$"):
        models.value("m", version=4)


def test_a_newer_version_that_fails_leaves_those_that_serve(models: Controlled) -> None:
    models.write("m", 1)
    models.load("m")
    models.write("m", 2, "raise ValueError('odd')", version=2)
    with pytest.raises(InvalidArgument, match=r"version 2 is at UNAVAILABLE state: ValueError: odd"):
        models.load("m")
    assert models.value("m") == models.value("m", version=1) == 1
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'm' version 2 is not found$"):
        models.value("m", version=2)


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


# Readiness


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
