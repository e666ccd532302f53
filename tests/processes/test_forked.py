"""Processes that a model forks (spec 0.4): they may call other models and log, and cannot do any harm."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator

import pytest
from scripted import Scripted, quiet, room, scripted, texts
from server_process import alive, descendants, until
from stublet.parent import Server
from stublet.shm import control

FORK = """
def in_child(function):
    # What the function returns in a forked process, or raises there.
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            text = str(function())
        except BaseException as error:
            text = f'{type(error).__name__}: {error}'
        while text:
            text = text[os.write(writer, text.encode()):]
        os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as pipe:
        found = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return found
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("forked")
    scripted(root, "asks")
    scripted(root, "streams", decoupled=True)
    scripted(root, "answers", instances=2)
    scripted(root, "many", decoupled=True)
    with Server(root, options=room(96)) as server:
        yield server


Get = Callable[[str], Scripted]


@pytest.fixture
def get(server: Server) -> Iterator[Get]:
    """The models by name, in good order before and after."""
    models = {name: Scripted(server, name) for name in ("asks", "streams", "answers", "many")}
    pids = {name: model.pids for name, model in models.items()}
    for name in ("asks", "streams", "many"):
        models[name].tell("model.executed.clear(); model.errors.clear(); model.released.clear()")
    with quiet(server):
        yield models.__getitem__
        for name, model in models.items():
            assert model.pids == pids[name], "the same processes go on"
            model.value("'served'")
            for pid in model.pids:
                until(lambda p=pid: not descendants(p), 10, "the end of its children")  # type: ignore[misc]


@pytest.fixture
def asks(get: Get) -> Scripted:
    return get("asks")


