"""What the example programs of tritonclient do that there are for gRPC alone: streams, messages without the library, options."""

from __future__ import annotations

import asyncio
import queue
from functools import partial
from typing import Any, AsyncIterator, Dict, Iterator, List, Optional

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
from grpc_client import FINAL, SECONDS, Client, pb, strings
from server_process import ServerProcess

ONES, NUMBERS = [1] * 16, list(range(16))
VALUES = [11, 7, 5, 3, 2, 0, 1]


@pytest.fixture
def client(grpc_core: None, example_server: ServerProcess) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(example_server.grpc_address) as client:
        yield client


class Answers:
    """Where the callback of a stream puts what it is told."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()

    def callback(self, result: Optional[grpc.InferResult], error: Optional[Exception]) -> None:
        self.queue.put(error or result)

    def take(self) -> grpc.InferResult:
        found = self.queue.get(timeout=SECONDS)
        if isinstance(found, Exception):
            raise found
        return found


def given(name: str, datatype: str, array: np.ndarray) -> grpc.InferInput:
    tensor = grpc.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


# Streams


@pytest.mark.parametrize("wait", [0, 50], ids=["execute returns first", "execute returns last"])
def test_simple_custom_repeat(client: grpc.InferenceServerClient, wait: int) -> None:
    count = 10
    data = np.arange(100, 100 + count, dtype=np.int32)
    inputs = [
        given("IN", "INT32", data),
        given("DELAY", "UINT32", np.full(count, 2, np.uint32)),
        given("WAIT", "UINT32", np.array([wait], np.uint32)),
    ]
    outputs = [grpc.InferRequestedOutput(name) for name in ("OUT", "IDX")]
    answers = Answers()
    client.start_stream(partial(Answers.callback, answers))
    client.async_stream_infer("repeat_int32", inputs, request_id="0", outputs=outputs, enable_empty_final_response=True)
    for index in range(count):
        result = answers.take()
        assert (result.as_numpy("OUT").tolist(), result.as_numpy("IDX").tolist()) == ([100 + index], [index])
        assert result.get_response().id == "0"
        assert result.get_response().parameters[FINAL].bool_param is False
    last = answers.take().get_response()
    assert (len(last.outputs), last.parameters[FINAL].bool_param) == (0, True)
    client.stop_stream()
    assert answers.queue.empty()


def sequence(key: Any, sign: int) -> Iterator[Dict[str, Any]]:
    """The requests of one sequence, as arguments of the library."""
    for i, value in enumerate(VALUES):
        yield {
            "model_name": "simple_sequence",
            "inputs": [given("INPUT", "INT32", np.full((1, 1), sign * value, np.int32))],
            "outputs": [grpc.InferRequestedOutput("OUTPUT")],
            "request_id": f"{key}_{i}",
            "sequence_id": key,
            "sequence_start": i == 0,
            "sequence_end": i == len(VALUES) - 1,
        }


def sums(key: Any, sign: int) -> Dict[str, int]:
    """What is answered, by the id of the request."""
    return {f"{key}_{i}": sign * total for i, total in enumerate(np.cumsum(VALUES).tolist())}


IDS = pytest.mark.parametrize("ids", [(1001, 1002), ("first", "second")], ids=["numbers", "strings"])


@IDS
def test_simple_sequence_stream(client: grpc.InferenceServerClient, ids: Any) -> None:
    answers = Answers()
    client.start_stream(answers.callback)
    for key, sign in zip(ids, (1, -1)):
        for request in sequence(key, sign):
            client.async_stream_infer(**request)
    client.stop_stream()  # waits for all that is outstanding
    found = [answers.take() for _ in range(2 * len(VALUES))]
    assert {one.get_response().id: one.as_numpy("OUTPUT").item() for one in found} == {**sums(ids[0], 1), **sums(ids[1], -1)}
    assert answers.queue.empty()


@IDS
def test_simple_aio_sequence_stream(grpc_core: None, example_server: ServerProcess, ids: Any) -> None:
    async def requests() -> AsyncIterator[Dict[str, Any]]:
        for both in zip(sequence(ids[0], 1), sequence(ids[1], -1)):
            for request in both:
                yield request

    async def ask() -> Dict[str, int]:
        async with grpc_aio.InferenceServerClient(example_server.grpc_address) as client:
            found = {}
            async for result, error in client.stream_infer(inputs_iterator=requests(), stream_timeout=SECONDS):
                assert error is None
                found[result.get_response().id] = result.as_numpy("OUTPUT").item()
            return found

    assert asyncio.run(ask()) == {**sums(ids[0], 1), **sums(ids[1], -1)}


# Messages without the library


def simple_request(model: str, datatype: str) -> Any:
    request = pb.ModelInferRequest(model_name=model, id="my request id")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype=datatype, shape=[1, 16])
    for name in ("OUTPUT0", "OUTPUT1"):
        request.outputs.add(name=name)
    return request


def added(response: Any) -> List[List[int]]:
    assert response.id == "my request id"
    assert [(output.name, list(output.shape)) for output in response.outputs] == [("OUTPUT0", [1, 16]), ("OUTPUT1", [1, 16])]
    dtypes = {"INT8": np.int8, "INT32": np.int32}
    return [
        list(map(int, strings(raw) if output.datatype == "BYTES" else np.frombuffer(raw, dtypes[output.datatype])))
        for output, raw in zip(response.outputs, response.raw_output_contents)
    ]


ADDED = [[n + 1 for n in NUMBERS], [n - 1 for n in NUMBERS]]


def test_grpc_client(grpc_core: None, example_server: ServerProcess) -> None:
    with Client(example_server.grpc_address) as client:
        assert client.stub.ServerLive(pb.ServerLiveRequest()).live
        assert client.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert client.stub.ModelReady(pb.ModelReadyRequest(name="simple", version="1")).ready
        assert client.stub.ServerMetadata(pb.ServerMetadataRequest()).name == "triton"
        metadata = client.stub.ModelMetadata(pb.ModelMetadataRequest(name="simple", version="1"))
        assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
            ("INPUT0", "INT32", [-1, 16]), ("INPUT1", "INT32", [-1, 16]),
        ]  # fmt: skip
        assert client.stub.ModelConfig(pb.ModelConfigRequest(name="simple", version="1")).config.max_batch_size == 8
        request = simple_request("simple", "INT32")
        request.raw_input_contents.extend(np.array(values, np.int32).tobytes() for values in (NUMBERS, ONES))
        assert added(client.infer(request)) == ADDED


@pytest.mark.parametrize(
    "model, datatype, field", [("simple", "INT32", "int"), ("simple_int8", "INT8", "int"), ("simple_string", "BYTES", "bytes")]
)
def test_explicit_content(grpc_core: None, example_server: ServerProcess, model: str, datatype: str, field: str) -> None:
    request = simple_request(model, datatype)
    for tensor, values in zip(request.inputs, (NUMBERS, ONES)):
        getattr(tensor.contents, f"{field}_contents").extend([str(n).encode() for n in values] if field == "bytes" else values)
    with Client(example_server.grpc_address) as client:
        assert added(client.infer(request)) == ADDED


# Options of a client


@pytest.mark.parametrize(
    "options",
    [
        {
            "keepalive_options": grpc.KeepAliveOptions(
                keepalive_time_ms=2**31 - 1,
                keepalive_timeout_ms=20_000,
                keepalive_permit_without_calls=False,
                http2_max_pings_without_data=2,
            )
        },
        {"channel_args": [("grpc.primary_user_agent", "example"), ("grpc.max_receive_message_length", 1 << 20)]},
    ],
    ids=["simple_grpc_keepalive_client", "simple_grpc_custom_args_client"],
)
def test_options(grpc_core: None, example_server: ServerProcess, options: Any) -> None:
    inputs = [given(name, "INT32", np.array([values], np.int32)) for name, values in (("INPUT0", NUMBERS), ("INPUT1", ONES))]
    with grpc.InferenceServerClient(example_server.grpc_address, **options) as client:
        result = client.infer("simple", inputs)
    assert [result.as_numpy(name)[0].tolist() for name in ("OUTPUT0", "OUTPUT1")] == ADDED
