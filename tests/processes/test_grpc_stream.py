"""``ModelStreamInfer``: which responses come, in what order, and what ends a stream (spec 6.7)."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_client import FOUR, SECONDS, Client, add, failure, final, infer, pb, said, script
from grpc_health.v1 import health_pb2, health_pb2_grpc
from model_repository import copy_model
from scripted import scripted
from server_process import ServerProcess, until
from stublet.parent.backlog import MOST_BYTES

from .conftest import Serve

OPT_IN = {"triton_enable_empty_final_response": True}
ENDS_WITH_ERROR = (("triton_grpc_error", "true"),)
THREE = "for i in range(3): sender.send(response(i))\nsender.send(flags=FINAL)"


class Stream:
    """A stream that a test writes to and reads from step by step."""

    def __init__(self, client: Client, **more: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = client.stub.ModelStreamInfer(iter(self._requests.get, None), **{"timeout": SECONDS, **more})

    def ask(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request)

    def half_close(self) -> None:
        self._requests.put(None)

    def take(self, count: int = 1) -> List[Any]:
        return [next(self.call) for _ in range(count)]

    def rest(self) -> List[Any]:
        return list(self.call)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()
        self._requests.put(None)


@pytest.fixture
def stream(grpc_client: Client) -> Iterator[Stream]:
    with Stream(grpc_client) as stream:
        yield stream


def told(responses: List[Any]) -> List[Tuple[str, str, bool]]:
    """Id, text and finality of each."""
    return [(response.infer_response.id, said(response), final(response)) for response in responses]


def test_responses_as_they_come(grpc_client: Client) -> None:
    found = grpc_client.stream([script("free", THREE, id="i")])
    assert told(found) == [("i", "0", False), ("i", "1", False), ("i", "2", False)]
    assert {(one.infer_response.model_name, one.infer_response.model_version) for one in found} == {("free", "1")}


def test_an_empty_final_response_for_those_who_want_it(grpc_client: Client) -> None:
    found = grpc_client.stream([script("free", THREE, id="i", parameters=OPT_IN)])
    assert told(found) == [("i", "0", False), ("i", "1", False), ("i", "2", False), ("i", "", True)]
    last = found[-1].infer_response
    assert (last.model_name, len(last.outputs), len(last.raw_output_contents)) == ("free", 0, 0)


@pytest.mark.parametrize("parameters", [{}, OPT_IN], ids=["plain", "opt in"])
def test_a_final_response_with_outputs(grpc_client: Client, parameters: Any) -> None:
    code = "sender.send(response('a'))\nsender.send(response('b'), FINAL)"
    assert told(grpc_client.stream([script("free", code, parameters=parameters)])) == [("", "a", False), ("", "b", True)]


def test_no_response_at_all(grpc_client: Client) -> None:
    assert grpc_client.stream([script("free", "sender.send(flags=FINAL)")]) == []
    assert told(grpc_client.stream([script("free", "sender.send(flags=FINAL)", id="i", parameters=OPT_IN)])) == [("i", "", True)]


def test_a_stream_without_requests(grpc_client: Client) -> None:
    assert grpc_client.stream([]) == []


@pytest.mark.parametrize("parameters", [{}, OPT_IN], ids=["plain", "opt in"])
def test_a_model_that_is_not_decoupled(grpc_client: Client, parameters: Any) -> None:
    (found,) = grpc_client.stream([add(id="i", parameters=parameters)])
    assert final(found)
    assert not found.error_message
    assert [output.name for output in found.infer_response.outputs] == ["OUTPUT0", "OUTPUT1"]
    assert found.infer_response.raw_output_contents[0] == (FOUR + FOUR).tobytes()


def test_parameters_of_responses(grpc_client: Client) -> None:
    (found,) = grpc_client.stream([script("free", "sender.send(response('a', parameters={'k': 1}), FINAL)")])
    assert final(found)
    assert found.infer_response.parameters["k"].int64_param == 1


def test_answers_in_the_order_of_the_requests(stream: Stream, tmp_path: Path) -> None:
    """The first one waits for the last one, which is of a decoupled model."""
    mark = tmp_path / "mark"
    stream.ask(
        script("single", f"until(lambda: os.path.exists({str(mark)!r}))\nresult = 1", id="1"), add(id="2"), infer("nope", {}, id="3")
    )
    stream.ask(script("free", f"open({str(mark)!r}, 'w').close()\nsender.send(response(4), FINAL)", id="4"))
    found = stream.take(4)
    ordered = [(one.infer_response.id, bool(one.error_message)) for one in found if one.infer_response.id != "4"]
    assert ordered == [("1", False), ("2", False), ("3", True)]


def test_responses_of_several_requests(grpc_client: Client) -> None:
    found = told(grpc_client.stream([script("free", THREE, id=str(i), parameters=OPT_IN) for i in range(20)]))
    for i in range(20):
        assert [one[1:] for one in found if one[0] == str(i)] == [("0", False), ("1", False), ("2", False), ("", True)]
    assert len(found) == 80


@pytest.mark.parametrize(
    "request_, model, text",
    [
        (infer("nope", {}, id="i"), "nope", "Request for unknown model: 'nope' is not found"),
        (add(id="i", version="x"), "", "failed to get model version from specified version string 'x' (details: stol), version should be"),
        (infer("add_sub", {"INPUT0": FOUR}, id="i"), "add_sub", "expected 2 inputs but got 1 inputs for model 'add_sub'."),
        (add(id="i", outputs=["NOPE"]), "add_sub", "unexpected inference output 'NOPE' for model 'add_sub'"),
        (script("single", "returned = [failure('boom')]", id="i"), "single", "boom"),
        (script("free", "sender.send(failure('boom'), FINAL)", id="i"), "free", "boom"),
        (script("free", "1 / 0", id="i"), "free", "Failed to process the request(s) for model 'free_0_0', message: ZeroDivisionError"),
        (script("free", "import time, os", id="i", outputs=["NOPE"]), "free", "unexpected inference output 'NOPE' for model 'free'"),
    ],
)
def test_errors_do_not_end_a_stream(stream: Stream, request_: Any, model: str, text: str) -> None:
    stream.ask(request_)
    (bad,) = stream.take()
    stream.ask(add(id="after"))
    (good,) = stream.take()
    assert bad.error_message.startswith(text)
    assert (bad.infer_response.id, bad.infer_response.model_name) == ("i", model)
    assert final(bad)
    assert (good.infer_response.id, good.error_message) == ("after", "")
    stream.half_close()
    assert stream.rest() == []


def test_an_error_among_responses(grpc_client: Client) -> None:
    code = "sender.send(response('a'))\nsender.send(failure('bad'))\nsender.send(response('b'), FINAL)"
    assert told(grpc_client.stream([script("free", code)])) == [("", "a", False), ("", "error: bad", False), ("", "b", True)]


def test_a_message_that_is_none(grpc_client: Client) -> None:
    ask = grpc_client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    bad, good = map(pb.ModelStreamInferResponse.FromString, ask(iter([b"\xff\xff", add(id="i").SerializeToString()]), timeout=SECONDS))
    assert bad.error_message == "the message is not a ModelInferRequest"
    assert good.infer_response.id == "i"


@pytest.mark.parametrize(
    "request_, error",
    [
        (infer("nope", {}), "NOT_FOUND: Request for unknown model: 'nope' is not found"),
        (script("single", "returned = [failure('boom', pb_utils.TritonError.ALREADY_EXISTS)]"), "ALREADY_EXISTS: boom"),
        (script("free", "sender.send(failure('boom', pb_utils.TritonError.UNAVAILABLE))\nsender.send(flags=FINAL)"), "UNAVAILABLE: boom"),
    ],
)
def test_an_error_ends_the_stream_of_who_wants_that(grpc_client: Client, request_: Any, error: str) -> None:
    with Stream(grpc_client, metadata=ENDS_WITH_ERROR) as stream, Stream(grpc_client) as other:
        other.ask(add(id="other"))
        stream.ask(script("free", "sender.send(response('a'), FINAL)"))
        assert said(*stream.take()) == "a"
        stream.ask(request_)
        assert failure(stream.take) == error
        other.ask(add(id="again"))
        assert [one.infer_response.id for one in other.take(2)] == ["other", "again"]


@pytest.mark.parametrize("value", ["false", "TRUE", "1", ""])
def test_only_true_is_true(grpc_client: Client, value: str) -> None:
    (found,) = grpc_client.stream([infer("nope", {})], metadata=(("triton_grpc_error", value),))
    assert found.error_message


def test_what_comes_after_the_error_that_ended_a_stream(grpc_client: Client, tmp_path: Path) -> None:
    """The model goes on; nobody is told, and nothing is harmed."""
    mark, done = tmp_path / "mark", tmp_path / "done"
    code = (
        f"sender.send(failure('boom'))\nuntil(lambda: os.path.exists({str(mark)!r}))\n"
        f"sender.send(response('late'))\nsender.send(flags=FINAL)\nopen({str(done)!r}, 'w').close()"
    )
    with Stream(grpc_client, metadata=ENDS_WITH_ERROR) as stream:
        stream.ask(script("free", code))
        assert failure(stream.take) == "INTERNAL: boom"
    mark.touch()
    until(done.exists, what="the end of the model's work")
    assert said(*grpc_client.stream([script("free", "sender.send(response('a'), FINAL)")])) == "a"


def test_half_close_completes_what_is_outstanding(stream: Stream, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    wait = f"until(lambda: os.path.exists({str(mark)!r}))\n"
    stream.ask(script("free", wait + THREE, id="1"), script("single", wait + "result = 'x'", id="2"))
    stream.half_close()
    mark.touch()
    assert sorted(told(stream.rest())) == [("1", "0", False), ("1", "1", False), ("1", "2", False), ("2", "x", True)]


def test_cancel_cancels_what_is_outstanding(grpc_client: Client, tmp_path: Path) -> None:
    with Stream(grpc_client) as stream:
        for model in ("free", "single"):
            stream.ask(script(model, waits(tmp_path, model)))
        until(lambda: all((tmp_path / f"{model} began").exists() for model in ("free", "single")), what="both executions")
        stream.call.cancel()
        assert failure(stream.take) == "CANCELLED: Locally cancelled by application!"
    until(lambda: all((tmp_path / f"{model} cancelled").exists() for model in ("free", "single")), what="both cancellations")


def waits(directory: Path, name: str) -> str:
    """Leaves a file when it begins, and another one when it has been cancelled."""
    return (
        f"open({str(directory / name)!r} + ' began', 'w').close()\n"
        "sender and sender.send(response('begun')) if model.decoupled else None\n"
        "until(request.is_cancelled)\n"
        f"open({str(directory / name)!r} + ' cancelled', 'w').close()\n"
        "sender.send(flags=FINAL) if model.decoupled else None"
    )


def test_a_unary_call_that_is_cancelled(grpc_client: Client, tmp_path: Path) -> None:
    call = grpc_client.stub.ModelInfer.future(script("single", waits(tmp_path, "one")), timeout=SECONDS)
    until((tmp_path / "one began").exists, what="the execution")
    call.cancel()
    until((tmp_path / "one cancelled").exists, what="the cancellation")
    assert call.code() is grpc.StatusCode.CANCELLED


def test_one_that_waits_is_cancelled_too(grpc_server: ServerProcess, grpc_client: Client, tmp_path: Path) -> None:
    """It was never executed, and never is."""
    mark, ran = tmp_path / "mark", tmp_path / "ran"
    began = f"open({str(tmp_path / 'began')!r}, 'w').close()\n"
    first = grpc_client.stub.ModelInfer.future(script("single", began + f"until(lambda: os.path.exists({str(mark)!r}))"), timeout=SECONDS)
    until((tmp_path / "began").exists, what="the execution of the first one")
    second = grpc_client.stub.ModelInfer.future(script("single", f"open({str(ran)!r}, 'w').close()"), timeout=SECONDS)
    until(lambda: pending(grpc_server) == 1, what="the second one's waiting")
    second.cancel()
    until(lambda: pending(grpc_server) == 0, what="the second one's cancellation")
    mark.touch()
    first.result()
    grpc_client.infer(script("single", ""))
    assert not ran.exists()


def pending(server: ServerProcess) -> int:
    """How many requests wait to be executed by ``single``."""
    text = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith("nv_inference_pending_request_count{") and '"single"' in line]
    return int(float(line.split()[-1]))


def test_a_deadline_cancels(grpc_client: Client, tmp_path: Path) -> None:
    assert failure(grpc_client.infer, script("single", waits(tmp_path, "one")), timeout=0.3).startswith("DEADLINE_EXCEEDED: ")
    until((tmp_path / "one cancelled").exists, what="the cancellation")


def test_the_deadline_of_a_stream_cancels(grpc_client: Client, tmp_path: Path) -> None:
    with Stream(grpc_client, timeout=0.5) as stream:
        stream.ask(script("free", waits(tmp_path, "one")))
        assert said(*stream.take()) == "begun"
        assert failure(stream.take).startswith("DEADLINE_EXCEEDED: ")
    until((tmp_path / "one cancelled").exists, what="the cancellation")


def test_an_instance_that_dies(grpc_core: None, serve: Serve, repository: Path) -> None:
    """Whoever waits for it is told at once, and so is whoever comes later; streams go on."""
    for name, decoupled in (("single", False), ("free", True)):
        scripted(repository, name, decoupled=decoupled)
    copy_model(repository, "add_sub")
    server = serve("--grpc-port", "0")
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    with Client(server.grpc_address) as client, Stream(client) as stream:
        for model in ("single", "free"):
            for code in (kill, ""):
                stream.ask(script(model, code, id=model))
                (told,) = stream.take()
                assert told.error_message.startswith(f"Stub process '{model}_0_0' is not healthy")
                assert told.infer_response.id == model
                assert final(told)
        assert failure(client.infer, script("single", "")).startswith("UNAVAILABLE: Stub process 'single_0_0' is not healthy")
        assert not client.stub.ModelReady(pb.ModelReadyRequest(name="single")).ready
        assert not client.stub.ServerReady(pb.ServerReadyRequest()).ready
        health = health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert client.infer(add()).model_name == "add_sub"
    server.stop()


def test_a_thousand_idle_connections(grpc_server: ServerProcess, grpc_client: Client) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", grpc_server.grpc_port)))
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")  # a client's preface, and no settings
        assert connection.recv(1)
        assert grpc_client.infer(add()).model_name == "add_sub"
        with Client(grpc_server.grpc_address) as another:
            assert another.infer(add()).model_name == "add_sub"


def test_every_third_is_bad(grpc_client: Client) -> None:
    requests = [infer("add_sub", {"INPUT0": FOUR}, id=str(i)) if i % 3 == 0 else add(id=str(i)) for i in range(1000)]
    found = grpc_client.stream(requests)
    assert [one.infer_response.id for one in found] == [str(i) for i in range(1000)]
    assert [bool(one.error_message) for one in found] == [i % 3 == 0 for i in range(1000)]
    assert all(map(final, found))


def test_many_streams_at_once(grpc_client: Client) -> None:
    streams = [Stream(grpc_client) for _ in range(50)]
    try:
        for number, one in enumerate(streams):
            for i in range(4):
                one.ask(add(id=f"{number} {i}"), script("free", THREE, id=f"{number} free"))
            one.half_close()
        for number, one in enumerate(streams):
            found = [response.infer_response.id for response in one.rest()]
            assert [name for name in found if "free" not in name] == [f"{number} {i}" for i in range(4)]
            assert found.count(f"{number} free") == 12
    finally:
        for one in streams:
            one.__exit__()


VANISHING = """
import sys, numpy as np
sys.path[:0] = {path!r}
from grpc_client import Client, add, script
client = Client({address!r})
requests = {requests}
if {unary}:
    client.stub.ModelInfer(requests[0])
