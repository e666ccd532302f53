"""Ensembles of real models, over both protocols, from a model and embedded (spec 5.4)."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from ensembles import X, add, chain, count, ensemble, plus_one, tensors
from http_wire import tensor
from model_repository import obey, write_model
from server_process import ServerProcess, serving
from stublet.parent import Server

BYTES_IO = """
input { name: "IN" data_type: TYPE_STRING dims: [-1] }
output { name: "OUT" data_type: TYPE_STRING dims: [-1] }
"""
UPPER = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        texts = [[text.upper() + b"!" for text in request.inputs()[0].as_numpy()] for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array(text, object))]) for text in texts]
"""


def make(root: Path) -> None:
    for name in ("one", "two", "three"):
        plus_one(root, name)
    plus_one(root, "batch", "max_batch_size: 4")
    add(root, "sum")
    count(root, "count")
    count(root, "again")
    write_model(root, "upper", UPPER, BYTES_IO)
    obey(root, "caller")
    ensemble(root, "chain", chain("one", "two", "three"))
    ensemble(root, "nested", [("chain", {"X": "X"}, {"Y": "t"}), ("one", {"IN": "t"}, {"OUT": "Y"})])
    ensemble(
        root, "diamond",
        [("one", {"IN": "X"}, {"OUT": "a"}), ("two", {"IN": "a"}, {"OUT": "b"}), ("sum", {"A": "a", "B": "b"}, {"OUT": "Y", "WHICH": "W"})],
        outputs=tensors("output", "a", "Y") + tensors("output", "W", dims="1", data_type="TYPE_STRING"),
    )  # fmt: skip
    optional = tensors("input", "X", "Z", more="optional: true")
    ensemble(root, "optional", [("sum", {"A": "X", "B": "Z"}, {"OUT": "Y", "WHICH": "W"})], optional,
             tensors("output", "Y") + tensors("output", "W", dims="1", data_type="TYPE_STRING"))  # fmt: skip
    ensemble(root, "needed", chain("one"), tensors("input", "X", more="optional: true"))
    ensemble(root, "batches", chain("batch", "batch"), extra="max_batch_size: 4")
    ensemble(root, "unbatched", chain("batch", "one"))
    ensemble(root, "mixed", chain("batch", "one"), extra="max_batch_size: 4")
    ensemble(
        root,
        "texts",
        chain("upper", "upper"),
        tensors("input", "X", data_type="TYPE_STRING"),
        tensors("output", "Y", data_type="TYPE_STRING"),
    )
    ensemble(root, "counted", chain("count", "one"))
    ensemble(root, "squared", chain("count", "again", "one"))
    ensemble(root, "limited", chain("count", "one", "two"), section="max_inflight_requests: 1")
    labelled = ensemble(
        root, "labelled", chain("one"), outputs='output { name: "Y" data_type: TYPE_FP32 dims: [-1] label_filename: "labels" }'
    )
    (labelled / "labels").write_text("first\nsecond\n")
    ensemble(root, "passing", [("one", {"IN": "X"}, {"OUT": "Y"})], outputs=tensors("output", "X", "Y"))


