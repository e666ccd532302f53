"""Responses that a model which is not decoupled sends itself (spec 1.7, 2.4): once, from any thread, and never both sent and returned."""

from __future__ import annotations

from typing import Iterator

import pytest
from scripted import Scripted, quiet, room, scripted
from stublet.parent import Server

FAILED = "Failed to process the request(s) for model 'plain_0_0', message: "
SECOND = "TritonModelException: Unable to send response. Non-decoupled model cannot send more than one response."
EARLY = "TritonModelException: Unable to send response. Non-decoupled model cannot send complete final before sending a response."
CLOSED = "TritonModelException: Unable to send response. Response sender has been closed."
UNSUPPORTED = "TritonModelException: Unable to send response. Unsupported flag provided."
NEEDED = "TritonModelException: Inference Response object must be provided when the response flags is set to zero."
NOT_OURS = "TritonModelException: Unable to send response. Response sender has no reference to the decoupled state of the model."
UNANSWERED = "INTERNAL: execute returned None for the request, and no response sender answered it before the model dropped both"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("senders")
    scripted(root, "plain")
    with Server(root, options=room()) as server:
        yield server


@pytest.fixture
def plain(server: Server) -> Iterator[Scripted]:
    """The model, in good order before and after."""
    model = Scripted(server, "plain")
    (pid,) = model.pids
    model.tell("model.errors.clear(); model.sender = None; model.released.clear()")
    with quiet(server):
        yield model
        assert model.value("os.getpid()") == str(pid), "the same process goes on"


@pytest.mark.parametrize(
    "code",
    [
        "sender.send(response('a'), FINAL); returned = None",
        "sender.send(response('a'), FINAL); returned = [None]",
        "sender.send(response('a'), flags=FINAL); returned = None",
        "sender.send(response=response('a'), flags=FINAL); returned = [None]",
        "sender.send(response('a')); sender.send(flags=FINAL); returned = None",
        "sender.send(response('a')); sender.send(None, FINAL); returned = [None]",
        "sender.send(response('a')); returned = None",
        "sender.send(response('a')); returned = [None]",
        "in_thread(sender.send, response('a'), FINAL); returned = None",
        "in_thread(sender.send, response('a'), FINAL).join(); returned = [None]",
        "in_thread(lambda s: (time.sleep(0.05), s.send(response('a'), FINAL)), sender); returned = None",
        "sender.send(response('a'), FINAL); raise ValueError('too late')",
        "sender.send(response('a')); raise ValueError('too late')",
        "sender.send(response('a'), FINAL); returned = [response('b')]",
        "sender.send(response('a'), FINAL); returned = 'nonsense'",
        "sender.send(response('a'), FINAL); del sender, request; gc.collect(); returned = None",
        "await asyncio.sleep(0); sender.send(response('a'), FINAL); returned = None",
        "await asyncio.sleep(0); sender.send(response('a'), FINAL); returned = [None]",
        "assert request.get_response_sender() is sender; returned = [response('a')]",
    ],
)
def test_one_response(plain: Scripted, code: str) -> None:
    assert plain.say(code) == "a"


@pytest.mark.parametrize(
    "code, text",
    [
        ("returned = None", UNANSWERED),
        ("returned = [None]", UNANSWERED),
        ("await asyncio.sleep(0); returned = None", UNANSWERED),
        ("sender.send(failure('mine', pb_utils.TritonError.NOT_FOUND), FINAL); returned = None", "NOT_FOUND: mine"),
        ("sender.send(failure('mine')); sender.send(flags=FINAL); returned = None", "INTERNAL: mine"),
        ("sender.send(flags=FINAL)", f"INTERNAL: {FAILED}{EARLY}"),
        ("sender.send(response(), 2)", f"INTERNAL: {FAILED}{UNSUPPORTED}"),
        ("sender.send(response(), 'x')", f"INTERNAL: {FAILED}TypeError: InferenceResponseSender.send: flags must be int, not str"),
        ("sender.send([])", f"INTERNAL: {FAILED}TypeError: InferenceResponseSender.send: response must be InferenceResponse, not list"),
        ("sender.close()", f"INTERNAL: {FAILED}AttributeError: 'InferenceResponseSender' object has no attribute 'close'"),
        ("raise ValueError('oh')", f"INTERNAL: {FAILED}ValueError: oh"),
        ("await asyncio.sleep(0); raise ValueError('oh')", f"INTERNAL: {FAILED}ValueError: oh"),
        ("await asyncio.sleep(0); sys.exit(3)", f"INTERNAL: {FAILED}SystemExit: 3"),
        ("await asyncio.sleep(0); returned = ()", f"INTERNAL: {FAILED}TritonModelException: Expected a list in the execute return, found type "
         "'<class 'tuple'>'."),
        ("await asyncio.sleep(0); raise asyncio.CancelledError('mine')", f"CANCELLED: {FAILED}CancelledError: mine"),
    ],
)  # fmt: skip
def test_no_response(plain: Scripted, code: str, text: str) -> None:
    assert plain.fail(code) == text


