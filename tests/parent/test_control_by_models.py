"""What models ask of the repository: to load, to unload, and who is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from controlled import CONFIG, NO_MODEL, Controlled, constant, controlled
from hypothesis import given, settings
from hypothesis import strategies as st
from model_repository import ECHO, obey, write_model
from stublet.parent import InvalidArgument, NotFound, ServerError

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
