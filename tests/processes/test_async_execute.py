"""``async def execute`` (spec 2.6): awaited, or in the background, always in the one loop of the instance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Callable, Iterator, List

import pytest
from scripted import Scripted, quiet, room, scripted, text, texts
from server_process import until
from stublet.parent import Server
from stublet.parent.instance import LoadFailed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("async")
    scripted(root, "plain")
    scripted(root, "many", decoupled=True)
    scripted(root, "overlapping", max_concurrent="4")
    with Server(root, options=room()) as server:
        yield server


Get = Callable[[str], Scripted]


@pytest.fixture
def get(server: Server) -> Iterator[Get]:
    """The models by name, in good order before and after."""
    models = {name: Scripted(server, name) for name in ("plain", "many", "overlapping")}
    pids = {name: model.pids for name, model in models.items()}
    for model in models.values():
        model.tell("model.executed.clear(); model.errors.clear(); model.released.clear(); model.running = model.most = 0")
    with quiet(server):
        yield models.__getitem__
        for name, model in models.items():
            assert model.value("os.getpid()") == str(*pids[name]), "the same process goes on"


def test_batches_of_a_plain_model_do_not_overlap(get: Get) -> None:
    code = """
model.running += 1
model.most = max(model.most, model.running)
for _ in range(5): await asyncio.sleep(0.002)
model.running -= 1
model.executed.append(request.request_id())
result = request.request_id()
"""
    streams = [get("plain").stream(code, request_id=str(number)) for number in range(8)]
    assert [texts(stream) for stream in streams] == [[str(number)] for number in range(8)]
    assert get("plain").value("(model.most, model.executed)") == str((1, [str(number) for number in range(8)]))


def test_coroutines_of_a_decoupled_model_overlap(get: Get) -> None:
    """All four wait for each other."""
    many = get("many")
    code = """
model.executed.append(1)
await until_async(lambda: len(model.executed) == 4)
sender.send(response(len(model.executed)), FINAL)
"""
    streams = [many.stream(code) for _ in range(4)]
    assert [texts(stream) for stream in streams] == [["4"]] * 4


def test_a_short_one_overtakes(get: Get) -> None:
    many = get("many")
    with many.stream("await until_async(model.released.is_set); sender.send(response('long'), FINAL)") as long:
        assert many.items("await asyncio.sleep(0); sender.send(response('short'), FINAL)") == ["short"]
        many.tell("model.released.set()")
        assert texts(long) == ["long"]


def test_overlapping_executions(get: Get) -> None:
    """Four at a time, and never more; each gets its own answer, in whatever order they finish."""
    model = get("overlapping")
    code = """
model.running += 1
model.most = max(model.most, model.running)
number = int(request.request_id())
if number < 4:
    model.executed.append(number)
    await until_async(lambda: len(model.executed) >= 4)
