"""CUDA shared memory of clients, over a stand-in for the driver: a real server, real clients, and memory that they and the models share.

``tritonclient.utils.cuda_shared_memory`` allocates and exports with a real driver; here the test's process does it with the stand-in, and
hands the handle to the client library.
"""

from __future__ import annotations

import base64
import os
import signal
import sys
from pathlib import Path
from typing import Any, Iterator, List, Optional

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from scripted import scripted
from server_process import ServerProcess, serving, until
from standin_cuda import StandinCuda
from standin_models import gpu, told
from stublet.shm.cuda.driver import Driver
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

TESTS = Path(__file__).parents[1]
SIZE = 1 << 16
TEN = np.arange(10, dtype=np.float32)
SHOW = "result = (data.is_cpu(), (data.as_numpy() if data.is_cpu() else values(data)).tolist())"
GARBAGE = b"\xff" * 64

ENSEMBLE = """
platform: "ensemble"
input [ { name: "CODE" data_type: TYPE_STRING dims: [1] }, { name: "DATA" data_type: TYPE_FP32 dims: [-1] } ]
output [ { name: "RESULT" data_type: TYPE_STRING dims: [1] }, { name: "OUT" data_type: TYPE_FP32 dims: [-1] } ]
ensemble_scheduling { step [
  { model_name: "takes" model_version: -1 input_map { key: "CODE" value: "CODE" } input_map { key: "DATA" value: "DATA" }
    output_map { key: "RESULT" value: "RESULT" } output_map { key: "DATA" value: "OUT" } }
] }
"""


class Memory:
    """``SIZE`` bytes on the client's GPU."""

    def __init__(self) -> None:
        self.library = StandinCuda()
        self._driver = Driver(self.library)
        with self._driver.on(0):
            self.pointer = self._driver.allocate(SIZE)
            self.handle = self._driver.export(self.pointer)

    def put(self, data: np.ndarray, offset: int = 0) -> None:
        self.library.write(self.pointer + offset, data.tobytes())

    def floats(self, count: int, offset: int = 0) -> List[float]:
        found: List[float] = np.frombuffer(self.library.read(self.pointer + offset, count * 4), np.float32).tolist()
        return found

    def free(self) -> None:
        """The client's, or its process's, end of it."""
        self.library.close()


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.free()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("models")
    gpu(root, "takes")
    gpu(root, "forced", takes=False)
    gpu(root, "mortal")
    scripted(root, "plain")
    (root / "through" / "1").mkdir(parents=True)
    (root / "through" / "config.pbtxt").write_text(ENSEMBLE)
    arguments = ("--allow-client-shm=true", "--grpc-port", "0")
    prefix = (sys.executable, str(TESTS / "standin_server.py"))
    with serving(tmp_path_factory.mktemp("server"), root, *arguments, prefix=prefix) as server:
        yield server


