"""Requests that a model makes to other models (spec section 3): the rules, the errors, the iterator, and calls in a circle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import pytest
from model_repository import copy_model
from scripted import Scripted, quiet, room, scripted, texts
from server_process import until
from stublet.parent import Server

ASKING = ["asks", "streams"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("bls")
    early = """
        async def later():
            return await call('answers').async_exec()
        model.early = [raised(call('answers').exec), raised(call('answers').exec, True), raised(asyncio.run, later())]
    """
    scripted(root, "asks", initialize=early)
    scripted(root, "streams", decoupled=True)
    scripted(root, "answers", instances=2)
    scripted(root, "alone")
    scripted(root, "many", instances=2, decoupled=True)
    copy_model(root, "add_sub")
    copy_model(root, "every_type")
    copy_model(root, "versions")
    with Server(root, options=room()) as server:
        # What only some tests start: the thread that reads replies for coroutines, and the like.
        yield server


NAMES = ["asks", "streams", "answers", "alone", "many"]

Get = Callable[[str], Scripted]


@pytest.fixture
def get(server: Server) -> Iterator[Get]:
    """The models by name, in good order before and after."""
    models = {name: Scripted(server, name) for name in NAMES}
    pids = {name: model.pids for name, model in models.items()}
    for name in ("asks", "streams", "alone"):
        models[name].tell("model.executed.clear(); model.errors.clear(); model.released.clear(); model.kept = None")
    with quiet(server):
        yield models.__getitem__
        for name, model in models.items():
            assert model.pids == pids[name], "the same processes go on"
            model.value("'served'")


@pytest.fixture
def asks(get: Get) -> Scripted:
    return get("asks")


def calls(code: str) -> str:
    """Text that calls ``answers`` with that code, and says what came."""
    return f"result = said(call('answers', {code!r}).exec())"


def test_a_call(asks: Scripted) -> None:
    assert asks.say(calls("result = 'hello'")) == "hello"


@pytest.mark.parametrize(
    "code, expected",
    [
        # Where BLS may be used from
        ("result = said(call('answers', 'result = 5').exec())", "5"),
        ("with ThreadPoolExecutor(1) as pool: result = said(pool.submit(call('answers', 'result = 5').exec).result())", "5"),
        ("result = said(await call('answers', 'result = 5').async_exec())", "5"),
        ("async def f(): return await call('answers', 'result = 5').async_exec()\nresult = said(asyncio.run(f()))", "5"),
        ("result = said(await asyncio.to_thread(call('answers', 'result = 5').exec))", "5"),
        ("await asyncio.sleep(0)\nresult = said(call('answers', 'result = 5').exec())", "5"),
        ("""
found = await asyncio.gather(*[call('answers', f'result = {i}').async_exec() for i in range(20)])
result = [int(said(r)) for r in found]""", str(list(range(20)))),
        ("""
