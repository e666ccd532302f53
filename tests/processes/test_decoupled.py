"""Decoupled models: any number of responses, from any thread, before or after ``execute`` returned (spec 2.5)."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator, List

import numpy as np
import pytest
from scripted import MEBI, Scripted, quiet, room, scripted, text, texts
from server_process import memory_bytes, until
from stublet.parent import Server, ServerError

FAILED = "Failed to process the request(s) for model 'many_0_0', message: "
CLOSED = "TritonModelException: Unable to send response. Response sender has been closed."
DROPPED = "error: the model dropped the request and its response sender without TRITONSERVER_RESPONSE_COMPLETE_FINAL"
RETURNED = (
    f"error: {FAILED}TritonModelException: Python model 'many_0_0' is using the decoupled mode and the execute function must return None."
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("decoupled")
    scripted(root, "many", decoupled=True)
    with Server(root, options=room(96)) as server:
        yield server


@pytest.fixture
def many(server: Server) -> Iterator[Scripted]:
    """The model, in good order before and after."""
    model = Scripted(server, "many")
    (pid,) = model.pids
    model.tell("model.errors.clear(); model.executed.clear(); model.sender = None; model.released.clear()")
    with quiet(server):
        yield model
        assert model.value("os.getpid()") == str(pid), "the same process goes on"


SEND = "sender.send(response({!r}))\n"
END = "sender.send(flags=FINAL)\n"


@pytest.mark.parametrize(
    "code, expected",
    [
        (END, []),
        ("sender.send(None, FINAL)", []),
        ("sender.send(response('a'), FINAL)", ["a"]),
        (SEND.format("a") + END, ["a"]),
        (SEND.format("a") + SEND.format("b") + "sender.send(response('c'), FINAL)", ["a", "b", "c"]),
        ("for i in range(200): sender.send(response(i))\n" + END, [str(i) for i in range(200)]),
        ("sender.send(pb_utils.InferenceResponse([]))\nsender.send(response('a'), FINAL)", ["", "a"]),
        ("sender.send(pb_utils.InferenceResponse([]), FINAL)", [""]),
        ("sender.send(failure('one'))\nsender.send(response('a'))\nsender.send(failure('two'), FINAL)", ["error: one", "a", "error: two"]),
        ("in_thread(lambda: [sender.send(response(i)) for i in range(3)] and sender.send(flags=FINAL))", ["0", "1", "2"]),
        ("in_thread(lambda: [sender.send(response(i)) for i in range(3)] and sender.send(flags=FINAL)).join()", ["0", "1", "2"]),
        (SEND.format("a") + "in_thread(lambda: (time.sleep(0.05), sender.send(response('b'), FINAL)))", ["a", "b"]),
        ("sender.send(response('a'))\nawait asyncio.sleep(0.01)\nsender.send(response('b'), FINAL)", ["a", "b"]),
        ("await asyncio.sleep(0)\n" + END, []),
        ("await asyncio.sleep(0)\nsender.send(response('a'), FINAL)\nreturned = 'nobody gets this'", ["a"]),
        # What goes wrong before the end is the last thing that is said, and after the end nobody hears of it.
        ("raise ValueError('oh')", [f"error: {FAILED}ValueError: oh"]),
        (SEND.format("a") + "raise ValueError('oh')", ["a", f"error: {FAILED}ValueError: oh"]),
        (SEND.format("a") + END + "raise ValueError('oh')", ["a"]),
        ("await asyncio.sleep(0)\nraise ValueError('oh')", [f"error: {FAILED}ValueError: oh"]),
        (SEND.format("a") + "await asyncio.sleep(0)\nraise ValueError('oh')", ["a", f"error: {FAILED}ValueError: oh"]),
        ("await asyncio.sleep(0)\n" + END + "raise ValueError('oh')", []),
        ("await asyncio.sleep(0)\nsys.exit(1)", [f"error: {FAILED}SystemExit: 1"]),
        ("returned = []", [RETURNED]),
        ("returned = [None]", [RETURNED]),
        ("returned = [response('a')]", [RETURNED]),
        ("returned = (None,)", [RETURNED]),
        ("returned = 5", [RETURNED]),
        (END + "returned = [None]", []),
        (SEND.format("a") + "returned = [response('b')]", ["a", RETURNED]),
        ("pass", [DROPPED]),
        (SEND.format("a"), ["a", DROPPED]),
        ("await asyncio.sleep(0)", [DROPPED]),
        ("in_thread(lambda s: time.sleep(0.05), sender)", [DROPPED]),
    ],
)  # fmt: skip
def test_responses(many: Scripted, code: str, expected: List[str]) -> None:
    assert many.items(code) == expected


@pytest.mark.parametrize(
    "before, what, error",
    [
        ("", "sender.send", "TritonModelException: Inference Response object must be provided when the response flags is set to zero."),
        ("", "sender.send, response(), 2", "TritonModelException: Unable to send response. Unsupported flag provided."),
        (END, "sender.send, response('b')", CLOSED),
        (END, "sender.send, response('b'), FINAL", CLOSED),
        (END, "sender.send, None, FINAL", CLOSED),
        ("sender.send(response('a'), FINAL)", "sender.send, failure('b')", CLOSED),
    ],
)
def test_what_a_sender_refuses(many: Scripted, before: str, what: str, error: str) -> None:
    expected = ["a"] if "'a'" in before else []
    assert many.items(f"{before}\nmodel.errors = [raised({what})]\n" + ("" if before else END)) == expected
    assert many.value("model.errors[0]") == error


@pytest.mark.parametrize("code", ["raise ValueError('no')", "returned = []", "await asyncio.sleep(0); raise ValueError('no')"])
def test_a_failed_execution_closes_its_senders(many: Scripted, code: str) -> None:
    (answer,) = many.items("model.sender = sender; " + code)
    assert answer.startswith("error: ")
    assert many.value("raised(model.sender.send, response('late'))") == CLOSED
    assert many.value("raised(model.sender.send, None, FINAL)") == CLOSED
    many.tell("model.sender = None")


def test_streams_of_several_requests_mix(many: Scripted) -> None:
    """Every request's responses are its own, in order, whatever the order in which the model sends them."""
    codes = [f"model.executed.append(('{name}', sender))" for name in "abc"]
    streams = [many.stream(code) for code in codes]
    many.tell("""
until(lambda: len(model.executed) == 3)
for i in range(50):
    for name, other in model.executed if i % 2 else reversed(model.executed):
        other.send(response(name + str(i)), FINAL if i == 49 else 0)
model.executed.clear()
""")
    for name, stream in zip("abc", streams):
        assert texts(stream) == [f"{name}{i}" for i in range(50)]


