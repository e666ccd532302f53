"""Requests that nobody waits for any more (spec 2.7): a queued one is never executed, a model that asks is told."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterator

import pytest
from http_wire import infer, request, tensor
from scripted import Scripted, quiet, room, scripted, texts
from server_process import serving, until
from stublet.parent import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("cancellation")
    scripted(root, "plain")
    scripted(root, "pair", instances=2)
    scripted(root, "many", decoupled=True)
    scripted(root, "yielding", cancel_coroutines="yes")
    scripted(root, "yielding_many", decoupled=True, cancel_coroutines="yes")
    scripted(root, "overlapping", max_concurrent="4", cancel_coroutines="yes")
    with Server(root, options=room()) as server:
        yield server


NAMES = ["plain", "pair", "many", "yielding", "yielding_many", "overlapping"]

Get = Callable[[str], Scripted]


@pytest.fixture
def get(server: Server) -> Iterator[Get]:
    """The models by name, in good order before and after."""
    models = {name: Scripted(server, name) for name in NAMES}
    pids = {name: model.pids for name, model in models.items()}
    for name, model in models.items():
        if name != "pair":
            model.tell("model.executed.clear(); model.errors.clear(); model.released.clear(); model.sender = model.request = None")
    with quiet(server):
        yield models.__getitem__
        for name, model in models.items():
            assert model.pids == pids[name], "the same processes go on"
            model.value("'served'")


def cancel_infer(model: Scripted, code: str, when: Callable[[], object]) -> None:
    """Starts an inference, and cancels the task that waits for it when something has come true."""

    async def run() -> None:
        task = asyncio.create_task(model.say_async(code))
        await asyncio.to_thread(until, when)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def executing(model: Scripted) -> Callable[[], bool]:
    """Whether an instance of the model executes."""
    return lambda: any(instance.channel.executing() for instance in model.server.core.find(model.name).instances)


RECORD = "model.errors.append({0}.is_cancelled())"
WATCH = f"until({{0}}.is_cancelled)\n{RECORD}"


@pytest.mark.parametrize("what", ["request", "sender"])
def test_a_plain_model_is_told(get: Get, what: str) -> None:
    cancel_infer(get("plain"), f"{RECORD.format(what)}\n{WATCH.format(what)}", executing(get("plain")))
    assert get("plain").value("model.errors") == "[False, True]"


@pytest.mark.parametrize("what", ["request", "sender"])
def test_a_coroutine_is_told(get: Get, what: str) -> None:
    code = f"await until_async({what}.is_cancelled)\n{RECORD.format(what)}"
    cancel_infer(get("plain"), code, executing(get("plain")))
    assert get("plain").value("model.errors") == "[True]"


@pytest.mark.parametrize("what", ["request", "sender"])
@pytest.mark.parametrize("name", ["plain", "many"])
def test_a_thread_is_told_after_execute_returned(get: Get, name: str, what: str) -> None:
    model = get(name)
    work = f"until({what}.is_cancelled), model.errors.append({what}.is_cancelled()), sender.send(failure('gone', pb_utils.TritonError.CANCELLED), FINAL)"
    with model.stream(f"in_thread(lambda: ({work}))\nreturned = None"):
        until(lambda: model.value("model.errors") == "[]")
    until(lambda: model.value("model.errors") == "[True]")


def test_it_stays_true(get: Get) -> None:
    """When the request is over, too; and it is told to nobody else, though the memory of it is used again."""
    many = get("many")
    with many.stream("model.sender, model.request = sender, request"):
        assert many.value("(model.sender.is_cancelled(), model.request.is_cancelled())") == "(False, False)"
    until(lambda: many.value("model.sender.is_cancelled()") == "True")
    many.tell("model.sender.send(flags=FINAL)")
    for _ in range(3):
        assert many.value("(model.sender.is_cancelled(), model.request.is_cancelled())") == "(True, True)"
        assert many.value("(sender.is_cancelled(), request.is_cancelled())") == "(False, False)"
    many.tell("model.sender = model.request = None")


def test_nobody_else_is_told(get: Get) -> None:
    """Of many open requests every third is cancelled."""
    many = get("many")
    streams = [many.stream("model.executed.append(sender)") for _ in range(30)]
    until(lambda: many.value("len(model.executed)") == "30")
    for stream in streams[::3]:
        stream.close()
    assert many.value("[i for i, s in enumerate(model.executed) if s.is_cancelled()]") == str(list(range(0, 30, 3)))
    many.tell("[s.send(response('x'), FINAL) for s in model.executed]; model.executed.clear()")
    for number, stream in enumerate(streams):
        assert texts(stream) == ([] if number % 3 == 0 else ["x"])


@pytest.mark.parametrize("name", ["plain", "pair", "overlapping"])
def test_what_is_queued_is_never_executed(get: Get, tmp_path: Path, name: str) -> None:
    """Whether it waits in the server's queue or in the ring of the instance."""
    model = get(name)
    flag, executed = tmp_path / "go", tmp_path / "executed"
    wait = (
        f"await until_async(lambda: os.path.exists({str(flag)!r}))"
        if name == "overlapping"
        else f"until(lambda: os.path.exists({str(flag)!r}))"
    )
    busy = [model.stream(wait) for _ in range({"plain": 1, "pair": 2, "overlapping": 4}[name])]
    queued = [model.stream(f"open({str(executed)!r}, 'a').write('x')") for _ in range(40)]
    wanted = model.stream("result = 'wanted'")
    for stream in queued:
        stream.close()
    flag.touch()
    assert [texts(stream) for stream in busy] == [[""]] * len(busy)
    assert texts(wanted) == ["wanted"]
    assert not executed.exists()