with ThreadPoolExecutor(16) as pool:
    result = [said(r) for r in pool.map(lambda i: call('answers', f'result = {i}').exec(), range(50))]""", str([str(i) for i in range(50)])),
        # The same request again, and at once
        ("r = call('answers', 'result = request.request_id()', request_id='x')\nresult = [said(r.exec()) for _ in range(5)]", str(["x"] * 5)),
        ("r = call('answers', 'result = 7')\nresult = [said(a) for a in await asyncio.gather(*[r.async_exec() for _ in range(10)])]",
         str(["7"] * 10)),
        ("r = call('answers', 'result = 7')\nwith ThreadPoolExecutor(8) as pool: result = [said(a) for a in pool.map(lambda _: r.exec(), range(20))]",
         str(["7"] * 20)),
        # Errors are returned
        ("result = said(call('nope').exec())", "error: Model nope - Error when running inference: Request for unknown model: 'nope' is not found"),
        ("result = said(call('answers', model_version=9).exec())",
         "error: Model answers - Error when running inference: Request for unknown model: 'answers' version 9 is not found"),
        ("result = call('nope').exec().error().code() == pb_utils.TritonError.INTERNAL", "True"),
        ("result = call('nope').exec().output_tensors()", "[]"),
        ("result = said(await call('nope').async_exec())",
         "error: Model nope - Error when running inference: Request for unknown model: 'nope' is not found"),
        ("result = [said(r) for r in call('nope').exec(decoupled=True)]",
         "[\"error: Model nope - Error when running inference: Request for unknown model: 'nope' is not found\"]"),
        ("result = [said(r) for r in await call('nope').async_exec(decoupled=True)]",
         "[\"error: Model nope - Error when running inference: Request for unknown model: 'nope' is not found\"]"),
        ("result = said(call('many', 'pass').exec())",
         "error: Model many - Error when running inference: Model many is using the decoupled. The current BLS request call doesn't support models using "
         "the decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for decoupled models.'"),
        ("result = said(pb_utils.InferenceRequest(model_name='add_sub', inputs=[pb_utils.Tensor('INPUT0', np.zeros(4, np.float32))], "
         "requested_output_names=[]).exec())",
         "error: Model add_sub - Error when running inference: expected 2 inputs but got 1 inputs for model 'add_sub'. Got input(s) ['INPUT0'], but "
         "missing required input(s) ['INPUT1']. Please provide all required input(s)."),
        ("result = said(call('answers', 'raise ValueError(5)').exec()).split(', message: ')[1]", "ValueError: 5"),
        ("""
r = call('answers', "returned = [failure('gone', pb_utils.TritonError.NOT_FOUND)]").exec()
result = r.has_error(), r.error().message(), r.error().code() == pb_utils.TritonError.NOT_FOUND, r.output_tensors()""",
         "(True, 'gone', True, [])"),
        ("result = said(call('answers', 'result = 1', wanted=['NOPE']).exec())",
         "error: Model answers - Error when running inference: unexpected inference output 'NOPE' for model 'answers'"),
        ("result = raised(request.exec)",
         "TritonModelException: a request that came from the server cannot be executed; make an InferenceRequest of its inputs"),
        # Requested outputs
        ("result = [t.name() for t in call('answers', 'output = [1]').exec().output_tensors()]", "['RESULT', 'DATA']"),
        ("result = [t.name() for t in call('answers', 'output = [1]', wanted=['DATA']).exec().output_tensors()]", "['DATA']"),
        ("result = [t.name() for t in call('answers', 'output = [1]', wanted=['DATA', 'RESULT', 'DATA']).exec().output_tensors()]",
         "['RESULT', 'DATA']"),
        ("result = said(call('answers', 'result = sorted(request.requested_output_names())', wanted=['RESULT']).exec())", "['RESULT']"),
        ("result = said(call('answers', 'result = sorted(request.requested_output_names())').exec())", "['DATA', 'RESULT']"),
        # What is forwarded
        ("result = said(call('answers', 'result = request.request_id()', request_id='é').exec())", "é"),
        ("result = said(call('answers', 'result = repr(request.request_id())').exec())", "''"),
        ("result = said(call('answers', 'result = request.correlation_id()', correlation_id=2**64-1).exec())", str(2**64 - 1)),
        ("result = said(call('answers', 'result = repr(request.correlation_id())', correlation_id='seq').exec())", "'seq'"),
        ("result = said(call('answers', 'result = request.correlation_id()').exec())", "0"),
        ("result = said(call('answers', 'result = request.flags()', flags=3).exec())", "3"),
        ("r = call('answers', 'result = request.flags()'); r.set_flags(2); result = said(r.exec())", "2"),
        ("result = said(call('answers', 'result = request.timeout()', timeout=11_000_000_000).exec())", "11000000000"),
        ("result = said(call('answers', 'result = json.loads(request.parameters())', parameters={'b': True, 'i': -2, 's': 'é'}).exec())",
         "{'b': True, 'i': -2, 's': 'é'}"),
        ("result = said(call('answers', 'result = request.parameters()').exec())", "{}"),
        ("result = said(call('versions').exec()) and call('answers').exec().parameters()", "{}"),
        ("result = json.loads(call('answers', \"returned = [response('', parameters={'a': 1})]\").exec().parameters())", "{'a': 1}"),
        ("result = said(call('answers', 'result = request.trace().get_context()', trace=request.trace()).exec())", "None"),
        # A model that is not decoupled, asked for a stream
        ("result = [said(r) for r in call('answers', 'result = 5').exec(decoupled=True)]", "['5']"),
        ("i = call('answers', 'result = 5').exec(decoupled=True)\nresult = said(next(i)), raised(next, i)", "('5', 'StopIteration: ')"),
        ("result = [said(r) async for r in await call('answers', 'result = 5').async_exec(decoupled=True)]", "['5']"),
        # Inputs and outputs handed through
        ("returned = [call('answers', 'result = 5; output = [1, 2]').exec()]", "5"),
        ("returned = [pb_utils.InferenceResponse(call('answers', 'result = 5; output = [1, 2]').exec().output_tensors())]", "5"),
        ("sender.send(call('answers', 'result = 5').exec(), FINAL); returned = None", "5"),
    ],
)  # fmt: skip
def test_what_comes_of_calls(asks: Scripted, code: str, expected: str) -> None:
    assert asks.say(code) == expected


NOT_NOW = "TritonModelException: BLS is only supported during the 'execute' function."


def test_not_in_initialize(asks: Scripted) -> None:
    assert asks.value("model.early") == str([NOT_NOW] * 3)


def test_not_in_finalize(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted(tmp_path, "asks", finalize="pb_utils.Logger.log_info('in finalize: ' + raised(call('asks').exec))")
    with caplog.at_level("INFO"), Server(tmp_path):
        pass
    assert f"in finalize: {NOT_NOW}" in caplog.messages


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT64", "FP16", "FP64", "BYTES", "BF16"])
def test_every_kind_of_tensor(asks: Scripted, datatype: str) -> None:
    made = {
        "BYTES": "np.array([b'a', b'', 'é'.encode() * 30_000], object)", "BOOL": "np.array([True, False] * 20_000)",
        "BF16": "np.arange(3, dtype=np.uint16)",
    }.get(datatype, f"np.arange(20_000).astype(np.{datatype.lower().replace('fp', 'float')})")  # fmt: skip
    tensor = f"pb_utils.Tensor('IN_{datatype}', {made})"
    if datatype == "BF16":
        tensor = "pb_utils.empty('IN_BF16', [3], 'BF16')"
    asks.tell(f"""
