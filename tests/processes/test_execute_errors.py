"""What a model does wrong in ``execute`` fails that request only (spec 2.4); the instance goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest
from http_wire import Wire, infer, request, tensor
from model_repository import obey, write_model
from server_process import ServerProcess, serving, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("execute")
    obey(root / "models")
    with serving(root, root / "models", tracebacks=True) as server:
        yield server


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    with server.wire() as wire:
        yield wire


def told(code: str) -> bytes:
    return infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]})


FAILED = "Failed to process the request(s) for model 'obey_0_0', message: "
RESPONSE = "pb_utils.InferenceResponse([pb_utils.Tensor('RESULT', np.array(['x'], object))])"

WRONG = [
    ("raise ValueError('no such thing')", "ValueError: no such thing"),
    ("raise KeyError('déjà 日本')", "KeyError: 'déjà 日本'"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("raise RuntimeError()", "RuntimeError"),
    ("raise pb_utils.TritonModelException('mine')", "TritonModelException: mine"),
    ("sys.exit(3)", "SystemExit: 3"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("raise MemoryError('full')", "MemoryError: full"),
    ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ("assert False, 'x' * 200_000", "AssertionError: " + "x" * 200_000),
    ("returned = ()", "Expected a list in the execute return, found type '<class 'tuple'>'."),
    ("returned = 5", "Expected a list in the execute return, found type '<class 'int'>'."),
    (
        "returned = []",
        "Number of InferenceResponse objects do not match the number of InferenceRequest objects. InferenceRequest(s) size is:1, and "
        "InferenceResponse(s) size is:0\n",
    ),
    (
        f"returned = [{RESPONSE}] * 2",
        "Number of InferenceResponse objects do not match the number of InferenceRequest objects. InferenceRequest(s) size is:1, and "
        "InferenceResponse(s) size is:2\n",
    ),
    ("returned = ['x']", "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'str'>'."),
]


@pytest.mark.parametrize("code, text", WRONG, ids=[code[:40] for code, _ in WRONG])
def test_what_is_wrong_is_told(wire: Wire, server: ServerProcess, code: str, text: str) -> None:
    pid = server.stubs()["obey_0_0"]
    answer = wire.ask(told(code))
    assert answer.status == 500
    assert answer.error.startswith(FAILED)
    assert text in answer.error
    good = wire.ask(told("result = str(os.getpid())"))
    assert good.json()["outputs"][0]["data"] == [str(pid)], "the same process goes on"
    assert wire.ask(request("GET", "/v2/models/obey/ready")).status == 200


def test_the_traceback_is_in_the_log(wire: Wire, server: ServerProcess) -> None:
    pid = server.stubs()["obey_0_0"]
    wire.ask(told("raise ValueError('look for me')"))
    until(lambda: "\n  ValueError: look for me" in server.log)
    (head,) = [line for line in server.log.splitlines() if "message: ValueError: look for me" in line]
    assert head.startswith("E")
    assert f" {pid} obey_0_0 " in head
    assert "exec(request.inputs()[0].as_numpy()[0].decode(), scope)" in server.log


@pytest.mark.parametrize(
    "code, status",
    [
        ("UNKNOWN", 400), ("INTERNAL", 500), ("NOT_FOUND", 404), ("INVALID_ARG", 400), ("UNAVAILABLE", 503), ("UNSUPPORTED", 501),
        ("ALREADY_EXISTS", 400), ("CANCELLED", 400),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", [{}, {"accept-encoding": "identity"}], ids=["direct", "asgi"])
def test_errors_of_a_model_have_their_status(wire: Wire, code: str, status: int, way: dict[str, str]) -> None:
    text = f"returned = [pb_utils.InferenceResponse(error=pb_utils.TritonError('so: é', pb_utils.TritonError.{code}))]"
    answer = wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [text])]}, headers=way))
    assert (answer.status, answer.error) == (status, "so: é")


@pytest.mark.parametrize(
    "code", ["raise ValueError('a\\udcffb')", "returned = [pb_utils.InferenceResponse(error=pb_utils.TritonError('a\\udcffb'))]"]
)
def test_text_that_has_no_utf_8_form(repository: Path, serve: Any, code: str) -> None:
    """File names that are not UTF-8 come as such text, and from there into messages."""
    obey(repository)
    server = serve()
    with server.wire() as wire:
        answer = wire.ask(told(code))
        assert answer.status == 500
        assert "a\\udcffb" in answer.error
        assert wire.ask(told("pass")).status == 200
    server.stop(tracebacks=True)


def test_an_output_that_is_not_of_the_configuration_is_dropped(wire: Wire) -> None:
    answer = wire.ask(told("returned = [pb_utils.InferenceResponse([pb_utils.Tensor('OTHER', np.zeros(3))])]"))
    assert (answer.status, answer.json()["outputs"]) == (200, [])


def test_a_response_may_have_no_outputs(wire: Wire) -> None:
    assert wire.ask(told("returned = [pb_utils.InferenceResponse()]")).json()["outputs"] == []


def test_a_model_without_execute(repository: Path, serve: Any) -> None:
    directory = write_model(repository, "nothing", "class TritonPythonModel:\n    pass\n")
    server = serve()
    with server.wire() as wire:
        answer = wire.ask(infer("nothing", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}))
        assert answer.status == 500
        assert f"Python model {directory}/1/model.py does not implement `execute` method." in answer.error
    server.stop(tracebacks=True)
