"""The response cache of a real server, over both protocols and from models: who is answered without ``execute``, and what is counted
(spec 5.5, 6.9, 7)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from http_wire import Wire, infer, request, tensor
from model_repository import obey, write_model
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, run_serve, serving, until
from shared_memory import client_file

from .conftest import Serve

COUNTS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Adds up its inputs, and says in COUNT how often it was executed. A negative number is an error.'''

    def initialize(self, args):
        self.count = 0

    def execute(self, requests):
        responses = []
        for request in requests:
            self.count += 1
            array = request.inputs()[0].as_numpy()
            if array.size and array.flat[0] < 0:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
                continue
            shape = (len(array), 1) if array.ndim > 1 else (1,)
            count = pb_utils.Tensor("COUNT", np.full(shape, self.count, np.int32))
            outputs = [pb_utils.Tensor("OUTPUT0", array * 2), count]
            responses.append(pb_utils.InferenceResponse(outputs, parameters={"executed": self.count}))
        return responses
"""
CONFIG = """
input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }, { name: "COUNT" data_type: TYPE_INT32 dims: [1] } ]
response_cache { enable: true }
"""
CACHE = "--cache-config=local,size=1048576"


MODELS = {
    "counts": CONFIG,
    "batched": "max_batch_size: 8 dynamic_batching { preserve_ordering: true }" + CONFIG,
    "without": CONFIG.replace("true", "false"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cached") / "models"


@pytest.fixture(scope="module")
def running(grpc_core: None, root: Path) -> Iterator[ServerProcess]:
    obey(root)
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    with serving(root.parent, root, CACHE, "--grpc-port", "0", "--allow-client-shm=true", *explicit) as server:
        yield server


@pytest.fixture
def server(running: ServerProcess, root: Path) -> Iterator[ServerProcess]:
    """With models that were never asked."""
    for model, config in MODELS.items():
        write_model(root, model, COUNTS, config)
        control(running, model, "load")
    yield running
    for model in MODELS:
        control(running, model, "unload")
    states = f"http://{running.address}/v2/repository/index"
    until(lambda: {one["state"] for one in httpx.post(states).json() if one["name"] in MODELS} == {"UNAVAILABLE"}, what="the models' end")
    for model in MODELS:
        shutil.rmtree(root / model)


def control(server: ServerProcess, model: str, action: str) -> None:
    answer = httpx.post(f"http://{server.address}/v2/repository/models/{model}/{action}", timeout=30)
    assert answer.status_code == 200, answer.text


def ask(server: ServerProcess, value: float = 1, model: str = "counts", size: int = 2, status: int = 200, **more: Any) -> Any:
    shape = [1, size] if model == "batched" else [size]
    body = {"inputs": [tensor("INPUT0", "FP32", shape, [value] * size)], **more}
    answer = httpx.post(f"http://{server.address}/v2/models/{model}/infer", json=body, timeout=30)
    assert answer.status_code == status, answer.text
    return answer.json()


def executed(answer: Dict[str, Any]) -> int:
    (count,) = [output["data"][0] for output in answer["outputs"] if output["name"] == "COUNT"]
    return int(count)


def statistics(server: ServerProcess, model: str = "counts") -> Dict[str, Any]:
    (found,) = httpx.get(f"http://{server.address}/v2/models/{model}/stats").json()["model_stats"]
    return dict(found)


def counts(server: ServerProcess, model: str = "counts") -> Dict[str, int]:
    found = statistics(server, model)
    parts = {
        part: found["inference_stats"][part]["count"] for part in ("success", "fail", "queue", "compute_infer", "cache_hit", "cache_miss")
    }
    return {**parts, "inferences": found["inference_count"], "executions": found["execution_count"]}


def test_the_same_question_is_executed_once(server: ServerProcess) -> None:
    first = ask(server, id="first")
    again = ask(server, id="again")
    assert first == {**again, "id": "first"} and executed(first) == 1 and again["parameters"] == {"executed": 1}
    assert executed(ask(server, 2)) == 2
    assert executed(ask(server, 1, size=3)) == 3
    assert executed(ask(server, parameters={"mine": 1})) == 4
    assert executed(ask(server, parameters={"priority": 1})) == 1
    only = ask(server, outputs=[{"name": "OUTPUT0"}])
    assert only == ask(server, outputs=[{"name": "OUTPUT0"}]) and [one["data"] for one in only["outputs"]] == [[2, 2]]
    assert counts(server) == {
        "success": 8, "fail": 0, "queue": 8, "compute_infer": 5, "cache_hit": 3, "cache_miss": 5, "inferences": 5, "executions": 5,
    }  # fmt: skip
    parts = statistics(server)["inference_stats"]
    assert parts["cache_hit"]["ns"] > 0 and parts["cache_miss"]["ns"] > 0 and parts["queue"]["ns"] > 0


def test_errors_are_not_kept(server: ServerProcess) -> None:
    assert [ask(server, -1, status=500) for _ in range(2)] == [{"error": "negative"}] * 2
    assert executed(ask(server)) == 3
    assert counts(server)["cache_miss"] == 3


def test_a_model_without_one(server: ServerProcess) -> None:
    assert [executed(ask(server, model="without")) for _ in range(2)] == [1, 2]
    assert counts(server, "without")["cache_miss"] == 0


@pytest.mark.usefixtures("hub")
def test_both_protocols_share_it(server: ServerProcess) -> None:
    array = np.arange(5000, dtype=np.float32)
    results = []
    with triton_http.InferenceServerClient(server.address) as http:
        asked = triton_http.InferInput("INPUT0", [5000], "FP32")
        asked.set_data_from_numpy(array)
        results += [http.infer("counts", [asked]) for _ in range(2)]
    with triton.InferenceServerClient(server.grpc_address) as grpc:
        grpc_input = triton.InferInput("INPUT0", [5000], "FP32")
        grpc_input.set_data_from_numpy(array)
        results.append(grpc.infer("counts", [grpc_input]))
        streamed: List[Tuple[Any, Any]] = []
        grpc.start_stream(lambda result, error: streamed.append((result, error)))
        grpc.async_stream_infer("counts", [grpc_input])
        until(lambda: streamed, what="the answer in the stream")
        grpc.stop_stream()
        assert streamed[0][1] is None
        results.append(streamed[0][0])
    for result in results:
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array * 2)
        assert result.as_numpy("COUNT").tolist() == [1]


def test_models_share_it(server: ServerProcess) -> None:
    call = """
array = np.ones(2, np.float32)
answer = pb_utils.InferenceRequest(inputs=[pb_utils.Tensor("INPUT0", array)], requested_output_names=[], model_name="counts").exec()
result = " ".join(str(t.as_numpy().tolist()) for t in answer.output_tensors())
"""
    assert executed(ask(server)) == 1
    with server.wire() as wire:
        answers = [wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [call])]})).json() for _ in range(3)]
    assert [answer["outputs"][0]["data"] for answer in answers] == [["[2.0, 2.0] [1]"]] * 3
    assert counts(server)["cache_hit"] == 3


