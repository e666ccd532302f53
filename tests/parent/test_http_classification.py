"""Classes in place of outputs, as a client gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List

import gevent
import numpy as np
import pytest
import tritonclient.http as http
from http_wire import Headers, infer, request, tensor
from model_repository import copy_model, write_model
from server_process import ServerProcess, run_serve, serving

LABELLED = """
input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] label_filename: "labels.txt" }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("classification")
    (write_model(root / "models", "labelled", config=LABELLED) / "labels.txt").write_text("a\nb\n\nd")
    for model in ("add_sub", "identity_batch", "every_type"):
        copy_model(root / "models", model)
    with serving(root, root / "models") as server:
        yield server


def wants(name: str, count: int, **parameters: Any) -> List[Dict[str, Any]]:
    return [{"name": name, "parameters": {"classification": count, **parameters}}]


@pytest.mark.parametrize(
    "model, inputs, outputs, shape, expected",
    [
        ("labelled", [tensor("INPUT0", "FP32", [5], [1, 2, 3, 4, 5])], wants("OUTPUT0", 9), [5],
         ["5.000000:4", "4.000000:3:d", "3.000000:2", "2.000000:1:b", "1.000000:0:a"]),
        ("identity_batch", [tensor("INPUT0", "FP32", [2, 4], [1, 2, 3, 4, 8, 7, 6, 5])], wants("OUTPUT0", 2), [2, 2],
         ["4.000000:3", "3.000000:2", "8.000000:0", "7.000000:1"]),
        ("every_type", [tensor("IN_INT8", "INT8", [3], [-1, 1, 0])], wants("OUT_INT8", 1), [1], ["1:1"]),
        ("labelled", [tensor("INPUT0", "FP32", [0], [])], wants("OUTPUT0", 2), [0], []),
        ("labelled", [tensor("INPUT0", "FP32", [2], [1, 2])], wants("OUTPUT0", 2**40), [2], ["2.000000:1:b", "1.000000:0:a"]),
    ],
    ids=["labels", "batch", "integers", "no elements", "more than there are"],
)  # fmt: skip
def test_in_json(server: ServerProcess, way: Headers, model: str, inputs: Any, outputs: Any, shape: Any, expected: Any) -> None:
    with server.wire() as wire:
        answer = wire.ask(infer(model, {"inputs": inputs, "outputs": outputs}, headers=way))
    assert answer.status == 200, answer.body
    assert answer.json()["outputs"] == [{"name": outputs[0]["name"], "datatype": "BYTES", "shape": shape, "data": expected}]


def test_none_is_the_output_itself(server: ServerProcess, way: Headers) -> None:
    document = {"inputs": [tensor("INPUT0", "FP32", [2], [1, 2])], "outputs": wants("OUTPUT0", 0)}
    with server.wire() as wire:
        answer = wire.ask(infer("labelled", document, headers=way))
    assert answer.json()["outputs"] == [{"name": "OUTPUT0", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}]


def test_one_output_classified_and_the_other_not(server: ServerProcess, way: Headers) -> None:
    four = [1.0, 2.0, 3.0, 4.0]
    inputs = [tensor("INPUT0", "FP32", [4], four), tensor("INPUT1", "FP32", [4], four)]
    outputs = [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, *wants("OUTPUT0", 1, binary_data=True)]
    with server.wire() as wire:
        for _ in range(2):
            answer = wire.ask(infer("add_sub", {"inputs": inputs, "outputs": outputs}, headers=way))
            assert [o["datatype"] for o in answer.json()["outputs"]] == ["FP32", "BYTES"]
            assert answer.binary == bytes(16) + b"\x0a\0\0\x008.000000:3"


def test_a_type_without_order_gives_its_memory_back(server: ServerProcess, way: Headers) -> None:
    document = {"inputs": [tensor("IN_BOOL", "BOOL", [1], [True])], "outputs": wants("OUT_BOOL", 1)}
    with server.wire() as wire:
        for _ in range(200):
            answer = wire.ask(infer("every_type", document, headers=way))
            assert (answer.status, answer.error) == (400, "class result not available for output due to unsupported type 'BOOL'")


def test_many_elements_do_not_hold_others_up(server: ServerProcess, way: Headers) -> None:
    count = 1_000_000
    document = {
        "inputs": [tensor("INPUT0", "FP32", [count], binary_data_size=4 * count)],
        "outputs": wants("OUTPUT0", count, binary_data=True),
    }
    array = np.arange(count, dtype=np.float32)
    with server.wire() as wire, server.wire() as other:
        wire.send(infer("labelled", document, array.tobytes(), way))
        for _ in range(20):
            assert other.ask(request("GET", "/v2/health/live")).status == 200
        answer = wire.answer()
        assert answer.json()["outputs"][0]["shape"] == [count]
        assert answer.binary.startswith(b"\x14\0\0\x00999999.000000:999999\x14\0\0\x00999998")
        too_many = {**document, "inputs": [tensor("INPUT0", "FP32", [count + 1], binary_data_size=4 * count + 4)]}
        refused = wire.ask(infer("labelled", too_many, bytes(4 * count + 4), way))
        assert (refused.status, refused.error) == (400, "classification output tensor too large")
        assert wire.ask(infer("labelled", {"inputs": [tensor("INPUT0", "FP32", [1], [1])]}, headers=way)).status == 200


@pytest.fixture(scope="module")
def hub() -> Iterator[None]:
    gevent.get_hub()
    yield
    gevent.get_hub().destroy(destroy_loop=True)


def test_tritonclient(hub: None, server: ServerProcess) -> None:
    given = http.InferInput("INPUT0", [3], "FP32")
    given.set_data_from_numpy(np.array([1, 3, 2], np.float32))
    client = http.InferenceServerClient(server.address)
    try:
        result = client.infer("labelled", [given], outputs=[http.InferRequestedOutput("OUTPUT0", class_count=2)])
    finally:
        client.close()
    assert result.as_numpy("OUTPUT0").tolist() == [b"3.000000:1:b", b"2.000000:2"]


def test_a_label_file_that_is_not_there(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "models", "labelled", config=LABELLED)
    ended = run_serve(str(tmp_path / "models"), "--http-port", "0")
    assert ended.returncode == 1
    assert f"failed to open text file for read {directory}/labels.txt: No such file or directory" in ended.stderr