given = {tensor}
found = pb_utils.InferenceRequest(model_name='every_type', inputs=[given], requested_output_names=[]).exec()
assert not found.has_error(), found.error().message()
(found,) = found.output_tensors()
assert (found.name(), found.shape(), found.triton_dtype()) == ('OUT_{datatype}', given.shape(), given.triton_dtype())
if '{datatype}' != 'BF16':
    np.testing.assert_array_equal(found.as_numpy(), given.as_numpy())
""")


def test_malformed_strings_are_refused(asks: Scripted) -> None:
    asks.tell("""
tensor = pb_utils.Tensor('IN_BYTES', np.array([b'abc'], object))
tensor._data = tensor._data.copy(); tensor._data[0] = 200
answer = pb_utils.InferenceRequest(model_name='every_type', inputs=[tensor], requested_output_names=[]).exec()
assert answer.has_error() and 'every_type' in answer.error().message(), answer
""")


@pytest.mark.parametrize("name", ASKING)
def test_calls_after_execute_returned(get: Get, name: str) -> None:
    """From a thread, while the next request is executed."""
    model = get(name)
    code = "in_thread(lambda: (model.released.wait(30), sender.send(response(said(call('answers', 'result = 5').exec())), FINAL)))"
    with model.stream(code + "\nreturned = None") as stream:
        assert model.value("'in between'") == "in between"
        model.tell("model.released.set()")
        assert texts(stream) == ["5"]


def test_calls_of_background_coroutines(get: Get) -> None:
    streams = [
        get("streams").stream(f"sender.send(await call('answers', 'result = {i}').async_exec(), FINAL)", request_id=str(i))
        for i in range(10)
    ]
    assert [texts(stream) for stream in streams] == [[str(i)] for i in range(10)]


# Streams


@pytest.mark.parametrize(
    "callee, expected",
    [
        ("sender.send(flags=FINAL)", [""]),
        ("sender.send(response('a'), FINAL)", ["a"]),
        ("sender.send(response('a')); sender.send(flags=FINAL)", ["a", ""]),
        ("for i in range(4): sender.send(response(i))\nsender.send(flags=FINAL)", ["0", "1", "2", "3", ""]),
        ("sender.send(failure('one')); sender.send(response('a'), FINAL)", ["error: one", "a"]),
        ("sender.send(response('a')); raise ValueError('oh')", ["a", "error: oh"]),
        ("in_thread(lambda: [(sender.send(response(i)), time.sleep(0.01)) for i in range(3)] and sender.send(flags=FINAL))", ["0", "1", "2", ""]),
        ("sender.send(response('a'))", ["a", "error: the model dropped"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "way",
    [
        "found = list(call('many', {!r}).exec(decoupled=True))",
        "found = list(await call('many', {!r}).async_exec(decoupled=True))",
        "found = [r async for r in await call('many', {!r}).async_exec(decoupled=True)]",
        "found = [r async for r in call('many', {!r}).exec(decoupled=True)]",
        "with ThreadPoolExecutor(1) as pool: found = list(pool.submit(call('many', {!r}).exec, True).result())",
    ],
    ids=["for", "async exec", "async for", "exec and async for", "thread"],
)
def test_streams(asks: Scripted, way: str, callee: str, expected: list[str]) -> None:
    found = eval(asks.say(way.format(callee) + "\nresult = [said(r) for r in found]"))
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected):
        assert wanted.removeprefix("error: ") in got if wanted.startswith("error") else got == wanted


COUNT = "for i in range(4): sender.send(response(i))\nsender.send(flags=FINAL)"


@pytest.mark.parametrize(
    "code, expected",
    [
        # Replayed from the start when it was exhausted, resumed when it was not
        ("result = [[said(r) for r in it] for _ in range(3)]", str([["0", "1", "2", "3", ""]] * 3)),
        ("""
