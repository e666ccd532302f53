"""``set_release_flags`` (spec 2.8) under a scheduler that cannot give a request again, which is every one of this version."""

from __future__ import annotations

from typing import Callable, Iterator, List

import pytest
from scripted import Scripted, quiet, room, scripted, texts
from stublet.parent import Server

AGAIN = "request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)\n"
ALL = "request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_ALL)\n"
NOT_AGAIN = "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, which the scheduler of model '{}' does not support"
FAILED = "Failed to process the request(s) for model 'plain_0_0', message: "
FOUND = (
    "TritonModelException: Expected a None object in the execute function return list for reschduled request, found type "
    "'<class 'stublet.stub.response.InferenceResponse'>'."
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("rescheduling")
    scripted(root, "plain")
    scripted(root, "many", decoupled=True)
    with Server(root, options=room()) as server:
        yield server


Get = Callable[[str], Scripted]


@pytest.fixture
def get(server: Server) -> Iterator[Get]:
    """The models by name, in good order before and after."""
    models = {name: Scripted(server, name) for name in ("plain", "many")}
    pids = {name: model.pids for name, model in models.items()}
    with quiet(server):
        yield models.__getitem__
        for name, model in models.items():
            assert model.value("os.getpid()") == str(*pids[name]), "the same process goes on"


@pytest.mark.parametrize(
    "code, text",
    [
        (AGAIN + "returned = [None]", NOT_AGAIN.format("plain")),
        (AGAIN + "returned = None", NOT_AGAIN.format("plain")),
        (AGAIN + "await asyncio.sleep(0); returned = [None]", NOT_AGAIN.format("plain")),
        ("await asyncio.sleep(0)\n" + AGAIN + "returned = None", NOT_AGAIN.format("plain")),
        (AGAIN + "result = 'x'", FAILED + FOUND),
        (AGAIN + "await asyncio.sleep(0); result = 'x'", FAILED + FOUND),
        (AGAIN + "returned = [failure('x')]", FAILED + FOUND),
        (AGAIN + "raise ValueError('x')", FAILED + "ValueError: x"),
        ("request.set_release_flags(3)", FAILED + "TritonModelException: Invalid release flags 3"),
        ("request.set_release_flags(0)", FAILED + "TritonModelException: Invalid release flags 0"),
        ("request.set_release_flags('x')", FAILED + "TypeError: "),
        ("request.set_release_flags(None)", FAILED + "TypeError: "),
    ],
)
def test_a_plain_model(get: Get, code: str, text: str) -> None:
    assert get("plain").fail(code).startswith(f"INTERNAL: {text}")


@pytest.mark.parametrize(
    "code, expected",
    [
        (AGAIN, ["error: " + NOT_AGAIN.format("many")]),
        (AGAIN + "sender.send(response('a'))", ["a", "error: " + NOT_AGAIN.format("many")]),
        (AGAIN + "sender.send(response('a'), FINAL)", ["a"]),
        (AGAIN + "raise ValueError('x')", ["error: " + FAILED.replace("plain", "many") + "ValueError: x"]),
        (AGAIN + ALL + "sender.send(response('a'), FINAL)", ["a"]),
    ],
)
def test_a_decoupled_model(get: Get, code: str, expected: List[str]) -> None:
    assert get("many").items(code) == expected


@pytest.mark.parametrize(
    "code",
    [
        ALL + "result = 'x'",
        AGAIN + ALL + "result = 'x'",
        ALL + "sender.send(response('x'), FINAL); returned = None",
        AGAIN + "sender.send(response('x'), FINAL); returned = [None]",
        "call('plain').set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE); result = 'x'",
    ],
)
def test_what_is_answered_all_the_same(get: Get, code: str) -> None:
    assert get("plain").say(code) == "x"


def test_its_sender_is_closed(get: Get) -> None:
    for name in ("plain", "many"):
        model = get(name)
        with model.stream("model.sender = sender\n" + AGAIN + "returned = None") as stream:
            assert texts(stream) == ["error: " + NOT_AGAIN.format(name)]
        assert "sender has been closed" in model.value("raised(model.sender.send, response('x'), FINAL)")
        model.tell("model.sender = None")


def test_another_model_is_told(get: Get) -> None:
    code = f"result = said(call('plain', {AGAIN + 'returned = None'!r}).exec())"
    (answer,) = get("many").items(code + "\nsender.send(response(result), FINAL)")
    assert answer == "error: " + NOT_AGAIN.format("plain")