def test_the_next_request_is_executed_while_responses_are_sent(many: Scripted) -> None:
    with many.stream("in_thread(lambda: (model.released.wait(30), sender.send(response('late'), FINAL)))") as slow:
        assert many.value("'in between'") == "in between"
        many.tell("model.released.set()")
        assert texts(slow) == ["late"]


def test_a_sender_dropped_later_ends_its_request_at_once(many: Scripted) -> None:
    with many.stream("model.sender = sender") as stream:
        many.tell("model.sender = None")
        assert texts(stream) == [DROPPED]


def test_many_threads_send_on_one_sender(many: Scripted) -> None:
    answers = many.items("""
start = threading.Barrier(32)
def work(number):
    start.wait()
    for i in range(50):
        sender.send(response(f'{number}.{i}'))
with ThreadPoolExecutor(32) as pool:
    list(pool.map(work, range(32)))
sender.send(flags=FINAL)
""")
    assert len(answers) == 1600
    for number in range(32):
        assert [a for a in answers if a.startswith(f"{number}.")] == [f"{number}.{i}" for i in range(50)]


def test_many_threads_end_one_request(many: Scripted) -> None:
    """Exactly one of them ends it, and nothing is sent after the end."""
    answers = many.items("""
start = threading.Barrier(32)
def work(number):
    start.wait()
    return raised(sender.send, response(number), FINAL)
with ThreadPoolExecutor(32) as pool:
    model.errors = list(pool.map(work, range(32)))
""")
    assert len(answers) == 1
    assert many.value("model.errors.index('nothing')") == answers[0]
    assert many.value("sorted(set(model.errors))") == str([CLOSED, "nothing"])


def test_many_senders_in_many_threads(many: Scripted) -> None:
    """32 requests, each answered by a thread of its own."""
    code = "in_thread(lambda: [sender.send(response(f'{request.request_id()}.{i}')) for i in range(20)] and sender.send(flags=FINAL))"
    streams = [many.stream(code, request_id=str(number)) for number in range(32)]
    for number, stream in enumerate(streams):
        assert texts(stream) == [f"{number}.{i}" for i in range(20)]


def test_ten_thousand_responses(many: Scripted) -> None:
    answers = many.items("for i in range(10_000): sender.send(response(i))\nsender.send(flags=FINAL)")
    assert answers == [str(i) for i in range(10_000)]


def test_ten_thousand_responses_that_nobody_takes_yet(many: Scripted) -> None:
    """The client is slow: the model is not kept waiting, and no other client is."""
    with many.stream("for i in range(10_000): sender.send(response(i))\nsender.send(flags=FINAL)") as stream:
        assert many.value("'in between'") == "in between"
        assert texts(stream) == [str(i) for i in range(10_000)]


