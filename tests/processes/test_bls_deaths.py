"""What becomes of calls between models when the process of one of them dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Iterator

import pytest
from scripted import Scripted, quiet, room, scripted, text, texts
from server_process import until
from stublet.parent import Server


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own."""
    scripted(tmp_path, "asks", instances=2)
    scripted(tmp_path, "answers", instances=2)
    scripted(tmp_path, "alone")
    scripted(tmp_path, "many", decoupled=True)
    with Server(tmp_path, options=room()) as server:
        yield server


@pytest.mark.parametrize(
    "way",
    [
        "result = said(call('alone', {!r}).exec())",
        "result = said(await call('alone', {!r}).async_exec())",
        "result = [said(r) for r in call('alone', {!r}).exec(decoupled=True)][-1]",
        "with ThreadPoolExecutor(1) as pool: result = said(pool.submit(call('alone', {!r}).exec).result())",
    ],
    ids=["exec", "async_exec", "stream", "thread"],
)
def test_the_callee_dies(mortal: Server, way: str) -> None:
    asks = Scripted(mortal, "asks")
    with quiet(mortal):
        answer = asks.say(way.format("os.kill(os.getpid(), signal.SIGKILL)"))
        assert answer.startswith("error: Stub process 'alone_0_0' is not healthy: ")
        assert "SIGKILL" in answer
        assert asks.say(way.format("result = 'another'")) == "another"
        assert asks.say("result = said(call('answers', 'result = 1').exec())") == "1"


def test_the_callee_dies_within_a_stream(mortal: Server) -> None:
    code = "sender.send(response('a', np.ones(30_000))); model.released.wait(1); os._exit(4)"
    answer = Scripted(mortal, "asks").say(f"result = [said(r) for r in call('many', {code!r}).exec(decoupled=True)]")
    assert answer.startswith("['a', ")
    assert "exit code 4" in answer


def test_the_caller_dies(mortal: Server) -> None:
    """What it asked for is cancelled, and its callees go on."""
    asks, alone, many = (Scripted(mortal, name) for name in ("asks", "alone", "many"))
    wait = "until(request.is_cancelled); model.errors.append('cancelled'); output = np.ones(30_000)"
    wait_many = "until(sender.is_cancelled); model.errors.append('cancelled'); sender.send(response('', np.ones(30_000)), FINAL)"
    streams = [
        asks.stream(f"model.pids = 1; call('alone', {wait!r}, np.ones(30_000)).exec()"),
        asks.stream(f"list(call('many', {wait_many!r}, np.ones(30_000)).exec(decoupled=True))"),
    ]
    instances = mortal.core.find("asks").instances
    until(lambda: all(instance.open_calls for instance in instances))
    until(lambda: all(mortal.core.find(name).instances[0].channel.executing() for name in ("alone", "many")))
    with quiet(mortal):
        for pid in asks.pids:
            os.kill(pid, signal.SIGKILL)
        for stream in streams:
            (answer,) = texts(stream)
            assert "SIGKILL" in answer
        assert alone.value("model.errors") == "['cancelled']"
        assert many.value("model.errors") == "['cancelled']"


@pytest.mark.parametrize("times", range(3))
def test_the_caller_dies_at_once(mortal: Server, times: int) -> None:
    """Its call is found when it is gone already."""
    asks, alone = Scripted(mortal, "asks"), Scripted(mortal, "alone")
    wait = "model.executed.append(1); until(request.is_cancelled)"
    with quiet(mortal):
        with asks.stream(f"call('alone', {wait!r}, np.ones(30_000)).exec(decoupled=True); os._exit({times})") as stream:
            assert f"exit code {times}" in texts(stream)[0]
        assert alone.value("'served'") == "served"


@pytest.mark.parametrize("callee, instances", [("answers", 2), ("alone", 1)])
def test_the_caller_dies_while_its_call_waits(mortal: Server, callee: str, instances: int) -> None:
    """The call is in the queue, and its tensors in memory that went with the caller."""
    asks, answers = Scripted(mortal, "asks"), Scripted(mortal, callee)
    go = "until(lambda: os.path.exists(request.request_id())); result = 'done'"
    flag = Path(mortal.core.find(callee).directory) / "go"
    busy = [answers.stream(go, request_id=str(flag)) for _ in range(instances)]
    caller = asks.stream(
        "[call('%s', 'model.executed.append(1)', np.ones(30_000)).exec(decoupled=True) for _ in range(20)]; time.sleep(60)" % callee
    )
    until(lambda: sum(len(i.open_calls) for i in mortal.core.find("asks").instances) == 20)
    with quiet(mortal):
        for pid in asks.pids:
            os.kill(pid, signal.SIGKILL)
        assert "SIGKILL" in texts(caller)[0]
        flag.touch()
        assert [texts(stream) for stream in busy] == [["done"]] * instances
        for _ in range(5):
            assert answers.value("model.executed") == "[]"


@pytest.mark.parametrize("then", ["returned = [r]", "output = array(call('answers', 'output = data.as_numpy()', t).exec())"])
@pytest.mark.parametrize("size", [10, 30_000])
def test_the_callee_dies_after_it_answered(mortal: Server, then: str, size: int) -> None:
    """What it answered is there, and can still be handed on."""
    asks = Scripted(mortal, "asks")
    flag = Path(mortal.core.find("asks").directory) / "go"
    inner = f"""
r = call('alone', 'output = np.full({size}, 7)').exec()
t = pb_utils.get_output_tensor_by_name(r, 'DATA')
call('alone', 'os._exit(3)').exec()
until(lambda: os.path.exists({str(flag)!r}))
{then}
"""
    # Through one that does not know the memory of the dead.
    stream = asks.stream(f"r = call('asks', {inner!r}).exec(); assert not r.has_error(), said(r); result = 'fine'; output = array(r)")
    until(lambda: not Scripted(mortal, "alone").pids)
    flag.touch()
    result = next(stream)
    assert text(result) == "fine"
    assert result["DATA"].sum() == 7 * size
    del result


def test_calls_of_many_clients_while_instances_die(mortal: Server) -> None:
    """Every call is answered, if only with an error."""
    asks = Scripted(mortal, "asks")

    async def clients() -> list[str]:
        asked = [asks.say_async("result = said(call('answers', 'time.sleep(0.005); result = 1').exec())") for _ in range(40)]
        task = asyncio.gather(*asked)
        await asyncio.sleep(0.02)
        for pid in Scripted(mortal, "answers").pids:
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.02)
        return await task

    found = asyncio.run(clients())
    assert len(found) == 40
    assert all(answer == "1" or "SIGKILL" in answer or "is not ready" in answer for answer in found), set(found)
