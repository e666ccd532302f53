"""Tensors of calls between models: handed on without copies, and yet nobody sees what another does to them (spec 3.7, 1.4.3)."""

from __future__ import annotations

from typing import Callable, Iterator

import numpy as np
import pytest
from scripted import MEBI, Scripted, quiet, room, scripted
from server_process import memory_bytes, until
from stublet.parent import Server

ROOM = 160
"""Mebibytes."""

LARGE = 1 << 20
SIZES = [10, 20_000, LARGE]
"""Elements: of a tensor that is copied, of one that is borrowed, and of one of 4 MiB."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("bls_memory")
    scripted(root, "asks")
    scripted(root, "answers")
    scripted(root, "third")
    scripted(root, "many", decoupled=True)
    with Server(root, options=room(ROOM)) as server:
        for name in ("asks", "answers", "third"):
            Scripted(server, name).run("", np.zeros(LARGE))
        yield server


Get = Callable[[str], Scripted]


@pytest.fixture
def get(server: Server) -> Iterator[Get]:
    """The models by name, in good order before and after."""
    models = {name: Scripted(server, name) for name in ("asks", "answers", "third", "many")}
    pids = {name: model.pids for name, model in models.items()}
    with quiet(server):
        yield models.__getitem__
        for name, model in models.items():
            model.tell("model.kept = None; gc.collect()")
            assert model.value("os.getpid()") == str(*pids[name]), "the same process goes on"


@pytest.fixture
def asks(get: Get) -> Scripted:
    return get("asks")


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(asks: Scripted, size: int) -> None:
    asks.tell(f"""
given = np.random.default_rng(0).random({size}, np.float32)
found = array(call('answers', 'output = data.as_numpy()', given).exec())
np.testing.assert_array_equal(found, given)
""")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "callee",
    [
        "a = data.as_numpy(); a += 1; output = a",
        "a = data.as_numpy(); a += 1; returned = [pb_utils.InferenceResponse([data])]",
        "a = data.as_numpy(); a += 1; output = a.copy()",
        "a = data.as_numpy().reshape(-1, 2)[:, :]; a += 1; output = a.reshape(-1)",
        "a = data.as_numpy()[:]; a[:] = a + 1; output = data.as_numpy()",
    ],
)
def test_what_a_callee_does_to_its_input_the_caller_does_not_see(asks: Scripted, callee: str, size: int) -> None:
    asks.tell(f"""
given = np.arange({size}, dtype=np.float32)
tensor = pb_utils.Tensor('DATA', given)
for _ in range(2):
    answer = call('answers', {callee!r}, tensor).exec()
    assert not answer.has_error(), said(answer)
    found = array(answer)
    assert found[0] == 1 and found[-1] == {size}, found
    assert given[0] == 0 and given[-1] == {size} - 1, given
    assert tensor.as_numpy()[0] == 0
""")


@pytest.mark.parametrize("size", SIZES)
def test_two_callees_of_one_tensor_do_not_see_each_other(asks: Scripted, size: int) -> None:
    asks.tell(f"""
tensor = pb_utils.Tensor('DATA', np.zeros({size}, np.float32))
change = 'a = data.as_numpy(); a += int(request.request_id()); output = a'
found = await asyncio.gather(*[call(name, change, tensor, request_id=str(n)).async_exec()
                               for n, name in enumerate(['answers', 'third', 'answers', 'third'], 1)])
for n, answer in enumerate(found, 1):
    assert array(answer)[0] == array(answer)[-1] == n, (n, array(answer))
assert tensor.as_numpy().max() == 0
""")


@pytest.mark.parametrize("size", SIZES)
def test_what_the_caller_does_to_an_output_the_callee_does_not_see(get: Get, size: int) -> None:
    get("asks").tell(f"""
keep = 'model.kept = pb_utils.Tensor("DATA", np.zeros({size}, np.float32)); returned = [pb_utils.InferenceResponse([model.kept])]'
again = 'returned = [pb_utils.InferenceResponse([model.kept])]'
first = array(call('answers', keep).exec())
first += 5
second = array(call('answers', again).exec())
assert second.max() == 0, second
second += 7
assert first.min() == 5
third = array(call('answers', again).exec())
assert third.max() == 0, third
""")


@pytest.mark.parametrize("size", SIZES)
def test_an_output_outlives_everything_else(asks: Scripted, size: int) -> None:
    """The response, the tensor, and the next calls, which use memory again."""
    asks.tell(f"""