for r in it:
    if said(r) == '1': break
result = [said(r) for r in it]""", "['2', '3', '']"),
        ("result = [said(next(it)), said(next(it))] + [said(r) for r in it]", "['0', '1', '2', '3', '']"),
        ("result = [said(r) for r in it], raised(next, it), raised(next, it)",
         "(['0', '1', '2', '3', ''], 'StopIteration: ', 'StopIteration: ')"),
        ("list(it)\nfor r in it: break\nresult = [said(r) for r in it]", "['1', '2', '3', '']"),
        ("result = len(list(it)[-1].output_tensors())", "0"),
        ("""
first = [said(r) async for r in it]
second = [said(r) async for r in it]
result = first == second == ['0', '1', '2', '3', '']""", "True"),
        ("""
async for r in it: break
result = [said(r) async for r in it]""", "['1', '2', '3', '']"),
        ("""
async for r in it: break
result = [said(r) for r in it]""", "['1', '2', '3', '']"),
        ("it.cancel(); result = len(list(it)) in (5, 1, 2, 3, 4)", "True"),
        ("list(it); it.cancel(); result = [said(r) for r in it]", "['0', '1', '2', '3', '']"),
    ],
)  # fmt: skip
def test_the_rules_of_the_iterator(asks: Scripted, code: str, expected: str) -> None:
    assert asks.say(f"it = call('many', {COUNT!r}).exec(decoupled=True)\n{code}") == expected


def test_an_iterator_is_dropped_unfinished(asks: Scripted) -> None:
    """What still comes is dropped too; nothing waits for it."""
    for taken in (0, 1):
        asks.tell(f"""
