"""``ModelStreamInfer``: which responses come, in what order, and what ends a stream (spec 6.7)."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from grpc_client import FOUR, SECONDS, Client, add, failure, final, infer, pb, said, script
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_stream import THREE, Stream, told
from model_repository import copy_model
from scripted import scripted
from server_process import ServerProcess, until

from .conftest import Serve

OPT_IN = {"triton_enable_empty_final_response": True}
ENDS_WITH_ERROR = (("triton_grpc_error", "true"),)


@pytest.fixture
def stream(grpc_client: Client) -> Iterator[Stream]:
    with Stream(grpc_client) as stream:
        yield stream


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


def test_an_instance_that_dies_for_good(grpc_core: None, serve: Serve, repository: Path) -> None:
    """Whoever waits for it is told at once, and so is whoever comes later; streams go on."""
    for name, decoupled in (("single", False), ("free", True)):
        scripted(repository, name, decoupled=decoupled, restart_limit="0")
    copy_model(repository, "add_sub")
    server = serve("--grpc-port", "0")
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    with Client(server.grpc_address) as client, Stream(client) as stream:
        for model in ("single", "free"):
            for code in (kill, ""):
                stream.ask(script(model, code, id=model))
                (told,) = stream.take()
                assert f"Stub process '{model}_0_0' is not healthy" in told.error_message
                assert told.infer_response.id == model
                assert final(told)
        assert failure(client.infer, script("single", "")).startswith("UNAVAILABLE: model 'single' is not available: ")
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


def test_large_requests_and_responses(grpc_client: Client) -> None:
    arrays = [np.full((1 << 18) + i, i, np.float32) for i in range(5)]
    found = grpc_client.stream([infer("vector", {"INPUT0": array}, id=str(i)) for i, array in enumerate(arrays)])
    assert [(one.infer_response.id, one.infer_response.raw_output_contents[0]) for one in found] == [
        (str(i), array.tobytes()) for i, array in enumerate(arrays)
    ]