@pytest.fixture(scope="module")
def server(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("models")
    make(root)
    with serving(tmp_path_factory.mktemp("server"), root, "--grpc-port", "0", tracebacks=True) as server:
        yield server


class Asked:
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.body = response.json()
        self.error = self.body.get("error", "")
        self.outputs = {output["name"]: output["data"] for output in self.body.get("outputs", ())}


def ask(server: ServerProcess, model: str, *values: float, shape: Optional[List[int]] = None, outputs: Any = None, **more: Any) -> Asked:
    """An inference over HTTP: values of X."""
    document: Dict[str, Any] = {"inputs": [tensor("X", "FP32", shape or [len(values)], list(values))], **more}
    if outputs is not None:
        document["outputs"] = outputs
    return Asked(httpx.post(f"http://{server.address}/v2/models/{model}/infer", json=document, timeout=30))


def stats(server: ServerProcess, model: str) -> Dict[str, Any]:
    (found,) = httpx.get(f"http://{server.address}/v2/models/{model}/stats").json()["model_stats"]
    return dict(found)


@pytest.mark.parametrize(
    "model, values, shape, expected",
    [
        ("chain", (1, 2), None, {"Y": [4, 5]}),
        ("nested", (1,), None, {"Y": [5]}),
        ("diamond", (1,), None, {"a": [2], "Y": [5], "W": ["A B"]}),
        ("batches", (1, 2, 3, 4), [2, 2], {"Y": [3, 4, 5, 6]}),
        ("unbatched", (1, 2), None, {"Y": [3, 4]}),
        ("mixed", (1, 2), [1, 2], {"Y": [3, 4]}),
        ("passing", (1,), None, {"X": [1], "Y": [2]}),
        ("optional", (5,), None, {"Y": [5], "W": ["A"]}),
        ("chain", (), [0], {"Y": []}),
    ],
)
def test_outputs(server: ServerProcess, model: str, values: Any, shape: Any, expected: Dict[str, Any]) -> None:
    answer = ask(server, model, *values, shape=shape)
    assert (answer.status, answer.outputs) == (200, expected), answer.error


def test_shapes_of_a_batch_among_models_that_do_not_batch(server: ServerProcess) -> None:
    assert ask(server, "mixed", 1, 2, shape=[1, 2]).body["outputs"][0]["shape"] == [1, 2]
    assert ask(server, "unbatched", 1, 2).body["outputs"][0]["shape"] == [2]
    answer = ask(server, "mixed", 1, 2, 3, 4, shape=[2, 2])
    assert answer.status == 400
    assert answer.error == "in ensemble 'mixed', unexpected shape for input 'IN' for model 'one'. Expected [-1], got [2,2]. "


def test_only_what_is_wanted_is_made(server: ServerProcess) -> None:
    before = stats(server, "two")["execution_count"]
    assert ask(server, "diamond", 1, outputs=[{"name": "a"}]).outputs == {"a": [2]}
    assert stats(server, "two")["execution_count"] == before
    assert ask(server, "diamond", 1, outputs=[{"name": "W"}, {"name": "a"}]).outputs == {"W": ["A B"], "a": [2]}


def test_an_optional_input_that_is_missing(server: ServerProcess) -> None:
    nothing = httpx.post(f"http://{server.address}/v2/models/optional/infer", json={"inputs": []}).json()
    assert [output["data"] for output in nothing["outputs"]] == [[0], [""]]
    refused = httpx.post(f"http://{server.address}/v2/models/needed/infer", json={"inputs": []})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("in ensemble 'needed', expected 1 inputs but got 0 inputs for model 'one'.")


@pytest.mark.parametrize(
    "model, value, status, error",
    [
        ("chain", -10, 500, "in ensemble 'chain', Failed to process the request(s) for model 'one_0_0', message: ValueError: bad number"),
        ("chain", -11, 500, "in ensemble 'chain', Failed to process the request(s) for model"),
        ("chain", -21, 501, "in ensemble 'chain', not me"),
        ("nested", -20, 501, "in ensemble 'nested', in ensemble 'chain', not me"),
        ("chain", -30, 400, "in ensemble 'chain', expected 1 inputs but got 0 inputs for model 'two'."),
        ("diamond", -21, 501, "in ensemble 'diamond', not me"),
    ],
)
def test_a_step_that_fails(server: ServerProcess, model: str, value: float, status: int, error: str) -> None:
    before = stats(server, model)["inference_stats"]
    answer = ask(server, model, value)
    assert answer.status == status and answer.error.startswith(error)
    after = stats(server, model)["inference_stats"]
    assert after["fail"]["count"] == before["fail"]["count"] + 1 and after["success"] == before["success"]


def test_an_output_that_the_last_step_leaves_out(server: ServerProcess) -> None:
    assert ask(server, "chain", -32).body["outputs"] == []


def test_statistics_add_up(server: ServerProcess) -> None:
    before, steps = stats(server, "chain"), {name: stats(server, name) for name in ("one", "two", "three")}
    for value in (1, 2, -10, 3):
        ask(server, "chain", value)
    after = stats(server, "chain")
    counts = {part: after["inference_stats"][part]["count"] - before["inference_stats"][part]["count"] for part in ("success", "fail")}
    assert counts == {"success": 3, "fail": 1}
    assert after["inference_count"] - before["inference_count"] == 3
    executed = {name: stats(server, name)["execution_count"] - steps[name]["execution_count"] for name in steps}
    assert executed == {"one": 4, "two": 3, "three": 3}
    parts = after["inference_stats"]
    assert sum(parts[part]["ns"] for part in ("queue", "compute_input", "compute_infer", "compute_output")) == parts["success"]["ns"]


def test_what_goes_with_a_request_reaches_every_step(server: ServerProcess) -> None:
    given = {"sequence_id": 7, "sequence_start": True, "timeout": 9_000_000, "custom": 5}
    answer = ask(server, "passing", -50, id="me", parameters=given)
    assert json.loads(answer.body["parameters"]["told"])[:4] == ["me", 7, 1, 9_000_000]
    assert json.loads(json.loads(answer.body["parameters"]["told"])[4]) == {"custom": 5}
    assert json.loads(ask(server, "chain", -52, id="you").body["parameters"]["told"])[0] == "you"


def test_classes_with_labels(server: ServerProcess) -> None:
    answer = ask(server, "labelled", 1, 5, outputs=[{"name": "Y", "parameters": {"classification": 1}}])
    assert answer.outputs == {"Y": ["6.000000:1:second"]}


def test_texts(server: ServerProcess) -> None:
    document = {"inputs": [tensor("X", "BYTES", [2], ["a", "bc"])]}
    answer = httpx.post(f"http://{server.address}/v2/models/texts/infer", json=document).json()
    assert answer["outputs"][0]["data"] == ["A!!", "BC!!"]


def test_how_an_ensemble_shows_up(server: ServerProcess) -> None:
    base = f"http://{server.address}/v2/models/chain"
    assert httpx.get(base).json()["platform"] == "ensemble"
    config = httpx.get(f"{base}/config").json()
    assert (config["platform"], config["backend"], config["instance_group"]) == ("ensemble", "", [])
    assert config["model_transaction_policy"] == {"decoupled": False} and "optimization" not in config
    assert httpx.get(f"http://{server.address}/v2/models/counted/config").json()["model_transaction_policy"] == {"decoupled": True}
    (row,) = [row for row in httpx.get(f"http://{server.address}/v2/stublet/instances").json()["models"] if row["name"] == "chain"]
    assert (row["state"], row["instances"]) == ("READY", [])
    (line,) = [line.split() for line in server.out.splitlines() if line.startswith("chain ")]
    assert line == ["chain", "1", "READY"]


def test_decoupled_over_grpc(server: ServerProcess) -> None:
    with triton.InferenceServerClient(server.grpc_address) as client:
        assert client.get_model_metadata("counted").platform == "ensemble"
        assert stream(client, "counted", 3) == [1, 2, 3]
        assert stream(client, "counted", 0) == []
        assert sorted(stream(client, "squared", 4)) == [1, 1, 1, 2, 2, 3]
        assert stream(client, "limited", 5) == [2, 3, 4, 5, 6]
        single = client.infer("chain", [given(1)])
        assert single.as_numpy("Y").tolist() == [4]
        with pytest.raises(triton.InferenceServerException, match="doesn't support models with decoupled transaction policy"):
            client.infer("counted", [given(1)])


def given(value: float) -> triton.InferInput:
    one = triton.InferInput("X", [1], "FP32")
    one.set_data_from_numpy(np.array([value], np.float32))
    return one


def stream(client: Any, model: str, value: float) -> List[float]:
    arrived: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: arrived.put((result, error)))
    client.async_stream_infer(model, [given(value)], enable_empty_final_response=True)
    found = []
    while True:
        result, error = arrived.get(timeout=30)
        assert error is None
        if result.get_response().outputs:
            found.append(float(result.as_numpy("Y")[0]))
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    return found