def test_batches_and_order(server: ServerProcess) -> None:
    assert [executed(ask(server, value, "batched")) for value in (1, 2, 1, 3, 2)] == [1, 2, 1, 3, 2]
    assert counts(server, "batched")["cache_hit"] == 2


@pytest.mark.usefixtures("hub")
def test_inputs_in_shared_memory_of_the_client(server: ServerProcess) -> None:
    with client_file(64) as file, triton_http.InferenceServerClient(server.address) as http:
        http.register_system_shared_memory("r", file.key, 64)

        def executed_with(value: float, output: Optional[int] = None) -> Any:
            file.put(np.full(2, value, np.float32), 8)
            asked = triton_http.InferInput("INPUT0", [2], "FP32")
            asked.set_shared_memory("r", 8, offset=8)
            outputs = [triton_http.InferRequestedOutput("COUNT")]
            if output is not None:
                outputs.append(triton_http.InferRequestedOutput("OUTPUT0"))
                outputs[-1].set_shared_memory("r", 8, offset=output)
            return http.infer("counts", [asked], outputs=outputs).as_numpy("COUNT").tolist()

        assert [executed_with(value) for value in (1, 2, 1)] == [[1], [2], [1]]  # what is there counts, not where it is
        assert executed_with(1, output=32) == [3] and file.array(2, np.float32, 32).tolist() == [2, 2]
        assert executed_with(1, output=32) == [4]  # an answer that goes to the client's memory is computed
        http.unregister_system_shared_memory()


