"""Batches as one tensor, inputs made of others, scattered outputs and reshape, by real instances over both protocols (spec 5.2)."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from model_repository import write_model
from server_process import ServerProcess, serving, until
from stublet.parent import Server
from stublet.parent.errors import Unavailable
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

HEADER = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
"""

JOINED = (
    HEADER
    + """
        whole = {name: pb_utils.batch(requests, name) for name in ("INPUT0", "INPUT1")}
        views = all(
            np.shares_memory(whole[tensor.name()].as_numpy(), tensor.as_numpy()) for request in requests for tensor in request.inputs()
        )
        told = pb_utils.empty("TOLD", (whole["INPUT0"].shape()[0], 2), np.int32)
        told.as_numpy()[:] = len(requests), views
        total = pb_utils.empty("OUTPUT0", whole["INPUT0"].shape(), np.float32)
        np.add(whole["INPUT0"].as_numpy(), whole["INPUT1"].as_numpy().sum(axis=1, keepdims=True), out=total.as_numpy())
        return pb_utils.split(requests, [total, told])
"""
)
JOINED_CONFIG = """
max_batch_size: 8
input [{{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }}, {{ name: "INPUT1" data_type: TYPE_INT64 dims: [2] }}]
output [{{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }}, {{ name: "TOLD" data_type: TYPE_INT32 dims: [2] }}]
dynamic_batching {{ preferred_batch_size: [8] max_queue_delay_microseconds: 20000000 }}
parameters {{ key: "concatenate_batch" value: {{ string_value: "{wanted}" }} }}
"""

RAGGED = (
    HEADER
    + """
        whole, ends = pb_utils.batch(requests, "INPUT0").as_numpy(), pb_utils.batch(requests, "ENDS").as_numpy()
        assert whole.ndim == 1 and ends.dtype == np.int32, (whole, ends)
        place = np.searchsorted(ends, np.arange(len(whole)), side="right").astype(np.float32)
        return pb_utils.split(requests, [pb_utils.Tensor("OUTPUT0", whole * 2), pb_utils.Tensor("PLACE", place)])
"""
)
RAGGED_CONFIG = """
max_batch_size: 4
input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }, { name: "PLACE" data_type: TYPE_FP32 dims: [-1] }]
batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "ENDS" data_type: TYPE_INT32 source_input: "INPUT0" }
batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: ["OUTPUT0", "PLACE"] source_input: "INPUT0" }
dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 20000000 }
parameters { key: "concatenate_batch" value: { string_value: "yes" } }
"""

RESHAPED = (
    HEADER
    + """
        responses = []
        for request in requests:
            square, column, scalar = (tensor.as_numpy() for tensor in request.inputs())
            assert square.shape[1:] == (2, 2) and column.shape[1:2] == (1,) and scalar.ndim == 1, (square.shape, column.shape, scalar.shape)
            out = square * 2 if scalar[0] >= 0 else square.reshape(-1, 4)
            outputs = [("SQUARE", out), ("COLUMN", column + 1), ("SCALAR", scalar)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs]))
        return responses
"""
)
RESHAPED_CONFIG = """
max_batch_size: 8
input [
  { name: "A" data_type: TYPE_FP32 dims: [4] reshape { shape: [2, 2] } },
  { name: "B" data_type: TYPE_INT32 dims: [-1] reshape { shape: [1, -1] } },
  { name: "C" data_type: TYPE_FP64 dims: [1] reshape { shape: [] } }
]
output [
  { name: "SQUARE" data_type: TYPE_FP32 dims: [4] reshape { shape: [2, 2] } },
  { name: "COLUMN" data_type: TYPE_INT32 dims: [-1] reshape { shape: [1, -1] } },
  { name: "SCALAR" data_type: TYPE_FP64 dims: [1] reshape { shape: [] } }
]
dynamic_batching { }
"""

CALLER = (
    HEADER
    + """
        responses = []
        for request in requests:
            inputs = request.inputs()
            call = pb_utils.InferenceRequest(model_name="reshaped", inputs=inputs, requested_output_names=["SQUARE", "COLUMN", "SCALAR"])
            answer = call.exec()
            shapes = [tensor.shape() for tensor in answer.output_tensors()]
            assert answer.has_error() or shapes == [tensor.shape() for tensor in inputs], shapes
            responses.append(answer)
        return responses
"""
)
CALLER_CONFIG = """
max_batch_size: 8
input [ { name: "A" data_type: TYPE_FP32 dims: [4] }, { name: "B" data_type: TYPE_INT32 dims: [-1] }, { name: "C" data_type: TYPE_FP64 dims: [1] } ]
output [ { name: "SQUARE" data_type: TYPE_FP32 dims: [4] }, { name: "COLUMN" data_type: TYPE_INT32 dims: [-1] }, { name: "SCALAR" data_type: TYPE_FP64 dims: [1] } ]
"""

