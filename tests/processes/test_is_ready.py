"""A model's own ``is_ready`` (spec 2.9): asked beside everything else, within a time, and believed only when it says True."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Iterator, List

import pytest
from http_wire import infer, request, tensor
from scripted import Scripted, check_ready, checked_ready, quiet, room, scripted
from server_process import serving, until
from stublet.parent import Server, instance

IS_READY = """
def is_ready():
    model.executed.append(1)
    scope = {**globals()}
    value = eval(compile(model.ready, "ready", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
    async def later():
        await value
        return scope["answer"]
    return later() if inspect.iscoroutine(value) else scope["answer"]
model.ready = "answer = True"
model.is_ready = is_ready
"""

READY = ""
FAILED = "Model 'plain_0_0' is not ready (user-defined check failed)."
TIMED_OUT = "Timed out waiting for user-defined is_ready() response"
JOINED_TIMED_OUT = "Timed out waiting for in-flight is_ready() response"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("is_ready")
    scripted(root, "plain", initialize=IS_READY)
    scripted(root, "many", decoupled=True, initialize=IS_READY)
    scripted(root, "asks")
    with Server(root, options=room()) as server:
        yield server


@pytest.fixture
def plain(server: Server) -> Iterator[Scripted]:
    """The model, ready before and after."""
    model = Scripted(server, "plain")
    (pid,) = model.pids
    with quiet(server):
        yield model
        model.tell("model.ready = 'answer = True'; model.released.set(); gc.collect()")
        until(lambda: check_ready(model) == READY)
        model.tell("model.executed.clear(); model.released.clear()")
        assert model.value("os.getpid()") == str(pid), "the same process goes on"


def checks(model: Scripted, number: int) -> List[str]:
    """Of so many at once."""

    async def all_of_them() -> List[str]:
        return await asyncio.gather(*(checked_ready(model) for _ in range(number)))

    return asyncio.run_coroutine_threadsafe(all_of_them(), model.server.loop).result(30)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "code, expected",
    [
        ("answer = True", READY),
        ("answer = False", FAILED),
        ("answer = None", FAILED),
        ("answer = 1", FAILED),
        ("answer = 0", FAILED),
        ("answer = 'yes'", FAILED),
        ("answer = np.bool_(True)", FAILED),
        ("answer = object()", FAILED),
        ("answer = [True]", FAILED),
        ("raise ValueError('no')", FAILED),
        ("sys.exit(0)", FAILED),
        ("raise KeyboardInterrupt", FAILED),
        ("await asyncio.sleep(0); answer = True", READY),
        ("await asyncio.sleep(0); answer = False", FAILED),
        ("await asyncio.sleep(0); answer = 1", FAILED),
        ("await asyncio.sleep(0); raise ValueError('no')", FAILED),
        ("await asyncio.sleep(0); sys.exit(1)", FAILED),
        ("raise asyncio.CancelledError", FAILED),
        ("await asyncio.sleep(0); raise asyncio.CancelledError", FAILED),
        ("answer = said(call('asks', 'result = 1').exec()) == '1'", READY),
        ("answer = said(await call('asks', 'result = 1').async_exec()) == '1'", READY),
    ],
)
@pytest.mark.parametrize("name", ["plain", "many"])
def test_what_it_says(plain: Scripted, name: str, code: str, expected: str) -> None:
    model = Scripted(plain.server, name)
    model.tell(f"model.ready = {code!r}")
    assert check_ready(model) == expected.replace("plain", name)
    assert model.value("'it serves all the same'") == "it serves all the same"
    model.tell("model.ready = 'answer = True'")
    assert check_ready(model) == READY


def test_the_whole_server(plain: Scripted) -> None:
    assert plain.server.ready()
    plain.tell("model.ready = 'answer = False'")
    assert not plain.server.ready()


def test_a_model_without_it(server: Server) -> None:
    assert check_ready(Scripted(server, "asks")) == READY


def test_a_failure_is_in_the_log(plain: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    plain.tell("model.ready = \"raise ValueError('look for me')\"")
    assert check_ready(plain) == FAILED
    (record,) = [record for record in caplog.records if record.getMessage() == "is_ready of 'plain_0_0' failed"]
    assert "ValueError: look for me" in record.about["exception"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", ["model.released.wait(30); answer = True", "await until_async(model.released.is_set); answer = True"])
def test_a_slow_one(plain: Scripted, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """It runs on when nobody waits any more; inference goes on meanwhile; a later check joins it."""
    monkeypatch.setattr(instance, "READY_SECONDS", 0.1)
    plain.tell(f"model.executed.clear(); model.ready = {code!r}")
    assert check_ready(plain) == TIMED_OUT
    assert plain.value("'served'") == "served"
    assert check_ready(plain) == JOINED_TIMED_OUT
    monkeypatch.setattr(instance, "READY_SECONDS", 30)

    async def join() -> List[str]:
        joining = asyncio.gather(*(checked_ready(plain) for _ in range(10)))
        for _ in range(3):
            await asyncio.sleep(0)  # they have joined
        await asyncio.get_running_loop().run_in_executor(None, plain.tell, "model.released.set()")
        return await joining

    found = asyncio.run_coroutine_threadsafe(join(), plain.server.loop).result(30)  # type: ignore[arg-type]
    assert found == [READY] * 10
    assert plain.value("model.executed") == "[1]"


def test_checks_at_once_are_one(plain: Scripted) -> None:
    plain.tell("model.executed.clear(); model.ready = 'time.sleep(0.1); answer = True'")
    assert checks(plain, 50) == [READY] * 50
    assert plain.value("model.executed") == "[1]"
    assert [check_ready(plain) for _ in range(2)] == [READY] * 2
    assert plain.value("model.executed") == "[1, 1, 1]"


def test_while_execute_is_busy(plain: Scripted, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    with plain.stream(f"until(lambda: os.path.exists({str(flag)!r}))") as stream:
        assert [check_ready(plain) for _ in range(3)] == [READY] * 3
        flag.touch()
        next(stream)


@pytest.mark.parametrize("way", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "await asyncio.sleep(0); os._exit(3)"])
def test_the_process_dies_in_it(tmp_path: Path, way: str) -> None:
    scripted(tmp_path, "plain", initialize=f"{IS_READY}\nmodel.ready = {way!r}", restart_limit="0")
    with Server(tmp_path) as server:
        model = Scripted(server, "plain")
        assert model.value("'served'") == "served"
        assert check_ready(model).startswith("Stub process 'plain_0_0' is not healthy: it ended with ")
        assert "Stub process 'plain_0_0' is not healthy: it ended with " in check_ready(model)
        assert not server.ready()


def test_it_hangs_when_the_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "READY_SECONDS", 0.05)
    for number, code in enumerate(["time.sleep(60)", "await asyncio.sleep(60)"]):
        scripted(tmp_path / str(number), "plain", initialize=f"{IS_READY}\nmodel.ready = {code!r}")
        with Server(tmp_path / str(number)) as server:
            assert check_ready(Scripted(server, "plain")) == TIMED_OUT
            started = time.monotonic()
        assert time.monotonic() - started < 15


def test_every_instance_is_asked(tmp_path: Path) -> None:
    scripted(tmp_path, "plain", instances=3, initialize=f"{IS_READY}\nmodel.ready = \"answer = not model.instance.endswith('1')\"")
    with Server(tmp_path) as server:
        assert check_ready(Scripted(server, "plain")) == FAILED.replace("0_0", "0_1")


def test_over_http(tmp_path: Path) -> None:
    root = tmp_path / "models"
    scripted(root, "plain", initialize=IS_READY)

    def told(code: str) -> bytes:
        return infer("plain", {"inputs": [tensor("CODE", "BYTES", [1], [code])]})

    with serving(tmp_path, root, tracebacks=True) as server, server.wire() as wire:
        for code, status in (("answer = True", 200), ("answer = False", 400), ("raise ValueError", 400), ("answer = True", 200)):
            assert wire.ask(told(f"model.ready = {code!r}")).status == 200
            for path in ("/v2/models/plain/ready", "/v2/models/plain/versions/1/ready", "/v2/health/ready"):
                assert wire.ask(request("GET", path)).status == status, (path, code)
            assert wire.ask(request("GET", "/v2/health/live")).status == 200