found = array(call('answers', 'output = np.full({size}, 3)').exec())
for i in range(5):
    array(call('answers', 'output = np.full({size}, 9)').exec())
assert found.min() == found.max() == 3
""")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "made",
    [
        "output = array(r)",
        "returned = [r]",
        "returned = [pb_utils.InferenceResponse(r.output_tensors())]",
        "output = array(r)[:]",
        "output = array(r).reshape(2, -1).reshape(-1)",
        "sender.send(r, FINAL); returned = None",
        "a = array(r); a += 0; output = a",
    ],
)
def test_an_output_returned(asks: Scripted, made: str, size: int) -> None:
    result = asks.run(f"r = call('answers', 'output = np.arange({size})').exec()\n{made}")
    np.testing.assert_array_equal(result["DATA"], np.arange(size, dtype=np.float32))
    del result


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("part", ["[5:]", "[:-5]", "[7:-7][3:]", "[100:200]", "[5000:15000]"])
def test_a_view_of_a_view_returned(asks: Scripted, part: str, size: int) -> None:
    result = asks.run(f"output = array(call('answers', 'output = np.arange({size} + 10)[5:-5]').exec()){part}")
    np.testing.assert_array_equal(result["DATA"], eval(f"(np.arange({size} + 10)[5:-5]){part}", {"np": np}).astype(np.float32))
    del result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", ["", "[1:]", "[3:][2:-2]"])
def test_the_output_of_one_call_is_the_input_of_the_next(asks: Scripted, part: str, size: int) -> None:
    asks.tell(f"""
first = array(call('answers', 'output = np.arange({size})').exec())
change = 'a = data.as_numpy(); a += 1; output = a'
second = array(call('third', change, first{part}).exec())
third = array(call('answers', change, second).exec())
np.testing.assert_array_equal(third, np.arange({size}, dtype=np.float32){part} + 2)
np.testing.assert_array_equal(second, np.arange({size}, dtype=np.float32){part} + 1)
np.testing.assert_array_equal(first, np.arange({size}, dtype=np.float32))
""")


@pytest.mark.parametrize("size", SIZES)
def test_a_changed_output_is_the_input_of_the_next(asks: Scripted, size: int) -> None:
    """Changed in this process alone, which is where the next callee has to get it from."""
    asks.tell(f"""
first = array(call('answers', 'output = np.arange({size})').exec())
first[-1] = -7
second = array(call('third', 'output = data.as_numpy()', first).exec())
assert second[-1] == -7 and second[0] == 0, second
first[0] = -8
third = array(call('third', 'output = data.as_numpy()', first[:1]).exec())
assert third[0] == -8, third
assert second[0] == 0
""")


@pytest.mark.parametrize("size", SIZES)
def test_the_input_of_a_client_is_handed_on(asks: Scripted, size: int) -> None:
    given = np.arange(size, dtype=np.float32)
    change = "a = data.as_numpy(); a *= 2; output = a"
    for code in (
        f"r = call('answers', {change!r}, data).exec(); assert data.as_numpy()[-1] == {size} - 1; output = array(r)",
        f"r = call('answers', {change!r}, data.as_numpy()).exec(); assert data.as_numpy()[-1] == {size} - 1; output = array(r)",
        f"returned = [call('answers', {change!r}, data).exec()]",
    ):
        result = asks.run(code, given)
        np.testing.assert_array_equal(result["DATA"], given * 2)
        del result


@pytest.mark.parametrize("size", SIZES)
def test_the_input_of_a_client_comes_back_through_a_callee(asks: Scripted, size: int) -> None:
    """It was never anywhere but in the memory of the first request."""
    given = np.arange(size, dtype=np.float32)
    for code in ("returned = [call('answers', 'output = data.as_numpy()', data).exec()]",
                 "output = array(call('answers', 'output = data.as_numpy()', data).exec())",
                 "inner = \"returned = [call('third', 'output = data.as_numpy()', data).exec()]\"\n"
                 "returned = [call('answers', inner, data).exec()]"):  # fmt: skip
        for _ in range(2):
            result = asks.run(code, given)
            np.testing.assert_array_equal(result["DATA"], given)
            del result


def test_one_tensor_twice_in_a_request_and_in_many(asks: Scripted) -> None:
    asks.tell("""
tensor = pb_utils.Tensor('DATA', np.arange(30_000, dtype=np.float32))
requests = [call('answers', 'output = data.as_numpy()', tensor) for _ in range(5)]
for request_ in requests * 2:
    assert array(request_.exec())[-1] == 29_999