STRINGS = (
    HEADER
    + """
        whole = pb_utils.batch(requests, "INPUT0")
        return pb_utils.split(requests, [pb_utils.Tensor("OUTPUT0", whole.as_numpy()), pb_utils.batch(requests, "INPUT1")])
"""
)
STRINGS_CONFIG = """
max_batch_size: 4
input [{ name: "INPUT0" data_type: TYPE_STRING dims: [1] }, { name: "INPUT1" data_type: TYPE_INT32 dims: [1] optional: true }]
output [{ name: "OUTPUT0" data_type: TYPE_STRING dims: [1] }, { name: "INPUT1" data_type: TYPE_INT32 dims: [1] }]
dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 20000000 }
parameters { key: "concatenate_batch" value: { string_value: "yes" } }
"""

KEEPER = (
    HEADER
    + """
        self.kept = getattr(self, "kept", [])
        batch = pb_utils.batch(requests, "INPUT0").as_numpy()
        if batch[0, 0] == 0:
            self.kept.clear()
        told = np.array([[float(all((kept == kept[0, 0]).all() for kept in self.kept))]] * len(batch), np.float32)
        self.kept.append(batch)
        return pb_utils.split(requests, [pb_utils.Tensor("OUTPUT0", told)])
"""
)
KEEPER_CONFIG = """
max_batch_size: 4
input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [1] }
dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 20000000 }
parameters { key: "concatenate_batch" value: { string_value: "yes" } }
"""


class Client:
    """Requests over either protocol, any number at once."""

    def __init__(self, server: ServerProcess, protocol: str) -> None:
        if protocol == "http":
            self._module: Any = tritonclient.http
            self._client: Any = tritonclient.http.InferenceServerClient(server.address, concurrency=32)
        else:
            self._module = tritonclient.grpc
            self._client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
        self._pool = ThreadPoolExecutor(32)

    def ask(self, model: str, **arrays: np.ndarray) -> Any:
        return self._client.infer(model, self._inputs(arrays))

    def _inputs(self, arrays: Dict[str, np.ndarray]) -> List[Any]:
        inputs = []
        for name, array in arrays.items():
            inputs.append(self._module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        return inputs

    def ask_all(self, model: str, requests: Sequence[Dict[str, np.ndarray]]) -> List[Any]:
        """At once, so that they are executed together."""
        if self._module is tritonclient.http:  # its greenlets are those of one thread
            asked = [self._client.async_infer(model, self._inputs(arrays)) for arrays in requests]
            return [one.get_result() for one in asked]
        return list(self._pool.map(lambda arrays: self.ask(model, **arrays), requests))

    def close(self) -> None:
        self._pool.shutdown()
        self._client.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("concatenation")
    models: Dict[str, Any] = {
        "joined": (JOINED, JOINED_CONFIG.format(wanted="yes")),
        "copied": (JOINED, JOINED_CONFIG.format(wanted="no")),
        "ragged": (RAGGED, RAGGED_CONFIG),
        "reshaped": (RESHAPED, RESHAPED_CONFIG),
        "caller": (CALLER, CALLER_CONFIG),
        "strings": (STRINGS, STRINGS_CONFIG),
        "keeper": (KEEPER, KEEPER_CONFIG),
    }
    for name, (code, config) in models.items():
        write_model(root / "models", name, code, config)
    with serving(root, root / "models", "--grpc-port", "0", tracebacks=True) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def client(hub: None, grpc_core: None, server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(server, request.param)
    try:
        yield client
    finally:
        client.close()


def numbered(size: int, width: int, value: int) -> Dict[str, np.ndarray]:
    return {"INPUT0": np.full((size, width), value, np.float32), "INPUT1": np.full((size, 2), value, np.int64)}


@pytest.mark.parametrize("width", [3, 10_000])
@pytest.mark.parametrize("model", ["joined", "copied"])
def test_a_batch_is_one_tensor(client: Client, model: str, width: int) -> None:
    for sizes in ([1] * 8, [2, 1, 3, 2], [8]):
        answers = client.ask_all(model, [numbered(size, width, value) for value, size in enumerate(sizes)])
        for value, (size, answer) in enumerate(zip(sizes, answers)):
            output = answer.as_numpy("OUTPUT0")
            assert output.shape == (size, width) and (output == 3 * value).all()
            joined = model == "joined" or len(sizes) == 1
            assert answer.as_numpy("TOLD").tolist() == [[len(sizes), int(joined)]] * size


def test_a_body_that_takes_its_time_is_part_of_the_batch(grpc_core: None, server: ServerProcess) -> None:
    """The first to come is the last to be complete; in the batch it is at its place."""
    body = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 30_000], "parameters": {"binary_data_size": 120_000}},
                       {"name": "INPUT1", "datatype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": 16}}]}  # fmt: skip
    text = json.dumps(body).encode()
    data = np.full(30_000, 5, np.float32).tobytes() + np.full(2, 5, np.int64).tobytes()
    head = (
        f"POST /v2/models/joined/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {len(text)}\r\n"
        f"Content-Length: {len(text) + len(data)}\r\n\r\n"
    ).encode()
    client = Client(server, "grpc")
    with server.wire() as wire, ThreadPoolExecutor(1) as pool:
        wire.send(head + text + data[:70_000])
        others = pool.submit(client.ask_all, "joined", [numbered(1, 30_000, value) for value in range(7)])
        wire.send(data[70_000:])
        slow = wire.answer()
        assert slow.status == 200, slow.body
        answers = others.result()
    assert sorted(answer.as_numpy("OUTPUT0")[0, 0] for answer in answers) == [3 * value for value in range(7)]
    assert [answer.as_numpy("TOLD").tolist() for answer in answers] == [[[8, 1]]] * 7
    client.close()