def test_large_responses_take_turns_in_the_same_memory(tmp_path: Path) -> None:
    """50 of 16 MiB, taken one by one: the memory of one that was let go serves another."""
    scripted(tmp_path, "many", decoupled=True)
    with Server(tmp_path) as server:
        many = Scripted(server, "many")
        before = memory_bytes(many.pids[0])
        code = """
def work():
    for i in range(50):
        until(lambda: model.taken >= i - 3)
        sender.send(response(i, np.full(4 << 20, i)))
    sender.send(flags=FINAL)
model.taken = 0
in_thread(work)
"""
        total = 0
        with many.stream(code) as stream:
            for number, result in enumerate(stream):
                assert text(result) == str(number)
                assert result["DATA"][0] == result["DATA"][-1] == number
                total += result["DATA"].nbytes
                del result
                many.tell(f"model.taken = {number + 1}")
        assert total == 50 * 16 * MEBI
        assert memory_bytes(many.pids[0]) - before < 200 * MEBI


def test_one_output_tensor_sent_many_times(many: Scripted) -> None:
    """Of a tensor that is sent again, nothing is copied and nothing changes."""
    with many.stream("""
data = np.arange(100_000)
tensor = pb_utils.Tensor('DATA', data.astype(np.float32))
for i in range(20):
    sender.send(pb_utils.InferenceResponse([tensor]))
    tensor.as_numpy()[0] = i + 1000
sender.send(flags=FINAL)
""") as stream:
        results = list(stream)
    assert len(results) == 20
    for result in results:
        np.testing.assert_array_equal(result["DATA"], np.arange(100_000, dtype=np.float32))


@pytest.mark.parametrize("wanted", [[], ["RESULT"], ["DATA"]])
def test_only_what_is_wanted_is_sent(many: Scripted, wanted: List[str]) -> None:
    code = "for i in range(3): sender.send(response(i, np.ones(30_000)))\nsender.send(flags=FINAL)"
    with many.stream(code, outputs=wanted) as stream:
        results = [set(result) for result in stream]
    assert results == [set(wanted or ["RESULT", "DATA"])] * 3


def test_the_input_may_be_used_after_execute_returned(many: Scripted) -> None:
    given = np.random.default_rng(1).random(100_000, np.float32)
    with many.stream("in_thread(lambda: (model.released.wait(30), sender.send(response('x', data.as_numpy()), FINAL)))", given) as stream:
        for _ in range(5):
            many.tell("assert data is None")  # other requests come meanwhile, into other memory
            with many.stream("sender.send(response('y', data.as_numpy()), FINAL)", np.zeros(100_000)) as other:
                assert next(other)["DATA"].sum() == 0
        many.tell("model.released.set()")
        np.testing.assert_array_equal(next(stream)["DATA"], given)


# The iterators of the embedded server


def test_a_stream_cannot_be_had_by_infer(many: Scripted) -> None:
    with pytest.raises(ServerError, match="model 'many' is decoupled and may answer more than once"):
        many.say("pass")


def test_errors_are_raised_and_more_may_follow(many: Scripted) -> None:
    with many.stream("sender.send(failure('one')); sender.send(response('a')); sender.send(flags=FINAL)") as stream:
        with pytest.raises(ServerError, match="one"):
            next(stream)
        assert text(next(stream)) == "a"
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(stream)


def test_waiting_too_long_for_a_response(many: Scripted) -> None:
    with many.stream("model.sender = sender", timeout=0.05) as stream:
        with pytest.raises(TimeoutError):
            next(stream)
        many.tell("model.sender.send(response('a')); model.sender.send(flags=FINAL); model.sender = None")
        assert text(next(stream)) == "a"


UNTIL_CANCELLED = """
def work():
    for i in range(1_000_000):
        if sender.is_cancelled():
            break
        sender.send(response(i, np.ones(10_000)))
        time.sleep(0.0005)
    model.errors.append(sender.is_cancelled())
    sender.send(flags=FINAL)
in_thread(work)
"""


@pytest.mark.parametrize("taken", [1, 10])
def test_closing_a_stream_early_cancels(many: Scripted, taken: int) -> None:
    stream = many.stream(UNTIL_CANCELLED)
    for number in range(taken):
        assert text(next(stream)) == str(number)
    stream.close()
    until(lambda: many.value("model.errors") == "[True]")
    with pytest.raises(StopIteration):
        next(stream)


def test_dropping_a_stream_cancels(many: Scripted) -> None:
    for result in many.stream(UNTIL_CANCELLED):
        assert text(result) == "0"
        break
    del result
    until(lambda: many.value("model.errors") == "[True]")