@pytest.mark.parametrize(
    "before, what, text",
    [
        ("", "sender.send", NEEDED),
        ("", "sender.send, None, 0", NEEDED),
        ("", "sender.send, None, 2", UNSUPPORTED),
        ("", "sender.send, response(), 3", UNSUPPORTED),
        ("", "sender.send, response(), -1", UNSUPPORTED),
        ("", "sender.send, None, FINAL", EARLY),
        ("sender.send(response('a'))", "sender.send, response('b')", SECOND),
        ("sender.send(response('a'))", "sender.send, response('b'), FINAL", SECOND),
        ("sender.send(response('a'), FINAL)", "sender.send, response('b')", SECOND),
        ("sender.send(response('a'), FINAL)", "sender.send, None, FINAL", CLOSED),
        ("sender.send(response('a'), FINAL)", "sender.send", NEEDED),
        ("sender.send(response('a')); sender.send(flags=FINAL)", "sender.send, None, FINAL", CLOSED),
        ("other = call('plain').get_response_sender()", "other.send, response('b'), FINAL", NOT_OURS),
        ("other = call('plain').get_response_sender()", "other.send, None, FINAL", NOT_OURS),
        ("other = call('plain').get_response_sender()", "other.send, response('b')", NOT_OURS),
    ],
)
def test_what_a_sender_refuses(plain: Scripted, before: str, what: str, text: str) -> None:
    """It is raised in the model, which goes on as it likes."""
    sent = "a" if "sender.send" in before else ""
    end = "returned = None" if sent else "pass"
    assert plain.say(f"{before}\nmodel.errors = [raised({what})]\n{end}") == sent
    assert plain.value("model.errors[0]") == text


@pytest.mark.parametrize(
    "code",
    ["raise ValueError('no')", "returned = ()", "returned = []", "returned = ['x']", "await asyncio.sleep(0); raise ValueError('no')"],
)
def test_a_failed_execution_closes_its_senders(plain: Scripted, code: str) -> None:
    assert plain.fail("model.sender, model.request = sender, request; " + code).startswith(f"INTERNAL: {FAILED}")
    assert plain.value("raised(model.sender.send, response('late'))") == CLOSED
    assert plain.value("raised(model.sender.send, response('late'), FINAL)") == CLOSED
    assert plain.value("raised(model.request.get_response_sender().send, None, FINAL)") == CLOSED
    plain.tell("model.sender = model.request = None")


def test_returning_closes_the_sender(plain: Scripted) -> None:
    assert plain.say("model.sender = sender; result = 'a'") == "a"
    assert plain.value("raised(model.sender.send, response('late'))") == SECOND
    plain.tell("model.sender = None")


def test_a_sender_answers_while_later_requests_are_executed(plain: Scripted) -> None:
    with plain.stream("model.sender = sender; returned = None") as late:
        assert plain.value("'in between'") == "in between"
        plain.tell("model.sender.send(response('late'), FINAL); model.sender = None")
        assert [result["RESULT"][0] for result in late] == [b"late"]


def test_dropping_the_sender_later_is_an_error_at_once(plain: Scripted) -> None:
    with plain.stream("model.sender = sender; returned = None") as late:
        plain.tell("model.sender = None")
        with pytest.raises(Exception, match="no response sender answered it"):
            next(late)


@pytest.mark.parametrize("threads", [2, 32])
def test_one_of_many_threads_wins(plain: Scripted, threads: int) -> None:
    """Each tries to send; one does, all others are told so."""
    answer = plain.say(f"""
        start = threading.Barrier({threads})
        def send(number):
            start.wait()
            return raised(sender.send, response(number), FINAL)
        with ThreadPoolExecutor({threads}) as pool:
            model.errors = list(pool.map(send, range({threads})))
        returned = None
    """)
    assert plain.value("model.errors.index('nothing')") == answer
    assert plain.value("sorted(set(model.errors))") == str([SECOND, "nothing"])
    assert plain.value("model.errors.count('nothing')") == "1"


@pytest.mark.parametrize("way", ["returned = [{}]", "sender.send({}, FINAL); returned = None"])
@pytest.mark.parametrize("wanted", [[], ["RESULT"], ["DATA"], ["DATA", "RESULT"]])
def test_only_what_is_wanted_is_sent(plain: Scripted, way: str, wanted: list[str]) -> None:
    for size in (4, 100_000):
        result = plain.run(way.format(f"response('a', np.ones({size}))"), outputs=wanted)
        assert set(result) == set(wanted or ["RESULT", "DATA"])
        if "DATA" in result:
            assert result["DATA"].sum() == size
        del result


def test_the_model_sees_what_is_wanted(plain: Scripted) -> None:
    assert plain.run("model.errors = sorted(request.requested_output_names())", outputs=["RESULT"])
    assert plain.value("model.errors") == "['RESULT']"
    assert plain.value("sorted(request.requested_output_names())") == "['DATA', 'RESULT']"


@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED", "UNKNOWN"])
@pytest.mark.parametrize("way", ["returned = [{}]", "sender.send({}, FINAL); returned = None", "await asyncio.sleep(0); returned = [{}]"])
def test_errors_keep_their_code(plain: Scripted, code: str, way: str) -> None:
    assert plain.fail(way.format(f"failure('so', pb_utils.TritonError.{code})")) == f"{code}: so"


def test_parameters_of_a_response(plain: Scripted) -> None:
    for way in ("returned = [{}]", "sender.send({}, FINAL); returned = None"):
        result = plain.run(way.format("response('a', parameters={'n': 1, 's': 'é', 'b': True})"))
        assert result.parameters == {"n": 1, "s": "é", "b": True}


def test_ten_failures_in_a_row(plain: Scripted) -> None:
    for number in range(10):
        assert plain.fail(f"raise ValueError({number})") == f"INTERNAL: {FAILED}ValueError: {number}"
    assert plain.server.ready()


def test_a_response_sent_twice_to_two_requests(plain: Scripted) -> None:
    """Response objects and their tensors may be used again."""
    assert plain.run("model.again = response('a', np.arange(50_000)); returned = [model.again]")["DATA"][-1] == 49_999
    for _ in range(3):
        again = plain.run("sender.send(model.again, FINAL); returned = None")
        assert (again["RESULT"][0], again["DATA"][-1]) == (b"a", 49_999)
        del again
    plain.tell("model.again = None")