def test_what_is_queued_is_answered_at_once(get: Get) -> None:
    """``infer`` that runs out of time cancels; so does the task of ``infer_async``."""
    plain = get("plain")
    with plain.stream("until(request.is_cancelled)"):
        until(executing(plain))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                plain.say("model.executed.append(1)", timeout=0.01)
        cancel_infer(plain, "model.executed.append(1)", lambda: True)
    assert plain.value("model.executed") == "[]"


def test_infer_that_runs_out_of_time_cancels(get: Get) -> None:
    plain = get("plain")
    with pytest.raises(TimeoutError):
        plain.say(WATCH.format("request"), timeout=0.1)
    assert plain.value("model.errors") == "[True]"


def test_what_a_cancelled_model_answers_goes_nowhere(get: Get) -> None:
    plain = get("plain")
    for code in ("output = np.ones(30_000)", "raise ValueError", "returned = None", "sender.send(response('x', np.ones(30_000))); returned = None",
                 "returned = [failure('gone', pb_utils.TritonError.CANCELLED)]"):  # fmt: skip
        cancel_infer(plain, f"until(request.is_cancelled)\n{code}", executing(plain))
        assert plain.value("'served'") == "served"


# Coroutines that are cancelled


CATCH = """
try:
    await asyncio.sleep(30)
except asyncio.CancelledError:
    model.errors.append(request.is_cancelled())
    raise
"""


@pytest.mark.parametrize("name", ["yielding", "yielding_many", "overlapping"])
def test_a_coroutine_is_cancelled(get: Get, name: str) -> None:
    model = get(name)
    stream = model.stream("model.executed.append(1)\n" + CATCH)
    until(executing(model)) if name != "yielding_many" else until(lambda: model.value("model.executed") == "[1]")
    stream.close()
    until(lambda: model.value("model.errors") == "[True]")


def test_a_coroutine_is_not_cancelled_unless_that_is_wanted(get: Get) -> None:
    many = get("many")
    stream = many.stream("""
try:
    await until_async(sender.is_cancelled)
    await asyncio.sleep(0.02)
    model.errors.append('not cancelled')
    sender.send(flags=FINAL)
except asyncio.CancelledError:
    model.errors.append('cancelled')
""")
    many.value("'the coroutine has begun'")
    stream.close()
    until(lambda: many.value("model.errors") == "['not cancelled']")


@pytest.mark.parametrize("name", ["overlapping", "yielding_many"])
def test_only_that_coroutine_is_cancelled(get: Get, name: str) -> None:
    model = get(name)
    code = """
model.executed.append(1)
try:
    await until_async(model.released.is_set)
except asyncio.CancelledError:
    model.errors.append('cancelled')
    raise
model.errors.append('done')
"""
    code += "sender.send(response('done'), FINAL)" if name == "yielding_many" else "result = 'done'"
    streams = [model.stream(code) for _ in range(3)]
    until(lambda: model.value("len(model.executed)") == "3")
    streams[1].close()
    until(lambda: model.value("model.errors") == "['cancelled']")
    model.tell("model.released.set()")
    assert [texts(stream) for stream in (streams[0], streams[2])] == [["done"]] * 2
    assert model.value("model.errors") == "['cancelled', 'done', 'done']"