def test_ragged_inputs_are_flat_and_outputs_are_scattered(client: Client) -> None:
    widths = [3, 1, 4, 0]
    requests = [{"INPUT0": np.arange(width, dtype=np.float32).reshape(1, width)} for width in widths]
    answers = client.ask_all("ragged", requests)
    for request, answer in zip(requests, answers):
        assert answer.as_numpy("OUTPUT0").tolist() == (request["INPUT0"] * 2).tolist()
    places = [answer.as_numpy("PLACE") for answer in answers]
    assert [place.shape for place in places] == [(1, width) for width in widths]
    assert all(len(set(place.flat)) <= 1 for place in places), "each lies between two ends"
    two = [{"INPUT0": np.ones((2, 3), np.float32)}, {"INPUT0": np.ones((2, 5), np.float32)}]
    assert [answer.as_numpy("PLACE").shape for answer in client.ask_all("ragged", two)] == [(2, 3), (2, 5)]


def test_strings_are_joined_by_copying(client: Client) -> None:
    requests = [{"INPUT0": np.array([[f"{value}" * value]], object), "INPUT1": np.array([[value]], np.int32)} for value in range(4)]
    for value, answer in enumerate(client.ask_all("strings", requests)):
        assert answer.as_numpy("OUTPUT0").tolist() == [[(f"{value}" * value).encode()]]
        assert answer.as_numpy("INPUT1").tolist() == [[value]]


def test_an_input_that_some_have_is_told(client: Client) -> None:
    requests: List[Dict[str, np.ndarray]] = [{"INPUT0": np.array([["a"]] * 3, object)}, {"INPUT0": np.array([["b"]], object)}]
    requests[0]["INPUT1"] = np.ones((3, 1), np.int32)
    with pytest.raises(InferenceServerException, match="batch: input 'INPUT1' is missing in 1 of 2 requests"):
        client.ask_all("strings", requests)


def test_a_batch_that_the_model_keeps_stays_as_it_is(client: Client) -> None:
    """While others come and go in shared memory."""
    for value in range(12):
        requests = [{"INPUT0": np.full((1, 100), value, np.float32)} for _ in range(4)]
        assert [answer.as_numpy("OUTPUT0").tolist() for answer in client.ask_all("keeper", requests)] == [[[1.0]]] * 4


MORTAL = (
    HEADER
    + """
        import os, signal
        batch = pb_utils.batch(requests, "INPUT0")
        if batch.as_numpy().max() == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return pb_utils.split(requests, [pb_utils.Tensor("OUTPUT0", batch.as_numpy()[:, :1])])
"""
)