class Client:
    """Either client library."""

    def __init__(self, library: Any, address: str) -> None:
        self.library = library
        self.raw = library.InferenceServerClient(address)

    def register(self, memory: Memory, name: str = "r", size: int = SIZE, device: int = 0, handle: Optional[bytes] = None) -> None:
        self.raw.register_cuda_shared_memory(name, base64.b64encode(handle or memory.handle), device, size)

    def status(self) -> List[Any]:
        found = self.raw.get_cuda_shared_memory_status()
        if self.library is http:
            return [(row["name"], row["device_id"], row["byte_size"]) for row in found]
        return [(row.name, row.device_id, row.byte_size) for row in found.regions.values()]

    def run(self, model: str, code: str, count: int = 10, offset: int = 0, out: Optional[int] = None, room: int = SIZE // 2) -> Any:
        """Runs ``code`` on ``count`` numbers at ``offset`` of the region; ``DATA`` goes to ``out``."""
        text = self.library.InferInput("CODE", [1], "BYTES")
        text.set_data_from_numpy(np.array([told(code)], object))
        data = self.library.InferInput("DATA", [count], "FP32")
        data.set_shared_memory("r", count * 4, offset)
        wanted = [self.library.InferRequestedOutput("RESULT")]
        if out is not None:
            wanted.append(self.library.InferRequestedOutput("OUT" if model == "through" else "DATA"))
            wanted[-1].set_shared_memory("r", room, out)
        return self.raw.infer(model, [text, data], outputs=wanted)

    def say(self, model: str, code: str, **more: Any) -> str:
        said: str = self.run(model, code, **more).as_numpy("RESULT")[0].decode()
        return said

    def tell(self, model: str, code: str) -> str:
        """Runs ``code`` without anything of the region."""
        text = self.library.InferInput("CODE", [1], "BYTES")
        text.set_data_from_numpy(np.array([told(code)], object))
        said: str = self.raw.infer(model, [text]).as_numpy("RESULT")[0].decode()
        return said


@pytest.fixture(params=["http", "grpc"])
def client(hub: None, request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Client]:
    """The models have nothing open afterwards."""
    found = Client(http, server.address) if request.param == "http" else Client(grpc, server.grpc_address)
    yield found
    found.raw.unregister_cuda_shared_memory()
    for name in ("takes", "forced"):
        until(lambda name=name: found.tell(name, "gc.collect(); result = len(library.opened)") == "0", what="the end of the last mapping")  # type: ignore[misc]
    found.raw.close()


def refusal(function: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(InferenceServerException) as raised:
        function(*arguments, **more)
    return str(raised.value.message())


def test_a_region_is_registered_listed_and_forgotten(client: Client, memory: Memory) -> None:
    client.register(memory)
    client.register(memory, "half", SIZE // 2)
    assert sorted(client.status()) == [("half", 0, SIZE // 2), ("r", 0, SIZE)]
    assert refusal(client.register, memory) == "shared memory region 'r' already in manager"
    client.raw.unregister_cuda_shared_memory("half")
    assert client.status() == [("r", 0, SIZE)]
    client.raw.unregister_cuda_shared_memory()
    assert client.status() == []
    assert refusal(client.run, "takes", SHOW) == "Unable to find shared memory region: 'r'"


def test_what_cannot_be_registered(client: Client, memory: Memory, server: ServerProcess) -> None:
    short = "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"
    assert refusal(client.register, memory, handle=b"short") == short
    for wrong, why in [
        ({"handle": GARBAGE}, "CUDA_ERROR_INVALID_HANDLE (400)"),
        ({"size": SIZE + 1}, f"it has {SIZE} bytes, not {SIZE + 1}"),
        ({"size": 0}, ""),
        ({"device": 1}, "there is no GPU 1: the server sees 1"),
    ]:
        assert refusal(client.register, memory, **wrong) == "failed to register shared memory region: invalid args"
        until(lambda why=why: why in server.log)  # type: ignore[misc]
    memory.free()
    assert refusal(client.register, memory) == "failed to register shared memory region: invalid args"
    assert client.status() == []


def test_an_input_is_read_where_it_is(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.put(TEN)
    copies = "result = [name for name in library.calls if name.startswith('cuMemcpy')]"
    before = client.tell("takes", copies)
    assert client.say("takes", SHOW) == f"(False, {TEN.tolist()})"
    opens = client.tell("takes", "result = calls('cuIpcOpenMemHandle_v2')")
    memory.put(TEN + 1)
    assert client.say("takes", SHOW) == f"(False, {(TEN + 1).tolist()})"
    assert client.tell("takes", "result = calls('cuIpcOpenMemHandle_v2')") == opens, "once"
    assert client.tell("takes", copies) == before


def test_what_instances_may_have_open_is_told(client: Client, memory: Memory, server: ServerProcess) -> None:
    def imported(name: str) -> int:
        models = httpx.get(f"http://{server.address}/v2/stublet/instances").json()["models"]
        (instance,) = next(model["instances"] for model in models if model["name"] == name)
        assert instance["gpu_exported_bytes"] == 0 and instance["gpu_memory_bytes"] is None
        found: int = instance["gpu_imported_bytes"]
        return found

    client.register(memory)
    assert imported("takes") == 0
    client.run("takes", SHOW)
    assert (imported("takes"), imported("forced")) == (SIZE, 0)
    client.raw.unregister_cuda_shared_memory("r")
    until(lambda: imported("takes") == 0)


def test_a_model_that_takes_host_memory_only_gets_a_copy(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.put(TEN, 256)
    assert client.say("forced", SHOW, offset=256) == f"(True, {TEN.tolist()})"
    assert client.say("forced", "data.as_numpy()[:] = 0; result = model.executed", offset=256) == "[]"
    assert memory.floats(10, 256) == TEN.tolist(), "it is the model's own"


def test_strings_are_read_in_host_memory(client: Client, memory: Memory) -> None:
    client.register(memory)
    wire = serialize_byte_tensor(np.array([b"result = data is None"], object)).item()
    memory.library.write(memory.pointer, wire)
    text = client.library.InferInput("CODE", [1], "BYTES")
    text.set_shared_memory("r", len(wire))
    assert client.raw.infer("takes", [text]).as_numpy("RESULT")[0] == b"True"
    memory.library.write(memory.pointer, b"\xff" * 4)
    assert refusal(client.raw.infer, "takes", [text]) == (
        f"incomplete string data for inference input 'CODE', expecting string of length 4294967295 but only {len(wire) - 4} bytes available"
    )


def test_an_input_that_begins_anywhere(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.put(TEN, 7)
    aligned = "found = data.__dlpack__(stream=1); result = (values(data).tolist(), (data._memory.address() + data._offset) % 4)"
    assert client.say("takes", aligned, offset=7) == f"({TEN.tolist()}, 0)"


@pytest.mark.parametrize("made", ["on_gpu(np.arange(4) + 1)", "pb_utils.Tensor('DATA', np.arange(4, dtype=np.float32) + 1)"])
@pytest.mark.parametrize("model", ["takes", "forced"])
def test_an_output_is_written_where_it_is_wanted(client: Client, memory: Memory, model: str, made: str) -> None:
    client.register(memory)
    memory.put(TEN)
    code = f"returned = [pb_utils.InferenceResponse([{made}, pb_utils.Tensor('RESULT', np.array(['done'], object))])]"
    answer = client.run(model, code, out=SIZE // 2)
    assert answer.as_numpy("RESULT")[0] == b"done" and memory.floats(5, SIZE // 2) == [1, 2, 3, 4, 0]
    described = answer.get_output("DATA")
    assert (described["shape"] if client.library is http else list(described.shape)) == [4]
    assert memory.floats(10) == TEN.tolist()


def test_an_input_that_comes_back_as_the_output(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.put(TEN)
    code = "returned = [pb_utils.InferenceResponse([data, pb_utils.Tensor('RESULT', np.array([''], object))])]"
    for out in (0, SIZE // 2):
        client.run("takes", code, out=out)
        assert memory.floats(10, out) == TEN.tolist()


def test_an_output_that_finds_no_room(client: Client, memory: Memory) -> None:
    client.register(memory)
    text = refusal(client.run, "takes", "output = np.ones(4)", out=1024, room=15)
    assert text == (
        "shared memory size specified with the request for output 'DATA' (15 bytes) should be at least 16 bytes to hold the results"
    )
    assert refusal(client.run, "takes", SHOW, out=SIZE - 8, room=16) == "Invalid offset + byte size for shared memory region: 'r'"
    assert refusal(client.run, "takes", SHOW, offset=SIZE) == "Invalid offset for shared memory region: 'r'"


def test_a_step_of_an_ensemble(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.put(TEN)
    code = f"{SHOW}; output = [5, 6]"
    assert client.say("through", code, out=4096) == f"(False, {TEN.tolist()})"
    assert memory.floats(2, 4096) == [5, 6]


def test_memory_that_is_freed_while_it_is_registered(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.free()
    why = "its memory on GPU 0 cannot be opened in this process: cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_HANDLE (400)"
    for name in ("takes", "forced"):
        assert refusal(client.run, name, SHOW) == f"shared memory region 'r' cannot be used for input 'DATA': {why}"
        assert client.tell(name, "result = 1") == "1", "and nothing else has come of it"


def test_a_process_without_a_driver(client: Client, memory: Memory) -> None:
    client.register(memory)
    text = refusal(client.run, "plain", SHOW)
    assert text.startswith(
        "shared memory region 'r' cannot be used for input 'DATA': the tensor is on a GPU, and this process cannot use one"
    )


def test_what_a_model_keeps_stays_open(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.put(TEN)
    client.run("takes", "model.kept = data")
    client.raw.unregister_cuda_shared_memory("r")
    assert client.tell("takes", "result = values(model.kept).tolist()") == str(TEN.tolist())
    assert client.tell("takes", "result = len(library.opened)") == "1"
    client.tell("takes", "model.kept = None")


def test_what_fails_on_the_gpu_is_an_error_of_the_request(client: Client, memory: Memory) -> None:
    client.register(memory)
    failing = "library.fails['cuMemcpyHtoDAsync_v2'] = 1; output = [1]"
    text = refusal(client.run, "takes", failing, out=0)
    assert text == ("shared memory region 'r' cannot be used for output 'DATA': GPU 0: cuMemcpyHtoDAsync_v2: CUDA_ERROR_INVALID_VALUE (1)")
    client.tell("takes", "library.fails.clear()")


def test_an_instance_that_dies_with_a_region_open(client: Client, memory: Memory) -> None:
    client.register(memory)
    memory.put(TEN)
    pid = int(client.say("mortal", "values(data); result = os.getpid()"))
    os.kill(pid, signal.SIGKILL)

    def again() -> bool:
        try:
            return client.say("mortal", SHOW) == f"(False, {TEN.tolist()})"
        except InferenceServerException:
            return False

    until(again, what="an answer of the next instance")
    assert memory.floats(10) == TEN.tolist()