def test_what_comes_after_a_stream_was_closed_is_dropped(many: Scripted) -> None:
    """The model takes no notice of the cancellation."""
    stream = many.stream("model.sender = sender; sender.send(response('a', np.ones(100_000)))")
    assert text(next(stream)) == "a"
    stream.close()
    many.tell("[model.sender.send(response(i, np.ones(100_000))) for i in range(5)]; model.sender.send(flags=FINAL); model.sender = None")


def test_the_async_iterator(many: Scripted) -> None:
    async def take() -> List[str]:
        found = []
        async for result in many.stream_async("for i in range(100): sender.send(response(i))\nsender.send(flags=FINAL)"):
            found.append(text(result))
        return found

    assert asyncio.run(take()) == [str(i) for i in range(100)]


def test_many_async_iterators_at_once(many: Scripted) -> None:
    async def take(number: int) -> List[str]:
        code = f"in_thread(lambda: [sender.send(response({number})) for i in range(20)] and sender.send(flags=FINAL))"
        return [text(result) async for result in many.stream_async(code)]

    async def all_of_them() -> List[List[str]]:
        return await asyncio.gather(*map(take, range(20)))

    assert asyncio.run(all_of_them()) == [[str(number)] * 20 for number in range(20)]


def test_an_error_ends_the_async_iterator(many: Scripted) -> None:
    async def take() -> None:
        async for result in many.stream_async("sender.send(response('a')); raise ValueError('oh')"):
            assert text(result) == "a"

    with pytest.raises(ServerError, match="ValueError: oh"):
        asyncio.run(take())


def test_leaving_the_async_iterator_early_cancels(many: Scripted) -> None:
    async def take() -> None:
        stream = many.stream_async(UNTIL_CANCELLED)
        async for result in stream:
            assert text(result) == "0"
            break
        del result
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.to_thread(until, lambda: many.value("model.errors") == "[True]")

    asyncio.run(take())


def test_what_comes_after_the_async_iterator_was_left_is_dropped(many: Scripted) -> None:
    """The loop goes on, and so could keep for ever what arrives there."""

    async def take() -> None:
        stream = many.stream_async("model.sender = sender; sender.send(response('a', np.ones(100_000)))")
        async for result in stream:
            assert text(result) == "a"
            break
        del result
        await stream.aclose()  # type: ignore[attr-defined]
        many.tell(
            "[model.sender.send(response(i, np.ones(100_000))) for i in range(5)]; model.sender.send(flags=FINAL); model.sender = None"
        )
        with quiet(many.server):
            pass

    asyncio.run(take())


def test_cancelling_the_task_of_an_async_iterator(many: Scripted) -> None:
    async def take() -> None:
        begun = asyncio.Event()

        async def consume() -> None:
            async for _ in many.stream_async(UNTIL_CANCELLED):
                begun.set()

        task = asyncio.create_task(consume())
        await asyncio.wait_for(begun.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: many.value("model.errors") == "[True]")

    asyncio.run(take())


def test_many_clients_in_many_threads(many: Scripted) -> None:
    def client(number: int) -> None:
        for _ in range(10):
            assert many.items(f"for i in range(10): sender.send(response({number} * i))\nsender.send(flags=FINAL)") == [
                str(number * i) for i in range(10)
            ]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(16)))
    assert threading.active_count() < 20


def test_the_process_dies_with_open_streams(tmp_path: Path) -> None:
    scripted(tmp_path, "many", decoupled=True)
    with Server(tmp_path) as server:
        many = Scripted(server, "many")
        streams = [many.stream("model.executed.append(sender); sender.send(response('a'))") for _ in range(3)]
        assert [text(next(stream)) for stream in streams] == ["a"] * 3
        last = many.stream("os._exit(7)")
        for stream in [*streams, last]:
            (answer,) = texts(stream)
            assert answer.startswith("error: Stub process 'many_0_0' is not healthy: it ended with exit code 7 while serving")


@pytest.mark.parametrize("size", [10, 20_000, 1 << 20])
@pytest.mark.parametrize("made", ["data.as_numpy()", "np.array(data.as_numpy())"])
def test_a_response_is_what_it_was_when_it_was_sent(many: Scripted, made: str, size: int) -> None:
    """An array that is changed in place between two responses, wherever it lies."""
    code = f"""
x = {made}
x[:] = 0
for i in range(5):
    x += 1
    sender.send(response(i, x))
sender.send(flags=FINAL)
"""
    with many.stream(code, np.zeros(size)) as stream:
        assert [(result["DATA"].min(), result["DATA"].max()) for result in stream] == [(i, i) for i in range(1, 6)]