else:
    def never_ends():
        yield from requests
        import threading; threading.Event().wait()
    for response in client.stub.ModelStreamInfer(never_ends()):
        print("answer", flush=True)
        if not {reads}:
            import threading; threading.Event().wait()
"""

ENDLESS = "data = np.zeros(1 << 14, np.float32)\nuntil(lambda: request.is_cancelled() or sender.send(response('x', data)))\nopen({!r}, 'w').close()\nsender.send(flags=FINAL)"


@pytest.mark.parametrize("state", ["idle", "waiting", "reading", "not reading", "unary"])
def test_a_client_that_vanishes(grpc_server: ServerProcess, grpc_client: Client, tmp_path: Path, state: str) -> None:
    ended = tmp_path / "one cancelled"
    requests = {
        "idle": "[add()]",
        "waiting": f"[add(), script('free', {waits(tmp_path, 'one')!r})]",
        "reading": f"[script('free', {ENDLESS.format(str(ended))!r}, outputs=['RESULT', 'DATA'])]",
        "not reading": f"[script('free', {ENDLESS.format(str(ended))!r}, outputs=['RESULT', 'DATA'])]",
        "unary": f"[script('single', {waits(tmp_path, 'one')!r})]",
    }[state]
    code = VANISHING.format(
        path=[str(Path(__file__).parent.parent)],
        address=grpc_server.grpc_address,
        requests=requests,
        unary=state == "unary",
        reads=state in ("waiting", "reading"),
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        if state == "unary":
            until((tmp_path / "one began").exists, what="the execution")
        else:
            assert client.stdout is not None
            assert client.stdout.readline() == b"answer\n"
        if state == "waiting":
            until((tmp_path / "one began").exists, what="the execution")
    finally:
        os.kill(client.pid, signal.SIGKILL)
        client.communicate()
    if state != "idle":
        until(ended.exists, what="the cancellation")
    assert said(*grpc_client.stream([script("free", "sender.send(response('a'), FINAL)")])) == "a"


def test_a_slow_reader(grpc_server: ServerProcess, tmp_path: Path) -> None:
    """The model waits for it, so that neither its memory nor the server's grows; nobody else is kept waiting, and nothing is lost."""
    count, size = 300, 1 << 18  # 300 MiB in all
    mark = tmp_path / "sent"
    code = (
        f"for i in range({count}):\n    sender.send(response(i, np.full({size}, i)))\n    open({str(mark)!r}, 'a').write('.')\n"
        "sender.send(flags=FINAL)"
    )
    with Client(grpc_server.grpc_address) as client, Client(grpc_server.grpc_address) as other, Stream(client) as stream:
        before = private_bytes(grpc_server.pid)
        stream.ask(script("free", code, outputs=["RESULT", "DATA"]))
        stream.take()
        until(lambda: mark.exists() and mark.stat().st_size >= MOST_BYTES // (4 * size), what="what is sent ahead")
        for _ in range(20):
            assert other.infer(add()).raw_output_contents[0] == (FOUR + FOUR).tobytes()
        # What waits in the server, and what gRPC and the system have taken for the connection.
        assert mark.stat().st_size < 2 * MOST_BYTES // (4 * size)
        assert private_bytes(grpc_server.pid) - before < 30 << 20
        stream.half_close()
        rest = stream.rest()
        assert [said(one) for one in rest] == [str(i) for i in range(1, count)]
        assert np.frombuffer(rest[-1].infer_response.raw_output_contents[1], np.float32).tolist() == [count - 1] * size


def test_a_held_model_goes_on_when_its_client_leaves(grpc_server: ServerProcess, grpc_client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "cancelled"
    code = (
        "data = np.zeros(1 << 22, np.float32)\n"  # 16 MiB
        f"until(lambda: request.is_cancelled() or sender.send(response('x', data)))\nopen({str(mark)!r}, 'w').close()\nsender.send(flags=FINAL)"
    )
    with Client(grpc_server.grpc_address, max_receive_message_length=-1) as client:
        with Stream(client) as stream:
            stream.ask(script("free", code, outputs=["RESULT", "DATA"], id="much"))
            stream.take()
        until(mark.exists, what="the cancellation")
    assert said(*grpc_client.stream([script("free", "sender.send(response('a'), FINAL)")])) == "a"


def private_bytes(pid: int) -> int:
    """Memory of a process that is its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def test_large_requests_and_responses(grpc_client: Client) -> None:
    arrays = [np.full((1 << 18) + i, i, np.float32) for i in range(5)]
    found = grpc_client.stream([infer("vector", {"INPUT0": array}, id=str(i)) for i, array in enumerate(arrays)])
    assert [(one.infer_response.id, one.infer_response.raw_output_contents[0]) for one in found] == [
        (str(i), array.tobytes()) for i, array in enumerate(arrays)
    ]


# The library that users have


def test_tritonclient(grpc_server: ServerProcess) -> None:
    answers: queue.Queue[Tuple[Optional[Any], Optional[Exception]]] = queue.Queue()
    tensor = triton.InferInput("CODE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([THREE.encode()], object))
    outputs = [triton.InferRequestedOutput("RESULT")]
    with triton.InferenceServerClient(grpc_server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for i in range(3):
            client.async_stream_infer("free", [tensor], outputs=outputs, request_id=str(i), enable_empty_final_response=True)
        client.async_stream_infer("nope", [tensor], request_id="bad")
        client.stop_stream()  # waits for all that is outstanding
    found = [answers.get_nowait() for _ in range(answers.qsize())]
    errors = [error for _, error in found if error]
    assert list(map(str, errors)) == ["Request for unknown model: 'nope' is not found"]
    results = [result.get_response() for result, _ in found if result]
    for i in range(3):
        own = [one for one in results if one.id == str(i)]
        assert [len(one.outputs) for one in own] == [1, 1, 1, 0]
        assert [one.parameters["triton_final_response"].bool_param for one in own] == [False, False, False, True]


def test_tritonclient_cancels(grpc_server: ServerProcess, tmp_path: Path) -> None:
    answers: queue.Queue[Tuple[Optional[Any], Optional[Exception]]] = queue.Queue()
    tensor = triton.InferInput("CODE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([waits(tmp_path, "one").encode()], object))
    with triton.InferenceServerClient(grpc_server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("free", [tensor])
        assert answers.get(timeout=SECONDS)[1] is None
        left = client._stream
        client.stop_stream(cancel_requests=True)
        left._request_queue.put(None)  # else a thread of the library waits for requests for ever
    _, error = answers.get(timeout=SECONDS)
    assert "CANCELLED" in str(error)
    until((tmp_path / "one cancelled").exists, what="the cancellation")
    assert answers.empty()


def test_tritonclient_in_coroutines(grpc_server: ServerProcess) -> None:
    tensor = triton.InferInput("CODE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([THREE.encode()], object))

    async def requests() -> Any:
        for i in range(3):
            yield {"model_name": "free", "inputs": [tensor], "request_id": str(i), "outputs": [triton.InferRequestedOutput("RESULT")]}

    async def ask() -> List[Tuple[str, bytes]]:
        async with triton_aio.InferenceServerClient(grpc_server.grpc_address) as client:
            found = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append((result.get_response().id, result.as_numpy("RESULT")[0]))
            return found

    assert sorted(asyncio.run(ask())) == [(str(i), str(k).encode()) for i in range(3) for k in range(3)]
