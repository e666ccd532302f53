"""Models that do what they should not: the server and the next request do not suffer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import pytest
from scripted import MEBI, Scripted, check_ready, quiet, room, scripted, text, texts
from server_process import alive, descendants, memory_bytes, until
from stublet.parent import Server
from stublet.parent.instance import LoadFailed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("bad")
    scripted(root, "plain")
    scripted(root, "many", decoupled=True)
    scripted(root, "good")
    with Server(root, options=room(96)) as server:
        yield server


Get = Callable[[str], Scripted]


@pytest.fixture
def get(server: Server) -> Iterator[Get]:
    """The models by name, in good order before and after."""
    models = {name: Scripted(server, name) for name in ("plain", "many", "good")}
    pids = {name: model.pids for name, model in models.items()}
    with quiet(server):
        yield models.__getitem__
        for name, model in models.items():
            model.tell("model.kept = None; model.executed.clear(); model.errors.clear(); model.released.clear(); gc.collect()")
            assert model.value("os.getpid()") == str(*pids[name]), "the same process goes on"


@pytest.fixture(params=["plain", "many"])
def model(request: pytest.FixtureRequest, get: Get) -> Scripted:
    """One that is decoupled and one that is not."""
    return get(request.param)


DONE = {"plain": "", "many": "\nsender.send(response('done', output) if 'output' in globals() else response('done'), FINAL)"}


def answer(model: Scripted, code: str, data: np.ndarray) -> np.ndarray:
    """The array that it answers with."""
    (result,) = model.stream(code + DONE[model.name], data)
    return result["DATA"]


@pytest.mark.parametrize("size", [10, 5000, 1 << 20])
@pytest.mark.parametrize(
    "code",
    [
        "output = data.as_numpy()",
        "output = data.as_numpy()[:]",
        "output = data.as_numpy()[:][:]",
        "output = data.as_numpy().reshape(-1, 1).T.reshape(-1)",
        "output = np.frombuffer(memoryview(data.as_numpy()), np.float32)",
        "a = data.as_numpy(); a += 0; output = a",
        "model.kept = data; output = data.as_numpy()",
        "model.kept = [data.as_numpy()[1:5]]; output = data.as_numpy()",
        "model.kept = data; output = data.as_numpy(); del data",
    ],
)
def test_the_input_is_the_output(model: Scripted, code: str, size: int) -> None:
    for start in (0, 1000):
        given = np.arange(start, start + size, dtype=np.float32)
        found = answer(model, code, given)
        np.testing.assert_array_equal(found, given)
        del found


@pytest.mark.parametrize("part", ["[1:]", "[:-1]", "[5000:10000]", "[::2]", "[::-1]", "[10:-10][10:-10]", "[:0]"])
def test_part_of_the_input_is_the_output(model: Scripted, part: str) -> None:
    given = np.arange(100_000, dtype=np.float32)
    found = answer(model, f"output = data.as_numpy(){part}", given)
    np.testing.assert_array_equal(found, eval(f"given{part}"))
    del found


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_input_is_changed_in_place(model: Scripted, size: int) -> None:
    """The next request does not see what the one before did to that memory."""
    given = np.zeros(size, np.float32)
    for _ in range(3):
        found = answer(model, "a = data.as_numpy(); a += 1; output = a", given)
        assert (found.min(), found.max()) == (1, 1)
        assert given.max() == 0
        del found


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_inputs_are_kept_for_ever(model: Scripted, size: int) -> None:
    """And still have what they had, whatever comes later."""
    for number in range(6):
        model.stream("model.executed.append(data if len(model.executed) % 2 else data.as_numpy())" + DONE[model.name],
                     np.full(size, number)).__next__()  # fmt: skip
    for number in range(6):
        kept = f"(lambda a: (a.min() == a.max() == {number}))(getattr(model.executed[{number}], 'as_numpy', lambda: model.executed[{number}])())"
        assert model.value(kept) == "True"


def test_everything_is_kept_for_ever(model: Scripted) -> None:
    for number in range(50):
        model.stream("model.executed.append((request, sender, data, globals()))" + DONE[model.name], np.full(1000, number)).__next__()
    assert model.value("[int(d.as_numpy()[0]) for _, _, d, _ in model.executed] == list(range(50))") == "True"


def test_everything_is_dropped_at_once(model: Scripted) -> None:
    model.tell("del data, request")
    assert "dropped" in model.fail("del data, request, sender; returned = None")


def test_cycles_of_garbage(model: Scripted) -> None:
    """Freed by the collector, in whatever thread, at whatever moment."""
    for number in range(100):
        model.stream("cycle = [request, data, sender]; cycle.append(cycle); cycle.append(globals())" + DONE[model.name],
                     np.full(10_000, number)).__next__()  # fmt: skip


def test_dropped_in_cycles_without_an_answer(get: Get) -> None:
    """The garbage collector finds out that nobody answers."""
    many = get("many")
    streams = [many.stream("cycle = [request, sender]; cycle.append(cycle); del request, sender, cycle") for _ in range(20)]
    many.tell("gc.collect()")
    for stream in streams:
        (error,) = texts(stream)
        assert "dropped the request" in error


# Its output


@pytest.mark.parametrize(
    "code",
    [
        "sys.stdout.close()", "os.close(1)", "sys.stdout = None", "sys.stderr = None", "os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
        "sys.stdout = sys.stderr = open('/dev/full', 'w')",
    ],
)  # fmt: skip
def test_it_closes_its_output(tmp_path: Path, code: str) -> None:
    scripted(tmp_path, "plain")
    with Server(tmp_path) as server:
        model = Scripted(server, "plain")
        model.tell(code)
        for number in range(3):
            assert model.value(str(number)) == str(number)
        assert "ValueError: x" in model.fail("raise ValueError('x')")


def test_it_floods_its_output(tmp_path: Path) -> None:
    """100 MB; the server keeps none of it in memory, and serves others meanwhile."""
    scripted(tmp_path, "plain")
    scripted(tmp_path, "good")
    with Server(tmp_path) as server:
        plain, good = Scripted(server, "plain"), Scripted(server, "good")
        before = memory_bytes(os.getpid())
        stream = plain.stream(
            "line = b'x' * 99_999 + b'\\n'\nfor i in range(1000):\n    n = 0\n    while n < len(line): n += os.write(1, line[n:])"
        )
        slowest = 0.0
        until(plain.server.core.find("plain").instances[0].channel.executing)
        for number in range(20):
            started = time.monotonic()
            assert good.value(str(number)) == str(number)
            slowest = max(slowest, time.monotonic() - started)
        assert texts(stream) == [""]
        assert slowest < 2
        assert memory_bytes(os.getpid()) - before < 300 * MEBI


# Its end


@pytest.mark.parametrize("code", ["sys.exit()", "sys.exit(0)", "sys.exit('text')", "raise SystemExit", "exit()", "quit(3)"])
def test_it_exits_in_execute(model: Scripted, code: str) -> None:
    assert "SystemExit" in model.fail(code)
    assert "SystemExit" in model.fail(f"await asyncio.sleep(0)\n{code}")


@pytest.mark.parametrize("code", ["sys.exit(3)", "raise KeyboardInterrupt", "raise SystemExit"])
def test_it_exits_in_a_thread(model: Scripted, code: str) -> None:
    model.tell(f"def leave(): {code}\nin_thread(leave).join()")


@pytest.mark.parametrize("way", ["sys.exit(3)", "raise KeyboardInterrupt", "os._exit(3)", "os.abort()"])
def test_it_exits_in_initialize(tmp_path: Path, way: str) -> None:
    scripted(tmp_path, "plain", initialize=way)
    with pytest.raises(LoadFailed, match="plain"):
        Server(tmp_path).__enter__()


def test_it_exits_in_finalize(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted(tmp_path, "plain", finalize="sys.exit(3)")
    with Server(tmp_path) as server:
        assert Scripted(server, "plain").value("'x'") == "x"
    assert "finalize of 'plain_0_0' failed" in caplog.text


# Its interpreter


HOLD = "ctypes.PyDLL(None).usleep({} * 1000)"


def test_it_holds_the_interpreters_lock(get: Get) -> None:
    """Nothing in its process runs meanwhile; everything else does."""
    plain, good = get("plain"), get("good")
    with plain.stream(HOLD.format(2500)) as stream:
        until(lambda: plain.server.core.find("plain").instances[0].channel.executing())
        slowest = 0.0
        for number in range(20):
            started = time.monotonic()
            assert good.value(str(number)) == str(number)
            slowest = max(slowest, time.monotonic() - started)
        waiting = plain.stream("result = 'waited'")
        assert texts(stream) == [""]
        assert texts(waiting) == ["waited"]
    assert slowest < 1


def test_it_holds_the_interpreters_lock_in_a_thread(get: Get) -> None:
    """While coroutines and calls wait."""
    plain = get("plain")
    assert plain.say(f"""
