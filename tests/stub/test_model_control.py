"""``pb_utils.load_model``, ``unload_model`` and ``is_model_ready``: spec 1.12, row by row."""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import pytest
from stublet.stub.error import TritonModelException
from stublet.stub.host import host
from stublet.stub.model_control import is_model_ready, load_model, unload_model

REFUSED = "Failed to process the request for model 'model_0_0', message: "
Asked = List[Tuple[Any, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What reaches the server, which agrees to everything."""
    found: Asked = []
    monkeypatch.setattr(host, "ask", lambda *question: found.append(question) or True)
    monkeypatch.setattr(host, "instance", "model_0_0")
    return found


@pytest.mark.parametrize(
    "call, question",
    [
        (lambda: load_model("m"), ("model.load", "m", "", {})),
        (lambda: load_model("m", "{}"), ("model.load", "m", "{}", {})),
        (
            lambda: load_model(model_name="m", config="{}", files={"file:1/model.py": b"x"}),
            ("model.load", "m", "{}", {"file:1/model.py": b"x"}),
        ),
        (lambda: unload_model("m"), ("model.unload", "m", False)),
        (lambda: unload_model(model_name="m", unload_dependents=True), ("model.unload", "m", True)),
    ],
)
def test_orders_reach_the_server(asked: Asked, call: Callable[[], Any], question: Any) -> None:
    assert call() is None
    assert asked == [question]


@pytest.mark.parametrize("version", ["", "1", "007", "+2"])
@pytest.mark.parametrize("ready", [True, False])
def test_readiness(asked: Asked, monkeypatch: pytest.MonkeyPatch, version: str, ready: bool) -> None:
    assert is_model_ready("m", version) is True
    monkeypatch.setattr(host, "ask", lambda *_: ready)
    assert is_model_ready(model_name="m", model_version=version) is ready
    assert asked == [("model.ready", "m", version)]


def test_the_newest_version_is_meant_by_default(asked: Asked) -> None:
    is_model_ready("m")
    assert asked == [("model.ready", "m", "")]


@pytest.mark.parametrize(
    "version, details", [("x", " (details: stol)"), ("1.0", " (details: stol)"), ("1_0", " (details: stol)"), ("-1", ""), ("0", "")]
)
def test_a_version_that_is_none(asked: Asked, version: str, details: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        is_model_ready("m", version)
    assert str(raised.value) == (
        f"Failed to check model readiness: {REFUSED}failed to get model version from specified version string '{version}'{details}, "
        "version should be an integral value > 0"
    )
    assert not asked


@pytest.mark.parametrize("files", [[], "x", [("file:1/model.py", b"x")]])
def test_files_that_are_no_dict(asked: Asked, files: Any) -> None:
    with pytest.raises(TritonModelException) as raised:
        load_model("m", "{}", files)
    assert str(raised.value) == "failed to load model 'm', files should be a dictionary of file paths and file contents"
    assert not asked


@pytest.mark.parametrize(
    "call",
    [
        lambda: load_model(None),  # type: ignore[arg-type]
        lambda: load_model(),  # type: ignore[call-arg]
        lambda: load_model("m", None),  # type: ignore[arg-type]
        lambda: load_model("m", {}),  # type: ignore[arg-type]
        lambda: load_model("m", "{}", {1: b"x"}),  # type: ignore[dict-item]
        lambda: load_model("m", "{}", {"file:1/model.py": "x"}),  # type: ignore[dict-item]
        lambda: unload_model(None),  # type: ignore[arg-type]
        lambda: unload_model("m", "x"),  # type: ignore[arg-type]
        lambda: unload_model("m", None),  # type: ignore[arg-type]
        lambda: is_model_ready(None),  # type: ignore[arg-type]
        lambda: is_model_ready("m", 1),  # type: ignore[arg-type]
        lambda: is_model_ready("m", None),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_type_errors(asked: Asked, call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"load_model|is_model_ready"):
        call()
    assert not asked


@pytest.mark.parametrize(
    "call, prefix",
    [
        (load_model, "Failed to load model: "),
        (unload_model, "Failed to unload model: "),
        (is_model_ready, "Failed to check model readiness: "),
    ],
)
def test_what_the_server_refuses_is_told(monkeypatch: pytest.MonkeyPatch, call: Callable[[str], Any], prefix: str) -> None:
    def refuse(*_: Any) -> None:
        raise TritonModelException("Request for unknown model: 'm' is not found")

    monkeypatch.setattr(host, "ask", refuse)
    for instance, middle in (("", ""), ("model_0_0", REFUSED)):
        monkeypatch.setattr(host, "instance", instance)
        with pytest.raises(TritonModelException) as raised:
            call("m")
        assert str(raised.value) == f"{prefix}{middle}Request for unknown model: 'm' is not found"


@pytest.mark.parametrize("call", [load_model, unload_model, is_model_ready])
def test_there_must_be_a_server(call: Callable[[str], Any]) -> None:
    with pytest.raises(TritonModelException, match="there is no server in this process"):
        call("m")