def test_generate(server: ServerProcess) -> None:
    base = f"http://{server.address}/v2/models"
    assert httpx.post(f"{base}/chain/generate", json={"X": [1]}).json()["Y"] == 4
    events = httpx.post(f"{base}/counted/generate_stream", json={"X": [3]}).text.split("\n\n")
    assert [json.loads(event[len("data: ") :])["Y"] for event in events if event] == [1, 2, 3]
    refused = httpx.post(f"{base}/counted/infer", json={"inputs": [tensor("X", "FP32", [1], [3])]})
    assert refused.status_code == 501


def test_called_by_a_model(server: ServerProcess) -> None:
    call = """
tensor = pb_utils.Tensor("X", np.array([{value}], np.float32))
answer = pb_utils.InferenceRequest("chain", inputs=[tensor], requested_output_names=["Y"], model_name="chain").exec()
result = answer.error().message() if answer.has_error() else str(answer.output_tensors()[0].as_numpy().tolist())
"""
    assert told(server, call.format(value=1)) == "[4.0]"
    assert "in ensemble 'chain', not me" in told(server, call.format(value=-21))
    streamed = """
tensor = pb_utils.Tensor("X", np.array([3], np.float32))
request = pb_utils.InferenceRequest("count", inputs=[tensor], requested_output_names=["Y"], model_name="counted")
found = [answer.output_tensors()[0].as_numpy()[0] for answer in request.exec(decoupled=True) if answer.output_tensors()]
result = str([float(one) for one in found])
"""
    assert told(server, streamed) == "[1.0, 2.0, 3.0]"


