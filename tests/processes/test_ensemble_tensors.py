"""Where the tensors of an ensemble lie: they pass from stub to stub without a copy, and to and from shared memory of clients."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Iterator, List

import numpy as np
import pytest
import tritonclient.http as http
from ensembles import IO, add, chain, count, ensemble, plus_one, tensors
from model_repository import obey, write_model
from scripted import room
from server_process import ServerProcess, serving, until
from shared_memory import ClientFile, client_file
from stublet.parent import Server
from stublet.parent.arrays import to_request
from stublet.parent.request import Response

SIZE = 1 << 20
LARGE = 1 << 17
"""Elements."""

SAME = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Gives back what it got.'''

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy())]) for request in requests]
"""
SCRIBBLE = SAME.replace("def execute(self, requests):", "def execute(self, requests):\n        requests[0].inputs()[0].as_numpy()[:] = 7")
KEEP = SAME.replace("def execute(self, requests):", "def execute(self, requests):\n        self.kept = requests[0].inputs()[0].as_numpy()")


def models(root: Path) -> None:
    for name, code in (("same", SAME), ("also", SAME), ("scribble", SCRIBBLE), ("keep", KEEP)):
        write_model(root, name, code, IO)
    for name in ("one", "two"):
        plus_one(root, name)
    add(root, "sum")
    count(root, "count")
    obey(root, "caller")
    ensemble(root, "sames", chain("same", "also", "same"))
    ensemble(root, "kept", chain("keep", "one"))
    ensemble(root, "chain", chain("one", "two"))
    fork = [("scribble", {"IN": "X"}, {"OUT": "a"}), ("one", {"IN": "X"}, {"OUT": "b"}), ("sum", {"A": "a", "B": "b"}, {"OUT": "Y"})]
    ensemble(root, "fork", fork)
    made = [("one", {"IN": "X"}, {"OUT": "t"}), ("scribble", {"IN": "t"}, {"OUT": "a"}), ("one", {"IN": "t"}, {"OUT": "b"})]
    ensemble(root, "made", made, outputs=tensors("output", "t", "a", "b"))
    ensemble(root, "middle", [("one", {"IN": "X"}, {"OUT": "M"}), ("two", {"IN": "M"}, {"OUT": "Y"})], outputs=tensors("output", "M", "Y"))
    ensemble(
        root,
        "nested",
        [("middle", {"X": "X"}, {"M": "t", "Y": "Y"}), ("one", {"IN": "t"}, {"OUT": "Z"})],
        outputs=tensors("output", "Y", "Z"),
    )
    ensemble(root, "passing", [("one", {"IN": "X"}, {"OUT": "Y"})], outputs=tensors("output", "X", "Y"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    models(root)
    with Server(root, options=room(16)) as server:
        yield server


def answer(server: Server, model: str, x: np.ndarray) -> Response:
    """The response as the server has it, still in shared memory."""
    arrived = threading.Event()
    found: List[Any] = []

    def settle(outcome: Any, final: bool) -> None:
        found.append(outcome)
        arrived.set()

    ensemble = server.core.find(model)
    ensemble.submit(to_request(ensemble, {"X": x}, (), "", None, settle))
    assert arrived.wait(20) and isinstance(found[0], Response), found
    return found[0]


def test_nothing_is_copied_on_the_way(embedded: Server) -> None:
    x = np.arange(LARGE, dtype=np.float32)
    response = answer(embedded, "sames", x)
    (output,) = response.plan.outputs
    segment, start = response.places[output.block]
    assert segment in embedded.core.find("sames").segments  # where the client's input was put
    start += output.offset
    assert (np.frombuffer(segment.memory[start : start + output.nbytes], np.float32) == x).all()
    response.release()


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("times", [1, 20])
def test_a_step_that_writes_to_its_input_is_the_only_one_to_see_it(embedded: Server, size: int, times: int) -> None:
    x = np.ones(size, np.float32)
    for _ in range(times):
        assert (embedded.infer("fork", {"X": x}, timeout=30)["Y"] == 7 + 2).all()
        found = embedded.infer("made", {"X": x}, timeout=30)
        assert [float(found[name].max()) for name in ("t", "a", "b")] == [2, 7, 3]


def test_every_block_comes_back(embedded: Server) -> None:
    x = np.ones(LARGE, np.float32)
    names = ("sames", "chain", "fork", "made", "nested")

    def used() -> List[int]:
        return [embedded.core.find(name).memory().inputs_used for name in names]

    for name in names:
        embedded.infer(name, {"X": x}, timeout=30)
    until(lambda: not any(used()), what="the return of the blocks")
    reserved = [embedded.core.find(name).memory() for name in ("one", "two", "same", *names)]
    for _ in range(10):
        for name in names:
            embedded.infer(name, {"X": x}, timeout=30)
    until(lambda: not any(used()), what="the return of the blocks")
    after = [embedded.core.find(name).memory() for name in ("one", "two", "same", *names)]
    assert [memory.outputs + memory.inputs for memory in after] == [memory.outputs + memory.inputs for memory in reserved]


def test_a_model_may_keep_what_it_got(embedded: Server) -> None:
    for value in range(5):
        assert (embedded.infer("kept", {"X": np.full(LARGE, value, np.float32)}, timeout=30)["Y"] == value + 1).all()
    assert embedded.core.find("kept").memory().inputs_used > 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("served")
    models(root)
    with serving(tmp_path_factory.mktemp("server"), root, "--allow-client-shm=true") as server:
        yield server


@pytest.fixture
def client(hub: None, server: ServerProcess) -> Iterator[http.InferenceServerClient]:
    client = http.InferenceServerClient(server.address)
    yield client
    client.unregister_system_shared_memory()
    client.close()


@pytest.fixture
def file(client: http.InferenceServerClient) -> Iterator[ClientFile]:
    with client_file(4 * SIZE) as file:
        client.register_system_shared_memory("r", file.key, 4 * SIZE)
        yield file


def given(x: np.ndarray, offset: int = -1) -> http.InferInput:
    """The input X, at an offset of the region, or in the request."""
    one = http.InferInput("X", list(x.shape), "FP32")
    if offset < 0:
        one.set_data_from_numpy(x)
    else:
        one.set_shared_memory("r", x.nbytes, offset)
    return one


def wanted(name: str, size: int, offset: int) -> http.InferRequestedOutput:
    one = http.InferRequestedOutput(name)
    one.set_shared_memory("r", size, offset)
    return one


@pytest.mark.parametrize("size", [4, SIZE // 4])
@pytest.mark.parametrize(
    "model, expected",
    [
        ("chain", {"Y": 2.0}),
        ("fork", {"Y": 8.0}),
        ("middle", {"M": 1.0, "Y": 2.0}),
        ("nested", {"Y": 2.0, "Z": 2.0}),
        ("made", {"t": 1.0, "a": 7.0, "b": 2.0}),
    ],
)
@pytest.mark.parametrize("inputs, outputs", [(True, False), (False, True), (True, True)], ids=["in", "out", "in and out"])
def test_regions_of_the_client(
    client: http.InferenceServerClient, file: ClientFile, model: str, expected: Any, size: int, inputs: bool, outputs: bool
) -> None:
    x = np.zeros(size, np.float32)
    x[0] = 0.5
    file.put(x, 0)
    places = {name: SIZE * (number + 1) for number, name in enumerate(expected)}
    requested = [wanted(name, 4 * size, place) for name, place in places.items()] if outputs else None
    for _ in range(2):
        result = client.infer(model, [given(x, 0 if inputs else -1)], outputs=requested)
        for name, value in expected.items():
            found = file.array(size, np.float32, places[name]) if outputs else result.as_numpy(name)
            assert found[-1] == value
            file.put(np.zeros(size, np.float32), places[name])
        assert file.array(size, np.float32)[0] == 0.5


def test_some_outputs_in_a_region_and_some_not(client: http.InferenceServerClient, file: ClientFile) -> None:
    x = np.zeros(4, np.float32)
    result = client.infer("middle", [given(x)], outputs=[wanted("M", 16, 0), http.InferRequestedOutput("Y")])
    assert result.as_numpy("Y").tolist() == [2] * 4 and file.array(4, np.float32).tolist() == [1] * 4


def test_an_input_cannot_be_moved_between_regions(client: http.InferenceServerClient, file: ClientFile) -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(http.InferenceServerException, match="output 'X' of ensemble 'passing' is one of its inputs"):
        client.infer("passing", [given(x)], outputs=[wanted("X", 16, 0)])
    assert client.infer("passing", [given(x)]).as_numpy("X").tolist() == [0] * 4


def test_a_region_that_is_too_small(client: http.InferenceServerClient, file: ClientFile) -> None:
    with pytest.raises(http.InferenceServerException, match="in ensemble 'chain', "):
        client.infer("chain", [given(np.zeros(4, np.float32))], outputs=[wanted("Y", 8, 0)])


def test_a_region_can_go_when_the_request_is_over(client: http.InferenceServerClient, file: ClientFile) -> None:
    client.infer("middle", [given(np.zeros(4, np.float32), 0)], outputs=[wanted("M", 16, 64)])
    client.unregister_system_shared_memory("r")
    until(lambda: client.get_system_shared_memory_status() == [], what="the end of the registration")