answers = [r.exec() for r in requests]
assert all(array(a)[-1] == 29_999 for a in answers)
""")


def test_large_tensors_of_a_stream(asks: Scripted) -> None:
    """Each view is private, and given back when it goes."""
    asks.tell("""
code = 'for i in range(10): sender.send(response(i, np.full(1 << 20, i)))\\nsender.send(flags=FINAL)'
for r in call('many', code).exec(decoupled=True):
    if r.output_tensors():
        a = array(r)
        assert a[0] == a[-1] == int(said(r))
        a += 100
""")


@pytest.mark.parametrize(
    "code",
    [
        "array(call('answers', 'output = np.ones(30_000)', np.ones(30_000)).exec()).sum()",
        "array(call('answers', 'output = data.as_numpy()', np.ones(30_000)).exec()).sum()",
        "array(await call('answers', 'output = np.ones(10)').async_exec()).sum()",
        "[said(r) for r in call('many', 'for i in range(5): sender.send(response(i, np.ones(20_000)))\\nsender.send(flags=FINAL)').exec(True)]",
        "call('nope', '', np.ones(30_000)).exec()",
        "call('answers', 'raise ValueError', np.ones(30_000)).exec()",
        "call('answers', 'returned = None', np.ones(30_000)).exec()",
        "next(call('many', 'for i in range(5): sender.send(response(i, np.ones(20_000)))\\nsender.send(flags=FINAL)').exec(True))",
        "raised(sender.send, response('', np.ones(30_000)), 3)",
        "raised(sender.send, None, FINAL)",
    ],
)
def test_a_hundred_calls_leave_no_memory_behind(get: Get, code: str) -> None:
    """Neither the caller's nor the callee's."""
    asks, answers = get("asks"), get("answers")

    def free() -> tuple[str, ...]:
        return tuple(model.value("(gc.collect(), free_memory())[1]") for _ in range(3) for model in (asks, answers, get("many")))[-3:]

    asks.tell(f"for _ in range(3): {code}")
    before = free()
    asks.tell(f"for _ in range(100): {code}")
    until(lambda: free() == before)


def test_large_calls_do_not_grow(get: Get) -> None:
    """30 calls with 16 MiB each way, of which each sees the same memory again."""
    asks = get("asks")
    code = "for _ in range({}): array(call('answers', 'output = data.as_numpy() + 1', np.zeros(4 << 20)).exec())"
    asks.tell(code.format(3))
    before = [memory_bytes(model.pids[0]) for model in (asks, get("answers"))]
    asks.tell(code.format(30))
    after = [memory_bytes(model.pids[0]) for model in (asks, get("answers"))]
    assert max(b - a for a, b in zip(before, after)) < 100 * MEBI


def test_no_room_for_the_inputs_of_a_call(asks: Scripted) -> None:
    answer = asks.say(
        """
memory = pb_utils.InferenceRequest.exec.__globals__['host'].caller._memory
grow, memory.arena._grow = memory.arena._grow, lambda nbytes: memory_that_nobody_has(1 << 50)
memory_that_nobody_has = grow
try:
    result = said(call('answers', 'result = 1', np.zeros(100 << 20, np.float32)).exec())
finally:
    memory.arena._grow = grow
    # What was in no use has gone back to make room; here again is what the tests of this module need.
    memory.arena.add(grow(%d << 20))
"""
        % ROOM
    )
    assert "Failed to increase the shared memory pool size" in answer
    assert asks.say("result = said(call('answers', 'result = 1').exec())") == "1"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "made", ["data.as_numpy()", "np.array(data.as_numpy())", "array(call('third', 'output = data.as_numpy()', data).exec())"]
)
def test_an_input_is_what_it_was_when_the_call_was_made(asks: Scripted, made: str, size: int) -> None:
    """The caller changes its array in place while the callee has not looked at it yet."""
    asks.run(
        f"""
x = {made}
flag = os.path.join(pb_utils.get_model_dir(), 'go')
it = call('answers', "until(lambda: os.path.exists(request.request_id())); output = data.as_numpy().copy()", x, request_id=flag).exec(True)
x[:] = 9
open(flag, 'w').close()
(answer,) = it
os.unlink(flag)
assert not answer.has_error(), said(answer)
assert array(answer).max() == 0, array(answer)
""",
        np.zeros(size),
    )