def told(server: ServerProcess, code: str) -> str:
    document = {"inputs": [tensor("CODE", "BYTES", [1], [code])]}
    answer = httpx.post(f"http://{server.address}/v2/models/caller/infer", json=document, timeout=30).json()
    return str(answer["outputs"][0]["data"][0]) if "outputs" in answer else str(answer)


def test_embedded_with_a_model_that_calls_the_ensemble_it_is_part_of(tmp_path: Path) -> None:
    code = """
tensor = pb_utils.Tensor("CODE", np.array(["result = '1'"], object))
answer = pb_utils.InferenceRequest("round", inputs=[tensor], requested_output_names=["RESULT"], model_name="round").exec()
result = answer.error().message() if answer.has_error() else "served"
"""
    obey(tmp_path, "part")
    texts = [tensors(kind, name, dims="1", data_type="TYPE_STRING") for kind, name in (("input", "CODE"), ("output", "RESULT"))]
    ensemble(tmp_path, "round", [("part", {"CODE": "CODE"}, {"RESULT": "RESULT"})], *texts)
    with Server(tmp_path) as server:
        answer = server.infer("round", {"CODE": np.array([code], object)}, timeout=20)
        assert "the call can never be served" in answer["RESULT"][0].decode()
        assert server.infer("round", {"CODE": np.array(["result = 'fine'"], object)}, timeout=20)["RESULT"][0] == b"fine"


def test_embedded(tmp_path: Path) -> None:
    plus_one(tmp_path, "one")
    count(tmp_path, "count")
    ensemble(tmp_path, "chain", chain("one", "one"), X)
    ensemble(tmp_path, "counted", chain("count", "one"))
    with Server(tmp_path) as server:
        for value in range(50):
            assert server.infer("chain", {"X": np.array([value], np.float32)}, timeout=20)["Y"].tolist() == [value + 2]
        answers = list(server.infer_stream("counted", {"X": np.array([3], np.float32)}, timeout=20))
        assert [float(answer["Y"][0]) for answer in answers if "Y" in answer] == [1, 2, 3]
