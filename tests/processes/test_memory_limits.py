"""Shared memory has limits, of requests and of instances; what is in no use goes back to the system."""

from __future__ import annotations

import select
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator, List

import grpc_client
import numpy as np
import pytest
from http_wire import Answer, Wire, infer, request, tensor
from model_repository import ECHO, write_model
from scripted import MEBI, Scripted, scripted
from server_process import ServerProcess, run_serve, until
from stublet.parent import Server
from stublet.parent.memory_limits import MemoryOptions
from stublet.parent.options import BackendOptions, ServerOptions

from .conftest import Serve

LIMIT = 8 * MEBI
IDLE_SECONDS = 0.05
WAITS = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Echoes what begins with 0; keeps everything else until the file says that it may go on.'''

    def execute(self, requests):
        responses = []
        for request in requests:
            array = request.inputs()[0].as_numpy()
            if array[0]:
                print("holds", flush=True)
                while not open({path!r}).read():
                    time.sleep(0.002)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", array[:4].copy())]))
        return responses
"""


def options(**limits: Any) -> ServerOptions:
    return ServerOptions(shared_memory=MemoryOptions(idle_secs=IDLE_SECONDS, **limits), backend=BackendOptions())


@contextmanager
def server_of(*roots: Path, **limits: Any) -> Iterator[Server]:
    with Server(list(roots), options=options(**limits)) as server:
        yield server


# ---- of an instance ----


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """A model whose instance may have 8 MiB, in a server whose instances may have 1 GiB."""
    root = tmp_path_factory.mktemp("limited")
    scripted(root, "limited", shm_limit="8MiB")
    with server_of(root, limit_per_instance=1024 * MEBI) as server:
        yield Scripted(server, "limited")


def refusal(nbytes: int) -> str:
    return (
        f"Failed to increase the shared memory pool size to {nbytes} bytes. model 'limited', instance 'limited_0_0' needs {nbytes} bytes more "
        "of shared memory for outputs, but has "
    )


def test_an_output_beyond_the_limit_is_an_error_of_its_request(limited: Scripted) -> None:
    text = limited.fail("output = np.zeros(4 << 20)")
    assert refusal(16 * MEBI) in text
    assert f"of the {LIMIT} bytes that it may have: raise the model's parameter 'shm_limit', or --shm-limit-per-instance" in text
    assert limited.say("result, output = 'goes on', np.ones(1 << 18)") == "goes on"


def test_the_model_is_told_and_can_do_without(limited: Scripted) -> None:
    said = limited.say("result = raised(pb_utils.empty, 'DATA', [4 << 20], np.float32)")
    assert said.startswith("TritonModelException: " + refusal(16 * MEBI))


def test_what_is_kept_counts_and_what_is_not_makes_room(limited: Scripted) -> None:
    """Outputs of ever other sizes: blocks of the sizes before have to go."""
    for mebibytes in (5, 6, 3, 7, 2, 6):
        assert limited.run(f"output = np.full({mebibytes} << 18, 7)")["DATA"].sum() == 7 * mebibytes << 18
    limited.tell("model.kept = pb_utils.empty('DATA', [5 << 18], np.float32)")
    assert refusal(4 * MEBI) in limited.fail("output = np.zeros(4 << 18)")
    limited.tell("del model.kept")
    assert limited.run("output = np.ones(4 << 18)")["DATA"].sum() == 4 << 18


@pytest.mark.parametrize("value", ["much", "-1", "0", "1000", "1023KiB", ""])
def test_a_limit_that_is_none_is_an_error_of_the_configuration(tmp_path: Path, value: str) -> None:
    write_model(tmp_path, "m", ECHO, f'parameters {{ key: "shm_limit" value {{ string_value: "{value}" }} }}')
    with Server(tmp_path, exit_on_error=False) as server:
        (row,) = server.status()
    assert row.reason.endswith(
        f"parameter 'shm_limit' of model 'm' must be a number of bytes from 1.0MiB on, as in \"512MiB\", not '{value}'"
    )


@pytest.mark.parametrize("option", ["--max-inflight-bytes", "--shm-limit-per-instance"])
@pytest.mark.parametrize("value", ["much", "-1", "1000"])
def test_options_that_are_none(tmp_path: Path, option: str, value: str) -> None:
    ended = run_serve(str(tmp_path), option, value)
    assert ended.returncode == 2 and option in ended.stderr


# ---- of requests ----


def ask(wire: Wire, model: str, nbytes: int, first: int = 0) -> Answer:
    data = first.to_bytes(1, "little") + bytes(nbytes - 1)
    return wire.ask(infer(model, {"inputs": [tensor("INPUT0", "UINT8", [nbytes], binary_data_size=nbytes)]}, data))


@pytest.fixture
def busy(serve: Serve, repository: Path, tmp_path: Path) -> ServerProcess:
    """Two models of bytes that wait for a file, in a server whose requests may have 8 MiB."""
    config = 'input { name: "INPUT0" data_type: TYPE_UINT8 dims: [-1] }\noutput { name: "OUTPUT0" data_type: TYPE_UINT8 dims: [-1] }\n'
    (tmp_path / "go").touch()
    for name in ("first", "second"):
        write_model(repository, name, WAITS.format(path=str(tmp_path / "go")), config)
    return serve("--max-inflight-bytes", "8MiB")


def test_a_request_that_does_not_fit_is_refused_before_its_tensors_are_read(busy: ServerProcess, tmp_path: Path) -> None:
    answers: List[Answer] = []

    def hold() -> None:
        with busy.wire() as wire:
            answers.append(ask(wire, "first", 5 * MEBI, first=1))

    holder = threading.Thread(target=hold)
    holder.start()
    until(lambda: "holds" in busy.log, 10, "the first request")
    with busy.wire() as wire:
        answer = ask(wire, "second", 4 * MEBI)
        assert answer.status == 503
        assert answer.error.startswith(
            f"the inputs of a request to model 'second' find no room: {4 * MEBI} bytes of shared memory are needed, "
        )
        assert answer.error.endswith(f"of the {8 * MEBI} bytes that they may have at a time (--max-inflight-bytes)")
    with busy.wire() as wire:
        assert ask(wire, "second", 1000).status == 200, "a small one fits"
    (tmp_path / "go").write_text("go")
    holder.join(30)
    assert answers[0].status == 200
    with busy.wire() as wire:
        # What is answered may be held for a moment longer.
        until(lambda: ask(wire, "second", 7 * MEBI).status == 200, what="what the other model does not use is at the disposal of this one")
        until(lambda: ask(wire, "first", 6 * MEBI).status == 200)
        assert ask(wire, "first", 9 * MEBI).status == 503


def test_the_same_over_grpc(grpc_core: None, serve: Serve, repository: Path) -> None:
    write_model(repository, "echo")
    server = serve("--max-inflight-bytes", "8MiB", "--grpc-port", "0")
    with grpc_client.Client(server.grpc_address) as client:
        text = grpc_client.failure(client.infer, grpc_client.infer("echo", {"INPUT0": np.zeros(3 << 20, np.float32)}))
        assert text.startswith("UNAVAILABLE: the inputs of a request to model 'echo' find no room: ")
        assert text.endswith("(--max-inflight-bytes)")
        client.infer(grpc_client.infer("echo", {"INPUT0": np.zeros(1 << 18, np.float32)}))


@pytest.mark.parametrize("length", [10_000, 5 * MEBI + 1])
def test_a_full_server_still_tells_its_stubs_of_what_it_has(busy: ServerProcess, length: int) -> None:
    """A record that is too long for a ring lies in a block as well, of whatever size, without which the request would wait for ever."""
    nbytes = 8 * MEBI
    given = [tensor("INPUT0", "UINT8", [nbytes], binary_data_size=nbytes)]
    message = infer("first", {"inputs": given, "parameters": {"long": "x" * length}}, bytes(nbytes))
    with busy.wire() as wire:
        assert wire.ask(message).status == 200
        # What is answered may be held for a moment longer.
        until(lambda: wire.ask(message).status == 200, what="room for another one")


def test_one_more_refusal_costs_next_to_nothing(busy: ServerProcess) -> None:
    with busy.wire() as wire:
        for _ in range(20):
            assert ask(wire, "first", 9 * MEBI).status == 503
        assert ask(wire, "first", MEBI).status == 200


CHUNKED = {"transfer-encoding": "chunked", "content-length": ""}
BODIES = {
    "direct": ("/v2/models/first/infer", {}),
    "chunked": ("/v2/models/first/infer", CHUNKED),
    "header": ("/v2/models/first/infer", {"inference-header-content-length": str(4 * MEBI)}),
    "asgi": ("/v2/models/first/infer", {"accept-encoding": "identity"}),
    "generate": ("/v2/models/first/generate", {}),
    "load": ("/v2/repository/models/first/load", {}),
}


@pytest.mark.parametrize("way", BODIES)
def test_bodies_that_are_not_complete_count(busy: ServerProcess, way: str) -> None:
    """They are kept outside of shared memory, which makes them no smaller."""
    path, headers = BODIES[way]
    nbytes = 4 * MEBI
    part = bytes(nbytes - MEBI)
    text = b"%x\r\n" % nbytes + part if headers is CHUNKED else part
    start = request("POST", path, headers={"content-length": str(nbytes), **headers}) + text
    with ExitStack() as stack:
        wires = [stack.enter_context(busy.wire()) for _ in range(4)]
        for wire in wires:
            wire.send(start)
        refused, _, _ = select.select([wire.socket for wire in wires], [], [], 20)
        assert refused, "nobody was refused"
        answer = next(wire for wire in wires if wire.socket in refused).answer()
        assert answer.status == 503
        assert " bytes of memory are needed, but requests have " in answer.error
        assert answer.error.endswith(f"of the {8 * MEBI} bytes that they may have at a time (--max-inflight-bytes)")
        assert len(refused) < 4, "some of them fit"
    with busy.wire() as wire:
        until(lambda: ask(wire, "second", 7 * MEBI).status == 200, what="the return of what they had")


def test_a_warm_up_that_would_take_more_than_requests_may_have(tmp_path: Path) -> None:
    """Nothing is made of it: it would be an exabyte."""
    sample = 'inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: [200000000, 1000000000] zero_data: true } }'
    config = 'input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1, -1] } output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1, -1] }'
    write_model(tmp_path, "m", ECHO, f'{config} model_warmup {{ name: "huge" batch_size: 1 {sample} }}')
    with Server(tmp_path, exit_on_error=False, options=options(max_inflight_bytes=LIMIT)) as server:
        (row,) = server.status()
    text = f"failed to run warmup sample 'huge': its inputs take {8 * 10**17} bytes, but requests may have {LIMIT} at a time"
    assert row.reason.endswith(f"{text} (--max-inflight-bytes)")


# ---- idle ----


def test_idle_memory_goes_back(tmp_path: Path) -> None:
    scripted(tmp_path, "m")
    with server_of(tmp_path) as server:
        model = Scripted(server, "m")
        data = np.ones(8 << 18, np.float32)
        memory = server.core.find("m").memory
        for _ in range(2):
            assert model.run("output = data.as_numpy() + 1", data)["DATA"].sum() == 2 * data.size
            until(lambda: memory().inputs == MEBI and memory().outputs == MEBI, 10, "the return of what is in no use")
        kept = model.run("output = data.as_numpy() + 1", data)
        until(lambda: memory().inputs == MEBI, 10, "the return of what is in no use")
        assert memory().outputs > MEBI, "it is still looked at"
        assert kept["DATA"].sum() == 2 * data.size
        del kept
        until(lambda: memory().outputs == MEBI, 10, "the return of what nobody looks at any more")
