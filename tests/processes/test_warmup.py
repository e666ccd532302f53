"""Warm-up of real instances: what they execute before they serve, and what becomes of them if they cannot (spec 5.5)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List

import httpx
import numpy as np
import pytest
from http_wire import tensor
from model_repository import ECHO, write_model
from server_process import ServerProcess, run_serve, until

from .conftest import Serve

TELLS = """
import os
import signal

import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''Prints what it is executed with, and echoes it. Numbers from 7 on are faults.'''

    def execute(self, requests):
        print("executes", len(requests), [request.inputs()[0].as_numpy().tolist() for request in requests], flush=True)
        responses = []
        for request in requests:
            array = request.inputs()[0].as_numpy()
            first = array.flat[0] if array.size and array.dtype != object else 0
            if first == 7:
                raise ValueError("seven")
            if first == 8:
                os.kill(os.getpid(), signal.SIGSEGV)
            if first == 9:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("nine")))
                continue
            if first == 10:
                inputs = [pb_utils.Tensor("INPUT0", np.ones(3, np.float32))]
                answer = pb_utils.InferenceRequest(inputs=inputs, requested_output_names=[], model_name="echo").exec()
                print("was told", answer.output_tensors()[0].as_numpy().tolist(), flush=True)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", array)]))
        return responses
"""
DECOUPLED = """
import threading
import time

import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request.get_response_sender(), request.inputs()[0])).start()

    def answer(self, sender, given):
        for number in range(3):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", given.as_numpy())]))
            time.sleep(0.05)
        print("is through", flush=True)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CONFIG = """
input {{ name: "INPUT0" data_type: {dtype} dims: [-1] }}
output {{ name: "OUTPUT0" data_type: {dtype} dims: [-1] }}
model_warmup [ {samples} ]
"""


def sample(data: str, name: str = "s", more: str = "", dims: int = 1, dtype: str = "TYPE_FP32") -> str:
    value = f"data_type: {dtype} dims: [{dims}] {data}"
    more = more if "batch_size" in more else f"batch_size: 1 {more}"
    return f'{{ name: "{name}" {more} inputs {{ key: "INPUT0" value {{ {value} }} }} }}'


def write(root: Path, name: str, samples: List[str], more: str = "", code: str = TELLS, dtype: str = "TYPE_FP32", **files: Any) -> Path:
    """A model with these samples and, in ``warmup``, files of these contents."""
    config = CONFIG.format(dtype=dtype, samples=", ".join(samples)) + more
    directory = write_model(root, name, code, config)
    (directory / "warmup").mkdir()
    for file, content in files.items():
        (directory / "warmup" / file).write_bytes(content if isinstance(content, bytes) else np.array([content], np.float32).tobytes())
    return directory


def executions(server: ServerProcess, instance: str) -> List[str]:
    """What an instance has printed of its executions."""
    return re.findall(rf" {instance} stdout\] executes (.*)", server.log)


def failure(root: Path) -> str:
    """Why the model in the repository does not load."""
    done = run_serve(str(root), "--http-port", "0")
    assert done.returncode == 1
    (reason,) = re.findall(r"^error: failed to load '.+?': version 1 is at UNAVAILABLE state: (.*)", done.stderr, re.MULTILINE)
    return str(reason)


def statistics(server: ServerProcess, model: str) -> Dict[str, Any]:
    (found,) = httpx.get(f"http://{server.address}/v2/models/{model}/stats").json()["model_stats"]
    return dict(found)


def test_what_is_executed_before_the_model_is_ready(serve: Serve, repository: Path) -> None:
    two = "instance_group { count: 2 kind: KIND_CPU }"
    write(repository, "counts", [sample("zero_data: true", "a", "count: 2", 3), sample("input_data_file: 'f'", "b")], two, f=4)
    write(repository, "batch", [sample("zero_data: true", more="batch_size: 3")], "max_batch_size: 4 dynamic_batching { }")
    write(repository, "nothing", [sample("zero_data: true", more="batch_size: 0")])
    write(repository, "text", [sample("input_data_file: 'f'", dims=2, dtype="TYPE_STRING")], dtype="TYPE_STRING", f=b"\2\0\0\0ab\0\0\0\0")
    write(repository, "free", [sample("zero_data: true")], "model_transaction_policy { decoupled: true }", DECOUPLED)
    server = serve()
    log = server.log
    for number in (0, 1):
        assert executions(server, f"counts_0_{number}") == ["1 [[0.0, 0.0, 0.0]]", "1 [[0.0, 0.0, 0.0]]", "1 [[4.0]]"]
        told = [f"running warmup sample '{name}' for iteration {iteration}" for name, iteration in (("a", 1), ("a", 2), ("b", 1))]
        assert re.findall(rf"model 'counts' instance counts_0_{number} is (.*)", log) == told
    assert executions(server, "batch_0_0") == ["3 [[[0.0]], [[0.0]], [[0.0]]]"]
    assert executions(server, "nothing_0_0") == [] and "sample 's' of model 'nothing' has no batch_size" in log
    assert executions(server, "text_0_0") == ["1 [[b'ab', b'']]"]
    assert log.index("is through") < log.index("successfully loaded 'free'")
    for model in ("counts", "batch", "free"):
        stats = statistics(server, model)
        assert (stats["inference_count"], stats["execution_count"], stats["batch_stats"], stats["response_stats"]) == (0, 0, [], {})
        assert not any(part["count"] for part in stats["inference_stats"].values())
    body = {"inputs": [tensor("INPUT0", "FP32", [2], [1, 2])]}
    answer = httpx.post(f"http://{server.address}/v2/models/counts/infer", json=body, timeout=30)
    assert answer.json()["outputs"][0]["data"] == [1, 2] and statistics(server, "counts")["inference_count"] == 1
    server.stop()


SEQUENCE = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            told = {tensor.name(): tensor.as_numpy().tolist() for tensor in request.inputs()}
            print("executes", dict(sorted(told.items())), flush=True)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", request.inputs()[0].as_numpy())]) for request in requests]
"""


def test_sequences_are_warmed_up_with_what_the_sample_says_of_them(serve: Serve, repository: Path) -> None:
    control = 'control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }'
    start = 'inputs { key: "START" value { data_type: TYPE_INT32 dims: 1 zero_data: true } }'
    config = f"max_batch_size: 4 sequence_batching {{ {control} }}"
    write(
        repository, "seq", [sample("zero_data: true", more=f"batch_size: 1 {start}"), sample("zero_data: true", dims=2)], config, SEQUENCE
    )
    server = serve()
    assert executions(server, "seq_0_0") == ["{'INPUT0': [[0.0]], 'START': [[0]]}", "{'INPUT0': [[0.0, 0.0]]}"]
    body = {"inputs": [tensor("INPUT0", "FP32", [1, 1], [5])], "parameters": {"sequence_id": 1, "sequence_start": True}}
    assert httpx.post(f"http://{server.address}/v2/models/seq/infer", json=body, timeout=30).status_code == 200
    assert executions(server, "seq_0_0")[2:] == ["{'INPUT0': [[5.0]], 'START': [[1]]}"]
    server.stop()


def test_a_model_may_ask_another_meanwhile(serve: Serve, repository: Path) -> None:
    write_model(repository, "echo", ECHO, CONFIG.format(dtype="TYPE_FP32", samples="").replace("model_warmup [  ]", ""))
    write(repository, "asks", [sample("input_data_file: 'f'")], f=10)
    server = serve("--model-control-mode=explicit", "--load-model=echo")
    assert httpx.post(f"http://{server.address}/v2/repository/models/asks/load", timeout=30).status_code == 200
    assert "was told [1.0, 1.0, 1.0]" in server.log
    server.stop()


def test_instances_that_are_added_later(serve: Serve, repository: Path) -> None:
    directory = write(repository, "grows", [sample("zero_data: true")])
    server = serve("--model-control-mode=explicit", "--load-model=grows")
    config = (directory / "config.pbtxt").read_text()
    (directory / "config.pbtxt").write_text(config + "instance_group { count: 3 kind: KIND_CPU }")
    load = f"http://{server.address}/v2/repository/models/grows/load"
    assert httpx.post(load, timeout=30).status_code == 200
    assert [executions(server, f"grows_0_{number}") for number in range(3)] == [["1 [[0.0]]"]] * 3
    assert "successfully loaded 'grows'" in server.log and server.log.count("successfully loaded") == 1
    assert statistics(server, "grows")["execution_count"] == 0
    server.stop()


@pytest.mark.parametrize(
    "samples, reason",
    [
        ([sample("input_data_file: 'f'")], r"failed to run warmup sample 's': Failed to process .* ValueError: seven; "),
        ([sample("zero_data: true", "ok"), sample("input_data_file: 'g'")], r"failed to run warmup sample 's': nine; "),
        ([sample("input_data_file: 'd'")], r"Stub process 'm_0_0' is not healthy: it ended with SIGSEGV while loading the model .*"),
        ([sample("input_data_file: 'none'")], r"failed to open text file for read .*/m/warmup/none: No such file or directory"),
        ([sample("input_data_file: 'f'", dims=2)], r"warmup setting expects 8 bytes, but the data provided from f only has 4 bytes"),
        ([sample("zero_data: true", dtype="TYPE_INT8")], r"inference input 'INPUT0' data-type is 'INT8', but model 'm' expects 'FP32'"),
        (['{ name: "s" batch_size: 1 }'], r"expected 1 inputs but got 0 inputs for model 'm'\. Got input\(s\) \[\], but missing .*"),
    ],
)
def test_a_model_that_does_not_warm_up_is_not_there(repository: Path, samples: List[str], reason: str) -> None:
    write(repository, "m", samples, f=7, g=9, d=8)
    assert re.fullmatch(reason, failure(repository))


def test_strings_that_are_too_few(repository: Path) -> None:
    write(repository, "m", [sample("input_data_file: 'f'", dims=2, dtype="TYPE_STRING")], dtype="TYPE_STRING", f=bytes(4))
    assert failure(repository) == "expected 2 string elements for inference input 'INPUT0' for model 'm', got 1"


def test_a_reload_that_does_not_warm_up_changes_nothing(serve: Serve, repository: Path) -> None:
    directory = write(repository, "m", [sample("input_data_file: 'f'")], f=1)
    server = serve("--model-control-mode=explicit", "--load-model=m")
    (directory / "warmup/f").write_bytes(np.array([7], np.float32).tobytes())
    load = httpx.post(f"http://{server.address}/v2/repository/models/m/load", timeout=30)
    assert load.status_code == 400 and "failed to run warmup sample 's': Failed to process" in load.json()["error"]
    body = {"inputs": [tensor("INPUT0", "FP32", [2], [1, 2])]}
    assert httpx.post(f"http://{server.address}/v2/models/m/infer", json=body, timeout=30).status_code == 200
    until(lambda: len(server.stubs()) == 1, what="one live instance")
    server.stop(tracebacks=True)