def test_a_reload_empties_it_and_a_size_bounds_it(server: ServerProcess, root: Path) -> None:
    assert [executed(ask(server)) for _ in range(2)] == [1, 1]
    (root / "counts/1/model.py").write_text(COUNTS.replace("array * 2", "array * 3"))
    control(server, "counts", "load")
    assert [executed(ask(server)) for _ in range(2)] == [1, 1]
    assert ask(server)["outputs"][0]["data"] == [3, 3]
    size = 60_000  # four of these fill the cache
    assert [executed(ask(server, value, size=size)) for value in (2, 3, 4, 2, 3, 4)] == [2, 3, 4, 5, 6, 7]
    assert executed(ask(server)) == 8  # it had to leave


def test_metrics(server: ServerProcess) -> None:
    for _ in range(3):
        ask(server)
    with Wire(server.metrics_port) as wire:
        text = wire.ask(request("GET", "/metrics")).body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = {"model": "counts", "version": "1"}
    values = {}
    for name in ("num_hits", "num_misses", "hit_duration", "miss_duration"):
        family = families[f"nv_cache_{name}_per_model"]
        assert family.type == "counter" and {sample.labels["model"] for sample in family.samples} == {"counts", "batched"}
        (values[name],) = [sample.value for sample in family.samples if sample.labels == labels]
    assert (values["num_hits"], values["num_misses"]) == (2, 1) and values["hit_duration"] > 0 and values["miss_duration"] > 0
    (success,) = [s.value for s in families["nv_inference_request_success"].samples if s.labels == labels]
    (inferences,) = [s.value for s in families["nv_inference_count"].samples if s.labels == labels]
    assert (success, inferences) == (3, 1)


def test_without_a_cache_it_is_said_and_done_without(serve: Serve, repository: Path) -> None:
    write_model(repository, "counts", COUNTS, CONFIG)
    server = serve()
    assert [executed(ask(server)) for _ in range(2)] == [1, 2]
    assert "model 'counts' wants its responses kept, but there is no response cache" in server.log
    server.stop()


def test_the_former_option(serve: Serve, repository: Path) -> None:
    write_model(repository, "counts", COUNTS, CONFIG)
    server = serve("--response-cache-byte-size=100000", "--cache-directory=/nowhere")
    assert [executed(ask(server)) for _ in range(2)] == [1, 1]
    assert "--cache-directory (the local cache is built in)" in server.log
    server.stop()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--cache-config=local,size=much"], "config didn't contain a valid 'size' field."),
        (["--cache-config=local,size=0"], "config didn't contain a valid 'size' field."),
        (["--cache-config=local,sizes=5"], "'sizes' is no setting of the local cache"),
        (["--cache-config=local"], "option format is '<cache name>,<setting>=<value>'. Got local"),
        (["--cache-config=redis,host=x"], "unable to find a cache named 'redis'"),
        (["--cache-config=local,size=5", "--response-cache-byte-size=5"], "give only one of them"),
        (["--max-queue-size=-1"], "--max-queue-size"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, arguments: List[str], complaint: str) -> None:
    done = run_serve(str(tmp_path), *arguments)
    assert done.returncode == 2 and complaint in " ".join(done.stderr.replace("│", " ").split())