@pytest.mark.parametrize(
    "code, expected",
    [
        ("said(call('answers', 'result = 5').exec())", "5"),
        ("said(call('answers', 'result = request.request_id() + request.parameters()', request_id='é', parameters={'a': 1}).exec())",
         'é{"a": 1}'),
        ("said(call('answers', 'result = request.correlation_id(), request.flags(), request.timeout()', correlation_id='c', flags=1, "
         "timeout=7).exec())", "('c', 1, 7)"),
        ("array(call('answers', 'output = data.as_numpy() * 2', np.arange(3)).exec()).tolist()", "[0.0, 2.0, 4.0]"),
        ("array(call('answers', 'output = data.as_numpy() + 1', np.zeros(4 << 20)).exec()).sum() == 4 << 20", "True"),
        ("[t.name() for t in call('answers', 'output = [1]', wanted=['DATA']).exec().output_tensors()]", "['DATA']"),
        ("call('answers', \"returned = [response('', parameters={'a': 1})]\").exec().parameters()", '{"a":1}'),
        ("said(call('nope').exec())", "error: Model nope - Error when running inference: Request for unknown model: 'nope' is not found"),
        ("call('nope').exec().error().code() == pb_utils.TritonError.INTERNAL", "True"),
        ("said(call('answers', \"returned = [failure('mine', pb_utils.TritonError.NOT_FOUND)]\").exec())", "error: mine"),
        ("'is using the decoupled' in said(call('many').exec())", "True"),
        ("said(call('answers', wanted=['NOPE']).exec())",
         "error: Model answers - Error when running inference: unexpected inference output 'NOPE' for model 'answers'"),
        ("[said(r) for r in call('answers', 'result = 5').exec(decoupled=True)]", "['5']"),
        ("[said(r) for r in call('many', 'for i in range(3): sender.send(response(i))\\nsender.send(flags=FINAL)').exec(decoupled=True)]",
         "['0', '1', '2', '']"),
        ("[len(array(r)) for r in call('many', 'for i in range(4): sender.send(response(i, np.ones(1 << 20)), FINAL * (i == 3))').exec(True)]",
         str([1 << 20] * 4)),
        ("len(list(call('many', 'for i in range(5000): sender.send(response(i))\\nsender.send(flags=FINAL)').exec(decoupled=True)))", "5001"),
        ("asyncio.run(asyncio.wait_for(asyncio.to_thread(call('answers', 'result = 5').exec), 20)).has_error()", "False"),
        ("[said(call('answers', f'result = {i}').exec()) for i in range(200)] == [str(i) for i in range(200)]", "True"),
        ("list(ThreadPoolExecutor(8).map(lambda i: said(call('answers', f'result = {i}').exec()), range(40))) == [str(i) for i in range(40)]",
         "True"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["asks", "streams"])
def test_calls(get: Get, name: str, code: str, expected: str) -> None:
    model = get(name)
    text = f"{FORK}\nresult = in_child(lambda: {code})"
    found = model.say(text) if name == "asks" else model.items(text + "\nsender.send(response(result), FINAL)")[0]
    assert found.replace('": ', '":') == expected.replace('": ', '":')


def test_those_that_are_too_many_are_hung_up_on(asks: Scripted) -> None:
    """Each has a descriptor of the server's."""
    assert asks.say("""
import gc, resource, socket
from stublet.shm.control import FORKED
from stublet.stub.process import Stub
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
(stub,) = [thing for thing in gc.get_objects() if isinstance(thing, Stub)]
def open_call():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        while True:
            try:
                stub._control.send((FORKED,), [far.fileno()])
                return near
            except TimeoutError:
                time.sleep(0.001)
calls = [open_call() for _ in range(600)]
assert not calls[-1].recv(1)
def is_open(call):
    call.setblocking(False)
    try:
        return call.recv(1) != b''
    except BlockingIOError:
        return True
result = sum(map(is_open, calls))
for call in calls:
    call.close()
""") == "512"  # fmt: skip


def test_async_exec(asks: Scripted) -> None:
    assert asks.say(f"""{FORK}
async def several():
    found = await asyncio.gather(*[call('answers', f'result = {{i}}').async_exec() for i in range(10)])
    stream = await call('many', 'for i in range(3): sender.send(response(i))\\nsender.send(flags=FINAL)').async_exec(decoupled=True)
    return [said(r) for r in found], [said(r) async for r in stream]
result = in_child(lambda: asyncio.run(several()))
""") == str(([str(i) for i in range(10)], ["0", "1", "2", ""]))  # fmt: skip


@pytest.mark.parametrize("end", ["", "pool.close(); pool.join()", "pool.terminate()"])
def test_a_pool(asks: Scripted, end: str) -> None:
    """The workers end when they are told to, whatever signals the stub itself takes no notice of."""
    assert asks.say(f"""
with multiprocessing.get_context('fork').Pool(4) as pool:
    result = pool.map(double, range(40)) == [str(i * 2) for i in range(40)]
    {end or 'pass'}
""") == "True"  # fmt: skip


def test_a_pool_that_lives_on(asks: Scripted) -> None:
    asks.tell("model.pool = multiprocessing.get_context('fork').Pool(2)")
    for _ in range(3):
        assert asks.say("result = model.pool.map(double, range(10)) == [str(i * 2) for i in range(10)]") == "True"
    asks.tell("model.pool.terminate(); model.pool.join(); del model.pool")


def test_forked_in_a_thread_while_others_are_busy(get: Get) -> None:
    """Whatever locks other threads hold at that moment."""
    assert get("asks").say(f"""{FORK}
stop = threading.Event()
def busy():
    while not stop.is_set():
        call('answers', 'pass', np.ones(100)).exec()
        pb_utils.Logger.log_verbose('busy')
with ThreadPoolExecutor(5) as pool:
    others = [pool.submit(busy) for _ in range(4)]
    found = [pool.submit(in_child, lambda: said(call('answers', f'result = {{i}}', np.ones(100)).exec())).result() for i in range(15)]
    stop.set()
result = found == [str(i) for i in range(15)]
""") == "True"  # fmt: skip


def test_what_a_child_may_not(get: Get) -> None:
    """It shares the rings and the memory of its parent, and so must not write to either."""
    model = get("streams")
    answers = model.items(f"""{FORK}
it = call('many', 'for i in range(3): sender.send(response(i))\\nsender.send(flags=FINAL)').exec(decoupled=True)
sender.send(response(in_child(lambda: sender.send(response('from the child', np.ones(30_000))))))
sender.send(response(in_child(lambda: sender.send(flags=FINAL))))
sender.send(response(in_child(lambda: pb_utils.is_model_ready('answers'))))
sender.send(response(in_child(lambda: [said(r) for r in it])))
sender.send(response([said(r) for r in it]), FINAL)
""")
    assert answers.pop() == "['0', '1', '2', '']"
    assert len(answers) == 4
    assert all("TritonModelException: " in answer for answer in answers), answers


def test_a_child_does_not_write_to_its_parents_memory(get: Get) -> None:
    """What both would do with the same free block."""
    assert get("asks").say(f"""{FORK}
mine = pb_utils.Tensor('DATA', np.zeros(30_000, np.float32))
assert array(call('answers', 'output = data.as_numpy()', mine).exec()).max() == 0
def work():
    for i in range(20):
        raised(sender.send, response('', np.full(30_000, 9)))
        pb_utils.empty('DATA', [30_000], np.float32).as_numpy()[:] = 9
        call('answers', 'output = data.as_numpy()', np.full(30_000, 9)).exec()
    return 'done'
assert in_child(work) == 'done'
result = array(call('answers', 'output = data.as_numpy()', mine).exec()).max()
""") == "0.0"  # fmt: skip


def test_what_a_child_drops_is_not_dropped(get: Get) -> None:
    """Its copies of requests, of tensors and of iterators go with it; those of the model stay."""
    model = get("asks")
    assert model.say(f"""{FORK}
kept = array(call('answers', 'output = np.full(30_000, 7)').exec())
it = call('many', 'for i in range(3): sender.send(response(i))\\nsender.send(flags=FINAL)').exec(decoupled=True)
def work():
    global kept, it, request, sender, data
    del kept, it, request, sender, data
    gc.collect()
    return 'done'
assert in_child(work) == 'done'
again = [array(call('answers', 'output = np.full(30_000, 8)').exec()) for _ in range(5)]
assert kept.min() == kept.max() == 7
result = [said(r) for r in it]
""", None) == "['0', '1', '2', '']"  # fmt: skip


def test_a_child_that_returns_from_execute(get: Get, caplog: pytest.LogCaptureFixture) -> None:
    """It has no business there, and ends; above all it does not serve."""
    for name in ("asks", "streams"):
        model = get(name)
        (pid,) = model.pids
        code = "child = os.fork()\nif child: model.executed.append(child)"
        if name == "streams":
            assert model.items(code + "\nsender.send(response('x'), FINAL) if child else None") == ["x"]
        else:
            assert model.say(code + "\nresult = 'x' if child else 'from the child'") == "x"
        for _ in range(20):
            assert model.value("os.getpid()") == str(pid)
        child = int(model.value("model.executed[0]"))
        until(lambda c=child: not alive(c))  # type: ignore[misc]
        model.tell("os.waitpid(model.executed.pop(), 0)")


def test_a_child_that_raises_in_execute(asks: Scripted) -> None:
    (pid,) = asks.pids
    assert asks.say("child = os.fork()\nif not child: raise ValueError('in the child')\nmodel.executed.append(child); result = 'x'") == "x"
    for _ in range(20):
        assert asks.value("os.getpid()") == str(pid)
    asks.tell("os.waitpid(model.executed.pop(), 0)")


def test_a_child_of_a_coroutine(asks: Scripted) -> None:
    assert asks.say(f"{FORK}\nawait asyncio.sleep(0)\nresult = in_child(lambda: said(call('answers', 'result = 5').exec()))") == "5"


def test_logging(asks: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        asks.tell(f"""{FORK}
def work():
    for i in range(100): pb_utils.Logger.log_info(f'line {{i}} of the child')
    print('printed by the child', flush=True)
    logging.getLogger('x').warning('logged by the child')
in_child(work)
for i in range(100): pb_utils.Logger.log_info(f'line {{i}} of the parent')
""")
        wanted = [f"line {i} of the {who}" for who in ("child", "parent") for i in range(100)]
        wanted += ["printed by the child", "logged by the child"]
        until(lambda: all(caplog.messages.count(line) == 1 for line in wanted))


def test_a_child_is_killed_in_a_call(get: Get) -> None:
    """Nobody waits for the answer any more, which the callee is told."""
    asks, many = get("asks"), get("many")
    callee = (
        "model.executed.append(1); in_thread(lambda: (until(sender.is_cancelled), model.errors.append('told'), sender.send(flags=FINAL)))"
    )
    asks.tell(f"""
child = os.fork()
if not child:
    list(call('many', {callee!r}).exec(decoupled=True))
    os._exit(0)
until(lambda: said(list(call('many', 'sender.send(response(model.executed), FINAL)').exec(decoupled=True))[0]) == '[1]')
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
""")
    until(lambda: many.value("model.errors") == "['told']")


@pytest.mark.parametrize("size", [1, 10_000])
def test_a_child_takes_its_time(asks: Scripted, size: int) -> None:
    """What finds no room in its socket waits for it at the server."""
    number = 3000 if size == 1 else 400
    callee = f"for i in range({number}): sender.send(response(i, np.ones({size})))\nmodel.executed.append('sent')\nsender.send(flags=FINAL)"
    assert asks.say(f"""{FORK}
def work():
    it = call('many', {callee!r}).exec(decoupled=True)
    first = said(next(it))
    until(lambda: said(list(call('many', 'sender.send(response(model.executed), FINAL)').exec(decoupled=True))[0]) == "['sent']")
    return first == '0' and [said(r) for r in it] == [str(i) for i in range(1, {number})] + ['']
result = in_child(work)
""") == "True"  # fmt: skip


def test_an_answer_longer_than_any_message_is_an_error(asks: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MOST_BYTES", 1 << 20)
    code = "call('answers', 'output = np.zeros(1 << 20)').exec()"
    found = asks.say(f"{FORK}\nresult = in_child(lambda: said({code}))")
    assert found.startswith("error: the outputs are more than a forked process can be sent at once: a control message of ")


def test_leaving_an_iterator_in_a_child(get: Get) -> None:
    many = get("many")
    callee = (
        "sender.send(response('a')); in_thread(lambda: (until(sender.is_cancelled), model.errors.append('told'), sender.send(flags=FINAL)))"
    )
    for leave in ("it.cancel()", "del it"):
        many.tell("model.errors.clear()")
        get("asks").tell(f"""{FORK}
def work():
    it = call('many', {callee!r}).exec(decoupled=True)
    assert said(next(it)) == 'a'
    {leave}
    until(lambda: said(list(call('many', 'sender.send(response(model.errors), FINAL)').exec(decoupled=True))[0]) == "['told']")
    return 'fine'
assert in_child(work) == 'fine'
""")


def test_a_child_that_outlives_its_stub(tmp_path: Path) -> None:
    """It has a session of its own, otherwise it would not. It cannot keep the server, and its calls fail at once."""
    scripted(tmp_path, "asks")
    told = tmp_path / "told"
    options = room()
    options.model_control_mode, options.load_models = "explicit", ["asks"]
    with Server(tmp_path, options=options) as server:
        asks = Scripted(server, "asks")
        asks.tell(f"""
if not os.fork():
    os.setsid()
    until(lambda: os.getppid() != {asks.pids[0]})
    with open({str(told)!r}, 'w') as file: file.write(str(os.getpid()) + ' ' + said(call('asks').exec()))
    os._exit(0)
""")
        server.unload_model("asks")
        pid, answer = until(lambda: told.exists() and told.read_text()).split(" ", 1)
    until(lambda: not alive(int(pid)))
    assert answer.startswith("error: ")


def test_the_stub_is_killed_with_children_in_calls(tmp_path: Path) -> None:
    scripted(tmp_path, "asks")
    scripted(tmp_path, "many", decoupled=True)
    callee = "in_thread(lambda: (until(sender.is_cancelled), model.errors.append('told'), sender.send(flags=FINAL)))"
    with Server(tmp_path) as server:
        asks, many = Scripted(server, "asks"), Scripted(server, "many")
        asks.tell(f"""
if not os.fork():
    list(call('many', {callee!r}).exec(decoupled=True))
    os._exit(0)
""")
        until(lambda: many.server.core.find("many").instances[0].channel.in_flight)
        (child,) = descendants(asks.pids[0])
        stream = asks.stream("os.kill(os.getpid(), signal.SIGKILL)")
        assert "SIGKILL" in texts(stream)[0]
        until(lambda: many.value("model.errors") == "['told']")
        until(lambda: not alive(child))
