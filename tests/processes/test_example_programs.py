"""What the example programs of tritonclient do that there are for HTTP and for gRPC: the same calls in the same order, each answer checked.

Those of asynchronous inference are in ``test_tritonclient.py``, ``test_http_control.py`` and ``test_grpc_infer.py``.
"""

from __future__ import annotations

import os
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm
from server_process import ServerProcess, descendants, memory_bytes, until
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, triton_to_np_dtype

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)


@pytest.fixture(params=[http, grpc], ids=["http", "grpc"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


@pytest.fixture
def client(library: ModuleType, hub: None, grpc_core: None, example_server: ServerProcess) -> Iterator[Any]:
    with connected(library, example_server) as client:
        yield client


def connected(library: ModuleType, server: ServerProcess) -> Any:
    return library.InferenceServerClient(server.grpc_address if library is grpc else server.address)


def told(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call answers, as JSON, which is the only form that both libraries have."""
    return call(*arguments, as_json=True) if call.__module__.startswith("tritonclient.grpc") else call(*arguments)


def failure(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(InferenceServerException) as raised:
        call(*arguments)
    return str(raised.value.message())


def given(library: ModuleType, datatype: str, *arrays: np.ndarray) -> List[Any]:
    """INPUT0, INPUT1 and so on."""
    inputs = [library.InferInput(f"INPUT{i}", list(array.shape), datatype) for i, array in enumerate(arrays)]
    for tensor, array in zip(inputs, arrays):
        tensor.set_data_from_numpy(array)
    return inputs


def wanted(library: ModuleType) -> List[Any]:
    return [library.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]


def assert_added(result: Any, a: np.ndarray = A, b: np.ndarray = B) -> None:
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), a + b)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), a - b)


def as_text(array: np.ndarray) -> np.ndarray:
    return array.astype(str).astype(np.bytes_).astype(object)


@pytest.mark.parametrize("batch", [1, 8])
def test_simple_infer(library: ModuleType, client: Any, batch: int) -> None:
    a, b = np.repeat(A, batch, axis=0), np.repeat(B, batch, axis=0)
    more: Dict[str, Any] = {"client_timeout": 30.0} if library is grpc else {"query_params": {"test_1": 1, "test_2": 2}}
    inputs = given(library, "INT32", a, b)
    assert_added(client.infer("simple", inputs, outputs=wanted(library), headers={"test": "1"}, **more), a, b)
    assert_added(client.infer("simple", inputs), a, b)
    (statistics,) = told(client.get_inference_statistics, "simple")["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("simple", "1")
    assert failure(client.infer, "wrong_model_name", inputs) == "Request for unknown model: 'wrong_model_name' is not found"
    assert failure(client.get_inference_statistics, "wrong_model_name") == "requested model 'wrong_model_name' is not available"


def test_simple_string_infer(library: ModuleType, client: Any) -> None:
    inputs, outputs = given(library, "BYTES", as_text(A), as_text(B)), wanted(library)
    if library is http:
        inputs[1].set_data_from_numpy(as_text(B), binary_data=False)
        outputs[1] = http.InferRequestedOutput("OUTPUT1", binary_data=False)
    result = client.infer("simple_string", inputs, outputs=outputs)
    for name, array in (("OUTPUT0", A + B), ("OUTPUT1", A - B)):
        np.testing.assert_array_equal(result.as_numpy(name).astype(int), array)
    nulls = np.array([[b"he\x00llo"] * 16], object)
    np.testing.assert_array_equal(client.infer("simple_identity", given(library, "BYTES", nulls)).as_numpy("OUTPUT0"), nulls)


def test_simple_health_metadata(library: ModuleType, client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("simple") is True
    assert client.is_model_ready("simple", "1") is True
    assert client.is_model_ready("wrong_model_name") is False
    assert told(client.get_server_metadata)["name"] == "triton"
    metadata = told(client.get_model_metadata, "simple")
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("simple", ["1"], "python")
    assert [(one["name"], one["datatype"], list(map(int, one["shape"]))) for one in metadata["outputs"]] == [
        ("OUTPUT0", "INT32", [-1, 16]),
        ("OUTPUT1", "INT32", [-1, 16]),
    ]
    config = told(client.get_model_config, "simple")
    config = config["config"] if library is grpc else config
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("simple", "python", 8)
    for call in (client.get_model_metadata, client.get_model_config):
        assert failure(call, "wrong_model_name") == "Request for unknown model: 'wrong_model_name' is not found"


def test_simple_model_control(library: ModuleType, client: Any) -> None:
    def state() -> str:
        index = told(client.get_model_repository_index)
        (row,) = [row for row in (index["models"] if library is grpc else index) if row["name"] == "simple"]
        return str(row["state"])

    client.unload_model("simple", unload_dependents=True)
    assert client.is_model_ready("simple") is False
    assert state() == "UNAVAILABLE"
    assert failure(client.infer, "simple", given(library, "INT32", A, B)) == "Request for unknown model: 'simple' is not found"
    client.load_model("simple")
    assert client.is_model_ready("simple") is True
    assert state() == "READY"
    assert_added(client.infer("simple", given(library, "INT32", A, B)))
    assert failure(client.load_model, "wrong_model_name") == "failed to load 'wrong_model_name', failed to poll from model repository"
    client.unload_model("wrong_model_name")


# Shared memory


@pytest.fixture(scope="module")
def tracker() -> None:
    """The library's regions are those of multiprocessing, which watches them from a process that it starts once and keeps."""
    resource_tracker.ensure_running()


Regions = Tuple[Any, Any]


@pytest.fixture
def regions(library: ModuleType, client: Any, tracker: None) -> Iterator[Regions]:
    """Registered ones of 2048 bytes each, "input_data" and "output_data"."""

    def registered() -> List[str]:
        found = told(client.get_system_shared_memory_status)
        return sorted(found.get("regions", {}) if library is grpc else [row["name"] for row in found])

    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    handles = []
    for name in ("input_data", "output_data"):
        key = f"/{name}_{os.getpid()}"
        handles.append(shm.create_shared_memory_region(name, key, 2048))
        client.register_system_shared_memory(name, key, 2048)
    assert registered() == ["input_data", "output_data"]
    yield handles[0], handles[1]
    client.unregister_system_shared_memory("input_data")
    client.unregister_system_shared_memory()
    assert registered() == []
    assert len(shm.mapped_shared_memory_regions()) == 2
    for handle in handles:
        shm.destroy_shared_memory_region(handle)
    assert shm.mapped_shared_memory_regions() == []


def in_region(library: ModuleType, result: Any, name: str, handle: Any, offset: int) -> np.ndarray:
    """An output, of the type and shape that the answer says; a copy, for a region in use cannot be closed."""
    about = result.get_output(name)
    datatype, shape = (about.datatype, list(about.shape)) if library is grpc else (about["datatype"], about["shape"])
    return np.array(shm.get_contents_as_numpy(handle, triton_to_np_dtype(datatype), shape, offset=offset))


@pytest.mark.parametrize("model", ["simple", "simple_string"])
def test_simple_shm(library: ModuleType, client: Any, regions: Regions, model: str) -> None:
    strings = model == "simple_string"
    datatype, arrays = ("BYTES", [serialize_byte_tensor(as_text(x)) for x in (A, B)]) if strings else ("INT32", [A, B])
    sizes = [len(array.item()) if strings else array.nbytes for array in arrays]
    shm.set_shared_memory_region(regions[0], arrays[:1])
    shm.set_shared_memory_region(regions[0], arrays[1:], offset=sizes[0])
    inputs, outputs = [library.InferInput(f"INPUT{i}", [1, 16], datatype) for i in (0, 1)], wanted(library)
    inputs[0].set_shared_memory("input_data", sizes[0])
    inputs[1].set_shared_memory("input_data", sizes[1], offset=sizes[0])
    outputs[0].set_shared_memory("output_data", 1024)
    outputs[1].set_shared_memory("output_data", 1024, offset=1024)
    result = client.infer(model, inputs, outputs=outputs)
    for name, offset, expected in (("OUTPUT0", 0, A + B), ("OUTPUT1", 1024, A - B)):
        np.testing.assert_array_equal(in_region(library, result, name, regions[1], offset).astype(int), expected)


def test_reuse_infer_objects(library: ModuleType, client: Any, regions: Regions) -> None:
    inputs, outputs = given(library, "INT32", A, B), wanted(library)
    assert_added(client.infer("simple", inputs, outputs=outputs))
    shm.set_shared_memory_region(regions[0], [2 * A, 3 * B])
    for i in (0, 1):
        inputs[i].set_shared_memory("input_data", A.nbytes, offset=i * A.nbytes)
        outputs[i].set_shared_memory("output_data", A.nbytes, offset=i * A.nbytes)
    result = client.infer("simple", inputs, outputs=outputs)
    np.testing.assert_array_equal(in_region(library, result, "OUTPUT0", regions[1], 0), 2 * A + 3 * B)
    np.testing.assert_array_equal(in_region(library, result, "OUTPUT1", regions[1], A.nbytes), 2 * A - 3 * B)
    for i, array in enumerate((B, A)):
        inputs[i].set_data_from_numpy(array)
        outputs[i].unset_shared_memory()
    assert_added(client.infer("simple", inputs, outputs=outputs), B, A)


# Larger programs


@pytest.mark.parametrize("batch", [1, 3])
def test_image_client(library: ModuleType, client: Any, batch: int) -> None:
    """It asks for the names and the layout, and shows the classes."""
    metadata, config = told(client.get_model_metadata, "colours"), told(client.get_model_config, "colours")
    config = config["config"] if library is grpc else config
    (about,), (output,) = metadata["inputs"], metadata["outputs"]
    assert config["max_batch_size"] >= batch
    assert config["input"][0]["format"] == "FORMAT_NCHW"
    channels, height, width = map(int, about["shape"][1:])
    images = np.zeros((batch, channels, height, width), np.float32)
    for i, image in enumerate(images):
        image[i], image[(i + 1) % 3] = 3, 1
    tensor = library.InferInput(about["name"], list(images.shape), about["datatype"])
    tensor.set_data_from_numpy(images)
    wanted = library.InferRequestedOutput(output["name"], class_count=2)
    found = client.infer("colours", [tensor], outputs=[wanted], request_id="1").as_numpy(output["name"])
    rows = [[text.decode().split(":") for text in row] for row in found]
    labels = ["red", "green", "blue"]
    assert rows == [[["0.750000", str(i), labels[i]], ["0.250000", str(k), labels[k]]] for i, k in ((i, (i + 1) % 3) for i in range(batch))]


@pytest.mark.parametrize("ids", [(1007, 1008), ("first", "second")], ids=["numbers", "strings"])
def test_simple_sequence_sync(library: ModuleType, client: Any, ids: Tuple[Any, Any]) -> None:
    values = [11, 7, 5, 3, 2, 0, 1]
    found: Dict[Any, List[int]] = {key: [] for key in ids}
    for i, value in enumerate(values):
        for key, sign in zip(ids, (1, -1)):
            tensor = library.InferInput("INPUT", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.full((1, 1), sign * value, np.int32))
            result = client.infer(
                "simple_sequence",
                [tensor],
                outputs=[library.InferRequestedOutput("OUTPUT")],
                sequence_id=key,
                sequence_start=i == 0,
                sequence_end=i == len(values) - 1,
            )
            found[key].append(result.as_numpy("OUTPUT").item())
    sums = np.cumsum(values)
    assert found == {ids[0]: sums.tolist(), ids[1]: (-sums).tolist()}


def test_memory_growth(library: ModuleType, hub: None, grpc_core: None, example_server: ServerProcess) -> None:
    """Clients that come and go leave nothing in the server."""

    def memory() -> int:
        return sum(memory_bytes(pid) for pid in (example_server.pid, *descendants(example_server.pid)))

    def use(clients: int) -> None:
        for _ in range(clients):
            with connected(library, example_server) as client:
                for _ in range(3):
                    assert_added(client.infer("simple", given(library, "INT32", A, B)))

    use(50)
    before = memory()
    use(200)
    until(lambda: memory() < before + (2 << 20), 5, f"memory of {before} bytes and 10 KiB for a client, now {memory()}")