thread = in_thread(lambda: [{HOLD.format(300)} for _ in range(3)])
found = [said(r) for r in await asyncio.gather(*[call('good', f'result = {{i}}').async_exec() for i in range(10)])]
thread.join()
result = found == [str(i) for i in range(10)]
""") == "True"  # fmt: skip


def test_its_switch_interval_and_recursion_limit(get: Get) -> None:
    plain = get("plain")
    plain.tell("sys.setswitchinterval(5); sys.setrecursionlimit(300)")
    for number in range(5):
        assert plain.say(f"await asyncio.sleep(0); result = {number}") == str(number)
    plain.tell("sys.setswitchinterval(0.005); sys.setrecursionlimit(1000)")


def test_it_turns_off_the_garbage_collector(get: Get) -> None:
    plain = get("plain")
    plain.tell("gc.disable()")
    before = ""
    for number in range(200):
        plain.tell("pass")
        with plain.stream("output = data.as_numpy() + 1", np.ones(30_000)) as stream:
            next(stream)
        if number == 5:
            before = plain.value("free_memory()")
    until(lambda: plain.value("free_memory()") == before)
    plain.tell("gc.enable(); gc.collect()")


@pytest.mark.parametrize(
    "code",
    [
        "signal.signal(signal.SIGTERM, signal.SIG_DFL) or signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "os.chdir('/')",
        "os.umask(0o777)",
        "sys.argv[:] = []",
        "sys.path.clear()",
        "sys.modules.pop('stublet', None); sys.modules.pop('triton_python_backend_utils', None); sys.modules.pop('numpy', None)",
        "os.environ.clear()",
        "logging.disable()",
        "logging.getLogger().handlers.clear()",
        "np.seterr(all='raise')",
        "import warnings; warnings.simplefilter('error')",
        "signal.alarm(0); signal.setitimer(signal.ITIMER_REAL, 0)",
        "os.nice(5)",
        "asyncio.set_event_loop(None)",
        "asyncio.set_event_loop_policy(None)",
        "import locale; locale.setlocale(locale.LC_ALL, 'C')",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
        "import builtins; builtins.print = None",
        "gc.freeze(); gc.set_threshold(1)",
    ],
)
def test_it_changes_what_is_everybodys(tmp_path: Path, code: str) -> None:
    scripted(tmp_path, "plain", instances=2)
    with Server(tmp_path) as server:
        plain = Scripted(server, "plain")
        with quiet(server):
            plain.tell(code)
            for number in range(4):
                assert plain.say(f"await asyncio.sleep(0); result = {number}") == str(number)
                assert plain.say(f"result = said(call('plain', 'result = {number}', np.ones(30_000)).exec())") == str(number)
                assert "ValueError: x" in plain.fail("raise ValueError('x')")


# Its children


def test_it_leaves_children_behind(tmp_path: Path) -> None:
    """They hold copies of its descriptors; neither its end nor the server's waits for them, and they end with it."""
    scripted(tmp_path, "plain")
    with Server(tmp_path) as server:
        plain = Scripted(server, "plain")
        (pid,) = plain.pids
        plain.tell("pid = os.fork()\nif not pid:\n    time.sleep(60)\n    os._exit(0)")
        plain.tell("import subprocess; model.kept = subprocess.Popen(['sleep', '60'], close_fds=False)")
        children = descendants(pid)
        assert len(children) == 2
        with plain.stream("os._exit(5)") as stream:
            assert "exit code 5" in texts(stream)[0]
        started = time.monotonic()
    assert time.monotonic() - started < 10
    until(lambda: not any(map(alive, children)))