def test_the_death_of_an_instance_gives_back_all_rows(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "mortal", MORTAL, KEEPER_CONFIG)

    async def ask(server: Server, values: Sequence[int]) -> List[Any]:
        asked = [server.infer_async("mortal", {"INPUT0": np.full((1, 100), value, np.float32)}) for value in values]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    with Server(tmp_path / "models") as server:
        fine = asyncio.run(ask(server, [0, 1, 2, 0]))
        assert [answer["OUTPUT0"].tolist() for answer in fine] == [[[0]], [[1]], [[2]], [[0]]]
        for answer in asyncio.run(ask(server, [0, 1, 2, 3])):
            assert isinstance(answer, Unavailable) and "SIGKILL" in str(answer)
        model = server.core.find("mortal")
        until(lambda: model.memory().inputs_used == 0, what="the return of all rows")


ONCE = (
    HEADER
    + """
        import os, signal
        batch = pb_utils.batch(requests, "INPUT0").as_numpy()
        result = batch[:, :1] * 10
        batch[:] = -1  # which the next one to execute them must not see
        if not os.path.exists(GONE):
            open(GONE, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return pb_utils.split(requests, [pb_utils.Tensor("OUTPUT0", result)])
"""
)


def test_a_batch_whose_instance_died_is_executed_again_with_all_its_rows(tmp_path: Path) -> None:
    code = ONCE.replace("GONE", repr(str(tmp_path / "gone")))
    write_model(tmp_path / "models", "once", code, KEEPER_CONFIG + 'parameters { key: "retry_on_crash" value: { string_value: "yes" } }')

    async def ask(server: Server) -> List[Any]:
        asked = [server.infer_async("once", {"INPUT0": np.full((1, 100), value, np.float32)}) for value in range(4)]
        return list(await asyncio.gather(*asked))

    with Server(tmp_path / "models") as server:
        for _ in range(2):
            assert [answer["OUTPUT0"].tolist() for answer in asyncio.run(ask(server))] == [[[0]], [[10]], [[20]], [[30]]]
        assert (tmp_path / "gone").exists()
        model = server.core.find("once")
        until(lambda: model.memory().inputs_used == 0, what="the return of all rows")


# ---- reshape ----


def shaped(size: int, width: int, scalar: float = 1) -> Dict[str, np.ndarray]:
    return {
        "A": np.arange(size * 4, dtype=np.float32).reshape(size, 4),
        "B": np.arange(size * width, dtype=np.int32).reshape(size, width),
        "C": np.full((size, 1), scalar, np.float64),
    }


@pytest.mark.parametrize("model", ["reshaped", "caller"])
@pytest.mark.parametrize("size, width", [(1, 3), (3, 1), (2, 5), (1, 0)])
def test_clients_see_dims_and_the_model_the_reshape(client: Client, model: str, size: int, width: int) -> None:
    arrays = shaped(size, width)
    answer = client.ask(model, **arrays)
    assert answer.as_numpy("SQUARE").tolist() == (arrays["A"] * 2).tolist()
    assert answer.as_numpy("COLUMN").tolist() == (arrays["B"] + 1).tolist() and answer.as_numpy("COLUMN").shape == (size, width)
    assert answer.as_numpy("SCALAR").tolist() == arrays["C"].tolist()


@pytest.mark.parametrize("model", ["reshaped", "caller"])
def test_an_output_that_the_model_did_not_reshape_is_an_error(client: Client, model: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.ask(model, **shaped(2, 3, scalar=-1))
    assert "the response of model 'reshaped' is wrong: output 'SQUARE' has shape [2, 4], but its 'reshape' says [-1, 2, 2]" in str(
        caught.value
    )


def test_a_client_must_not_send_what_the_model_sees(client: Client) -> None:
    arrays = shaped(1, 3)
    arrays["A"] = arrays["A"].reshape(1, 2, 2)
    with pytest.raises(
        InferenceServerException, match=r"unexpected shape for input 'A' for model 'reshaped'\. Expected \[-1,4\], got \[1,2,2\]"
    ):
        client.ask("reshaped", **arrays)


def test_nothing_is_left_of_what_was_asked(server: ServerProcess, client: Client) -> None:
    client.ask_all("joined", [numbered(1, 30_000, value) for value in range(8)])

    def used() -> float:
        text = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
        (line,) = re.findall(r'^stublet_shared_memory_used_bytes\{[^}]*"joined"[^}]*\} (.+)$', text, re.MULTILINE)
        return float(line)

    until(lambda: used() == 0, what="the return of all rows")
