"""Sequences whose requests have tensors in shared memory of clients: what is added to them, and what is kept, is elsewhere."""

from __future__ import annotations

from typing import Any, Iterator, List, Optional

import numpy as np
import pytest
import tritonclient.http as http
from model_repository import write_model
from sequence_models import write_accumulate, write_count
from server_process import ServerProcess, memory_bytes, serving
from shared_memory import client_file
from tritonclient.utils import InferenceServerException

SIZE = 1 << 20
STRINGS = """
max_batch_size: 4
input { name: "INPUT0" data_type: TYPE_STRING dims: [-1] }
output { name: "OUTPUT0" data_type: TYPE_STRING dims: [-1] }
instance_group { count: 1 kind: KIND_CPU }
sequence_batching { direct {} control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] } } }
"""
LARGE = 1 << 17
"""Elements of the large state: more than the stub copies."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("regions")
    write_accumulate(root / "models", "small", 2, more='output { name: "NEW_STATE" data_type: TYPE_FP32 dims: [2] }')
    write_accumulate(root / "models", "large", LARGE)
    write_count(root / "models", "count")
    write_model(root / "models", "strings", config=STRINGS)
    with serving(root, root / "models", "--allow-client-shm=true") as server:
        yield server


@pytest.fixture
def client(hub: None, server: ServerProcess) -> Iterator[http.InferenceServerClient]:
    with client_file(SIZE) as file, http.InferenceServerClient(server.address) as client:
        client.register_system_shared_memory("r", file.key, SIZE)
        client.file = file
        yield client
        client.unregister_system_shared_memory()


def ask(client: Any, model: str, value: float, output: Optional[str] = "OUT", name: str = "IN", **sequence: Any) -> Any:
    """A request with its input in the region, and an output there too, if one is named."""
    data = np.full((1, 1), value, np.float32) if name == "IN" else np.array([[value, 0]], np.float32)
    client.file.put(data, 4096)
    given = http.InferInput(name, list(data.shape), "FP32")
    given.set_shared_memory("r", data.nbytes, 4096)
    outputs: List[Any] = []
    if output is not None:
        outputs = [http.InferRequestedOutput(output)]
        outputs[0].set_shared_memory("r", 8, 8192)
    return client.infer(model, [given], outputs=outputs, **sequence)


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_state_goes_along(client: Any, model: str) -> None:
    for number, (value, total) in enumerate([(1, 1), (2, 3), (3, 6), (0, 6), (4, 10)]):
        ask(client, model, value, sequence_id=5, sequence_start=number == 0, sequence_end=number == 4)
        assert client.file.array((1, 1), np.float32, 8192).tolist() == [[total]]


def test_a_state_is_not_put_in_a_region(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="state output 'NEW_STATE' cannot be written to shared memory of the client's"):
        ask(client, "small", 1, "NEW_STATE", sequence_id=5, sequence_start=True)
    assert ask(client, "small", 1, None, sequence_id=5).as_numpy("NEW_STATE").tolist() == [[1, 1]]
    ask(client, "small", 1, sequence_id=5, sequence_end=True)


def test_a_request_that_is_executed_again(client: Any) -> None:
    ask(client, "count", 40, name="UNTIL")
    assert client.file.array((1, 1), np.int32, 8192).tolist() == [[40]]


def test_rows_beside_strings_that_are_not_there(client: Any, server: ServerProcess) -> None:
    """What is put in the rows of other sequences is no larger than what the client has, whatever it says of it."""
    given = http.InferInput("INPUT0", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[b"first"]], object))
    client.infer("strings", [given], sequence_id=1, sequence_start=True)
    client.file.put(b"\1\0\0\0x", 4096)
    before = memory_bytes(server.pid)
    for count in (1, 10**9):
        given = http.InferInput("INPUT0", [1, count], "BYTES")
        given.set_shared_memory("r", 5, 4096)
        if count == 1:
            client.infer("strings", [given], sequence_id=2, sequence_start=True)
        else:
            with pytest.raises(InferenceServerException, match="expected 1000000000 string elements"):
                client.infer("strings", [given], sequence_id=2)
    assert memory_bytes(server.pid) < before + (64 << 20)