def test_it_is_killed_again_and_again_while_it_serves(tmp_path: Path) -> None:
    """Whatever moment it is: each request has an answer or an error."""
    scripted(tmp_path, "plain", instances=8)
    with Server(tmp_path) as server:
        plain = Scripted(server, "plain")

        async def ask(number: int) -> str:
            try:
                return await plain.say_async(f"result = {number}; output = np.ones(20_000)")
            except Exception as error:
                return str(error)

        async def everything() -> list[str]:
            tasks = [asyncio.create_task(ask(number)) for number in range(300)]
            for pid in plain.pids[:-1]:
                await asyncio.sleep(0.01)
                os.kill(pid, signal.SIGKILL)
            return await asyncio.gather(*tasks)

        found = asyncio.run(everything())
        assert all(said == str(number) or "SIGKILL" in said for number, said in enumerate(found))
        with quiet(server):
            assert plain.value("'served'") == "served"


def test_it_exits_while_clients_stream(tmp_path: Path) -> None:
    scripted(tmp_path, "many", decoupled=True, instances=2)
    with Server(tmp_path) as server:
        many = Scripted(server, "many")
        endless = "in_thread(lambda: [(sender.send(response(i, np.ones(20_000))), time.sleep(0.001)) for i in range(100_000)])"
        streams = [many.stream(endless) for _ in range(4)]
        for stream in streams:
            assert text(next(stream)) == "0"
        for pid in many.pids:
            os.kill(pid, signal.SIGKILL)
        for stream in streams:
            assert "SIGKILL" in texts(stream)[-1]


def test_readiness_after_all_that(get: Get) -> None:
    for name in ("plain", "many", "good"):
        assert check_ready(get(name)) == ""