await asyncio.sleep(0.001 * (10 - number % 10))
model.running -= 1
result = number
"""
    streams = [model.stream(code, request_id=str(number)) for number in range(20)]
    assert [texts(stream) for stream in streams] == [[str(number)] for number in range(20)]
    assert model.value("(model.most, model.running)") == "(4, 0)"


def test_overlapping_executions_finish_in_any_order(get: Get) -> None:
    model = get("overlapping")
    with model.stream("await until_async(model.released.is_set); result = 'long'") as long:
        for number in range(10):
            assert model.say(f"await asyncio.sleep(0); result = {number}") == str(number)
        model.tell("await asyncio.sleep(0); model.released.set()")
        assert texts(long) == ["long"]


def test_overlapping_executions_may_fail_alone(get: Get) -> None:
    model = get("overlapping")
    good = [model.stream("await until_async(model.released.is_set); result = 'good'") for _ in range(2)]
    assert model.fail("await asyncio.sleep(0); raise ValueError('mine')").endswith("message: ValueError: mine")
    assert model.fail("await asyncio.sleep(0); returned = None").startswith("INTERNAL: execute returned None for the request")
    model.tell("await asyncio.sleep(0); model.released.set()")
    assert [texts(stream) for stream in good] == [["good"]] * 2


def test_overlap_again_and_again(get: Get) -> None:
    """No turn is lost when one execution ends just as another begins."""
    model = get("overlapping")

    async def ask(number: int) -> None:
        for i in range(40):
            assert await model.say_async(f"await asyncio.sleep(0); result = {number + i}") == str(number + i)

    async def all_of_them() -> None:
        await asyncio.gather(*map(ask, range(16)))

    asyncio.run(all_of_them())


def test_a_synchronous_execute_beside_coroutines(get: Get) -> None:
    model = get("overlapping")
    with model.stream("await until_async(model.released.is_set); result = 'long'") as long:
        assert model.say("model.released.set(); result = 'sync'") == "sync"
        assert texts(long) == ["long"]


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1000000000", "٣"])
def test_invalid_max_concurrent(tmp_path: Path, value: str) -> None:
    scripted(tmp_path, "wrong", max_concurrent=value)
    with pytest.raises(LoadFailed, match="parameter 'max_concurrent' of model 'wrong' must be a number from 1 to"):
        Server(tmp_path).__enter__()


def test_invalid_cancel_coroutines(tmp_path: Path) -> None:
    scripted(tmp_path, "wrong", cancel_coroutines="true")
    with pytest.raises(LoadFailed, match="parameter 'cancel_coroutines' of model 'wrong' must be \"yes\" or \"no\", not 'true'"):
        Server(tmp_path).__enter__()


@pytest.mark.parametrize("name", ["plain", "many", "overlapping"])
def test_one_loop_for_all(get: Get, name: str) -> None:
    code = "loop = asyncio.get_running_loop(); model.executed.append(id(loop))\nawait asyncio.sleep(0)\n"
    for _ in range(3):
        get(name).tell(code)
    assert get(name).value("len(model.executed), len(set(model.executed))") == "(3, 1)"


@pytest.mark.parametrize("name", ["plain", "many", "overlapping"])
def test_tasks_outlive_the_execution(get: Get, name: str) -> None:
    model = get(name)
    model.tell("""
async def later():
    await until_async(model.released.is_set)
    model.executed.append('later')
model.task = asyncio.create_task(later())
await asyncio.sleep(0)
""")
    assert model.value("model.executed") == "[]"
    model.tell("model.released.set()")
    until(lambda: model.value("model.executed") == "['later']")


ENDINGS = [
    "asyncio.get_running_loop().stop()",
    "asyncio.get_running_loop().call_soon(sys.exit, 3)",
    "async def leave(): sys.exit(3)\nmodel.task = asyncio.create_task(leave())",
    "async def leave(): raise KeyboardInterrupt\nmodel.task = asyncio.create_task(leave())",
    "async def leave(): raise ValueError\nmodel.task = asyncio.create_task(leave())",
]


@pytest.mark.parametrize("name", ["plain", "many", "overlapping"])
@pytest.mark.parametrize("code", ENDINGS, ids=[code[:50] for code in ENDINGS])
def test_the_loop_goes_on(get: Get, name: str, code: str) -> None:
    """Whatever a model's own task does to it."""
    model = get(name)
    model.tell(f"{code}\nawait asyncio.sleep(0)\nawait asyncio.sleep(0)")
    model.tell("await asyncio.sleep(0.01)")
    model.tell("model.task = None")


def test_a_coroutine_that_swallows_cancellation_does_not_keep_the_server(tmp_path: Path) -> None:
    scripted(tmp_path, "many", decoupled=True, finalize="print('finalized', flush=True)")
    with Server(tmp_path) as server:
        many = Scripted(server, "many")
        with many.stream("""
sender.send(response('a'), FINAL)
while True:
    try:
        await asyncio.sleep(0.01)
        if model.released.is_set():
            break
    except asyncio.CancelledError:
        model.released.set()
""") as stream:
            assert text(next(stream)) == "a"


def test_an_awaitable_that_is_no_coroutine(get: Get) -> None:
    answers: List[str] = []
    code = """
class Later:
    def __await__(self):
        yield from asyncio.sleep(0.001).__await__()
        return [response('later')]
returned = Later()
"""
    answers.append(get("plain").say(code))
    answers.append(get("overlapping").say(code))
    assert answers == ["later", "later"]