it = call('many', 'for i in range(100): sender.send(response(i, np.ones(30_000)))\\nsender.send(flags=FINAL)').exec(decoupled=True)
for _ in range({taken}): next(it)
del it
""")


def test_many_iterators_at_once(asks: Scripted) -> None:
    code = "for i in range(50): sender.send(response(f'{request.request_id()}.{i}'))\\nsender.send(flags=FINAL)"
    for gather in (
        f"""
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda n: [said(r) for r in call('many', '''{code}''', request_id=str(n)).exec(decoupled=True)], range(8)))""",
        f"""
async def take(n): return [said(r) async for r in await call('many', '''{code}''', request_id=str(n)).async_exec(decoupled=True)]
found = await asyncio.gather(*map(take, range(8)))""",
        f"""
its = [call('many', '''{code}''', request_id=str(n)).exec(decoupled=True) for n in range(8)]
found = [[said(r) for r in it] for it in reversed(its)][::-1]""",
    ):
        assert asks.say(gather + "\nresult = found == [[f'{n}.{i}' for i in range(50)] + [''] for n in range(8)]") == "True"


def test_ten_thousand_responses_of_one_call(asks: Scripted) -> None:
    code = "for i in range(10_000): sender.send(response(i))\\nsender.send(flags=FINAL)"
    assert asks.say(f"result = [said(r) for r in call('many', '{code}').exec(decoupled=True)] == [*map(str, range(10_000)), '']") == "True"
    assert asks.say(f"result = len([r async for r in call('many', '{code}').exec(decoupled=True)])") == "10001"


def test_waiting_for_the_next_response_with_a_timeout(asks: Scripted) -> None:
    """Waiting again takes up where the wait was given up: no response is lost."""
    assert asks.say("""
it = call('many', 'in_thread(lambda: [(time.sleep(0.05), sender.send(response(i))) for i in range(4)] and sender.send(flags=FINAL))').exec(True)
found, timeouts = [], 0
while True:
    try:
        found.append(said(await asyncio.wait_for(it.__anext__(), 0.01)))
    except asyncio.TimeoutError:
        timeouts += 1
    except StopAsyncIteration:
        break
result = found, timeouts > 0
""") == "(['0', '1', '2', '3', ''], True)"  # fmt: skip


def test_nobody_leads_for_coroutines_that_are_gone(asks: Scripted) -> None:
    """The thread that waits for coroutines lets the main thread have the ring again."""
    test_waiting_for_the_next_response_with_a_timeout(asks)
    assert asks.value("pb_utils.InferenceRequest.exec.__globals__['host'].caller._inbox._coroutines._count") == "0"


@pytest.mark.parametrize("name", ASKING)
def test_a_coroutine_that_gives_up_a_call(get: Get, name: str) -> None:
    """The callee is told; what it answers goes nowhere."""
    model = get(name)
    model.tell("""
wait = "until(request.is_cancelled); model.errors.append('cancelled'); output = np.ones(30_000)"
try:
    await asyncio.wait_for(call('alone', wait).async_exec(), 0.05)
    assert False
except asyncio.TimeoutError:
    pass
""")
    until(lambda: get("alone").value("model.errors") == "['cancelled']")


# Under load


def test_many_threads_make_many_calls(asks: Scripted) -> None:
    assert asks.say("""
def work(number):
    for i in range(40):
        answer = call('answers', f'result = {number * 1000 + i}').exec()
        assert said(answer) == str(number * 1000 + i), said(answer)
    return True
with ThreadPoolExecutor(32) as pool: result = all(pool.map(work, range(32)))
""") == "True"  # fmt: skip


def test_threads_and_coroutines_make_calls_at_once(get: Get) -> None:
    asks = get("asks")
    assert asks.say("""
async def work(number):
    for i in range(30):
        assert said(await call('answers', f'result = {number * 1000 + i}').async_exec()) == str(number * 1000 + i)
    return True
def work_in_thread(number):
    return all(said(call('answers', f'result = {number}').exec()) == str(number) for _ in range(30))
with ThreadPoolExecutor(8) as pool:
    futures = [pool.submit(work_in_thread, n) for n in range(8)]
    found = await asyncio.gather(*map(work, range(16)))
    result = all(found) and all([await asyncio.wrap_future(f) for f in futures])