def test_a_coroutine_that_goes_on_all_the_same(get: Get) -> None:
    model = get("yielding_many")
    stream = model.stream("""
sender.send(response('a'))
try:
    await asyncio.sleep(30)
except asyncio.CancelledError:
    sender.send(response('b', np.ones(30_000)))
    sender.send(flags=FINAL)
    model.errors.append('went on')
""")
    next(stream)
    stream.close()
    until(lambda: model.value("model.errors") == "['went on']")


def test_cancelling_at_every_moment(get: Get) -> None:
    """From before it was handed over until after it was answered: nobody waits for ever, and nothing is left."""
    for name in ("yielding", "overlapping", "plain"):
        model = get(name)

        async def run(model: Scripted = model) -> None:
            tasks = []
            for number in range(60):
                tasks.append(asyncio.create_task(model.say_async("await asyncio.sleep(0.001); output = np.ones(20_000)")))
                if number % 3 == 0:
                    await asyncio.sleep(0.0007)
                if number % 2:
                    tasks[number // 2].cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

        asyncio.run(run())
        assert model.value("'served'") == "served"


# Calls between models


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_cancelling_the_iterator(get: Get, heeds: bool, way: str) -> None:
    """The callee sees it and does what it likes; all that it sends is there to be taken."""
    callee = f"""
sender.send(response('first'))
def work():
    until(sender.is_cancelled)
    if {heeds}:
        sender.send(failure('gone', pb_utils.TritonError.CANCELLED), FINAL)
    else:
        for i in range(3): sender.send(response(i))
        sender.send(flags=FINAL)
in_thread(work)
"""
    if way == "sync":
        code = f"it = call('many', {callee!r}).exec(decoupled=True); first = said(next(it)); it.cancel(); rest = list(it)"
    else:
        code = (
            f"it = await call('many', {callee!r}).async_exec(decoupled=True); first = said(await it.__anext__()); it.cancel()\n"
            "rest = [r async for r in it]"
        )
    code += (
        "\nresult = first, [said(r) for r in rest], [r.has_error() and r.error().code() == pb_utils.TritonError.CANCELLED for r in rest]"
    )
    expected = (["error: gone"], [True]) if heeds else (["0", "1", "2", ""], [False] * 4)
    assert get("plain").say(code) == str(("first", *expected))


def test_cancelling_the_iterator_of_a_call_that_waits(get: Get) -> None:
    """It is answered CANCELLED, and never executed."""
    busy = "until(lambda: os.path.exists(os.path.join(pb_utils.get_model_dir(), 'go')))"
    answer = get("plain").say(f"""
flag = {str(Path(get("yielding").server.core.find("yielding").directory) / "1" / "go")!r}
first = call('yielding', {busy!r}).exec(decoupled=True)
waits = call('yielding', 'model.executed.append(1)').exec(decoupled=True)
waits.cancel()
found = list(waits)
open(flag, 'w').close()
list(first)
os.unlink(flag)
result = [(r.has_error(), r.error().code() == pb_utils.TritonError.CANCELLED) for r in found]
""")
    assert answer == "[(True, True)]"
    assert get("yielding").value("model.executed") == "[]"


# Over HTTP


def test_a_client_that_hangs_up(tmp_path: Path) -> None:
    root = tmp_path / "models"
    scripted(root, "plain")

    def told(code: str) -> bytes:
        return infer("plain", {"inputs": [tensor("CODE", "BYTES", [1], [code])]})

    started = tmp_path / "started"
    with serving(tmp_path, root) as server:
        with server.wire() as other:
            with server.wire() as wire:
                wire.send(told(f"open({str(started)!r}, 'w').close()\n{WATCH.format('request')}"))
                until(started.exists)
                with server.wire() as queued:
                    queued.send(told("model.errors.append('executed')"))
                    assert other.ask(request("GET", "/v2/health/live")).status == 200
                assert other.ask(request("GET", "/v2/health/live")).status == 200
            assert other.ask(told("result = model.errors")).json()["outputs"][0]["data"] == ["[True]"]