""") == "True"  # fmt: skip


def test_calls_while_clients_ask_too(get: Get) -> None:
    asks, answers = get("asks"), get("answers")

    def client(number: int) -> None:
        for i in range(20):
            if number % 2:
                assert asks.say(calls(f"result = {number * i}")) == str(number * i)
            else:
                assert answers.say(f"result = {number * i}") == str(number * i)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))


def test_a_chain_of_calls(asks: Scripted) -> None:
    """asks -> streams -> answers -> alone, and the tensor through all of them."""
    third = "r = call('alone', 'output = data.as_numpy() + 1', data).exec(); output = array(r)"
    second = f"r = call('answers', {third!r}, data).exec(); sender.send(r, FINAL)"
    result = asks.run(f"(r,) = call('streams', {second!r}, np.arange(50_000)).exec(decoupled=True); output = array(r)\nresult = said(r)")
    np.testing.assert_array_equal(result["DATA"], np.arange(1, 50_001))
    del result


# In a circle


def test_an_instance_calls_another_of_its_model(get: Get) -> None:
    assert get("answers").say("result = said(call('answers', 'result = model.instance').exec()) != model.instance") == "True"


def test_a_lone_instance_calls_itself(get: Get) -> None:
    alone = get("alone")
    answer = alone.say("result = said(call('alone', 'result = 1').exec())")
    assert answer.startswith("error: Model alone - Error when running inference: the call can never be served, because ")
    assert "alone_0_0 -> alone_0_0;" in answer


def test_two_models_call_each_other(get: Get) -> None:
    inner = "result = said(call('asks', 'result = 1').exec())"
    answer = get("asks").say(f"result = said(call('alone', {inner!r}).exec())")
    assert answer.startswith("error: Model asks - Error when running inference: the call can never be served, because ")
    assert "asks_0_0 -> alone_0_0 -> asks_0_0;" in answer or "alone_0_0 -> asks_0_0 -> alone_0_0;" in answer


def test_two_models_call_each_other_and_another_instance_is_free(get: Get) -> None:
    inner = "result = said(call('answers', 'result = model.instance').exec())"
    assert get("answers").say(f"result = said(call('alone', {inner!r}).exec()) != model.instance") == "True"


def test_both_instances_call_their_model_at_once(get: Get, tmp_path: Path) -> None:
    """Each waits for the other: the second is told so, which lets the first go on."""
    answers = get("answers")
    inner = "result = 'inner'"
    both = f"open(os.path.join({str(tmp_path)!r}, model.instance), 'w').close(); until(lambda: len(os.listdir({str(tmp_path)!r})) == 2)"
    code = f"{both}; result = said(call('answers', {inner!r}).exec())"
    with ThreadPoolExecutor(2) as pool:
        found = sorted(pool.map(answers.say, [code, code]))
    assert found[1] == "inner"
    assert "never be served" in found[0]


def test_a_coroutine_calls_its_own_instance(get: Get) -> None:
    """The instance awaits the coroutine, so nobody can serve the call; whether ``execute`` waits for it, only time can tell."""
    alone = get("alone")
    streams = get("streams")
    # One that is no circle, though it looks like one for a while.
    with streams.stream(
        "sender.send(response([said(r) for r in call('streams', \"sender.send(response('x'), FINAL)\").exec(True)]), FINAL)"
    ):
        pass
    answer = alone.say("result = said(await call('alone', 'result = 1').async_exec())")
    assert "alone_0_0 -> alone_0_0;" in answer


def test_a_decoupled_model_calls_itself_in_the_background(get: Get) -> None:
    """Its execution is over, so there is no circle."""
    streams = get("streams")
    inner = "sender.send(response('inner'), FINAL)"
    for code in (
        f"in_thread(lambda: sender.send(response([said(r) for r in call('streams', {inner!r}).exec(decoupled=True)]), FINAL))",
        f"sender.send(response([said(r) async for r in await call('streams', {inner!r}).async_exec(decoupled=True)]), FINAL)",
    ):
        assert streams.items(code) == ["['inner']"]
