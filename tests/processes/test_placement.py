"""Where real instances run, how many threads their libraries use, and which of them serve (spec 5.3)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from model_repository import obey, write_model
from server_process import ServerProcess, run_serve, serving
from stublet.parent.placement.placement import usable_cores
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.usefixtures("hub")

CORES = sorted(os.sched_getaffinity(0))
LAST = CORES[-1]
USABLE = usable_cores(frozenset(CORES))
OPENBLAS_MOST = 64
"""Threads, in the builds that come with numpy."""

POLICIES = (f"--host-policy=last,cpu-cores={LAST}-{LAST}", f"--host-policy=model,cpu-cores={CORES[0]}")

REPORT = """
import json
import os

AT_IMPORT = sorted(os.sched_getaffinity(0))

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Tells of its process.'''

    def initialize(self, args):
        self.kind = args["model_instance_kind"]

    def execute(self, requests):
        square = np.ones((600, 600))
        square @ square
        try:
            from threadpoolctl import threadpool_info
            blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
        except ImportError:
            blas = []
        told = {
            "pid": os.getpid(),
            "kind": self.kind,
            "cores": AT_IMPORT,
            "blas": blas,
            "threads": len(os.listdir("/proc/self/task")),
            "variables": {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")},
        }
        output = np.array([json.dumps(told)], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("REPORT", output)]) for _ in requests]
"""
CONFIG = """
input { name: "INPUT0" data_type: TYPE_FP32 dims: [1] }
output { name: "REPORT" data_type: TYPE_STRING dims: [1] }
"""


def report_model(root: Path, name: str, extra: str = "") -> None:
    write_model(root, name, REPORT, CONFIG + extra)


def group(text: str) -> str:
    return f"instance_group {{ {text} }}\n"


def ask(server: ServerProcess, model: str, *batch: int) -> Dict[str, Any]:
    with triton.InferenceServerClient(server.address) as client:
        given = triton.InferInput("INPUT0", [*batch, 1], "FP32")
        given.set_data_from_numpy(np.zeros((*batch, 1), np.float32))
        told: Dict[str, Any] = json.loads(client.infer(model, [given]).as_numpy("REPORT").item())
        return told


def instances(server: ServerProcess, model: str) -> List[Dict[str, Any]]:
    models = httpx.get(f"http://{server.address}/v2/stublet/instances").json()["models"]
    (found,) = [one for one in models if one["name"] == model]
    return list(found["instances"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("placement")
    environment = root / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (environment / "bin" / "python").chmod(0o755)
    own = f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{environment}" }} }}\n'
    models = root / "models"
    report_model(models, "one")
    report_model(models, "two", group("count: 2"))
    report_model(models, "four", group("count: 4"))
    report_model(models, "four_batched", "max_batch_size: 4 dynamic_batching { }\n" + group("count: 4"))
    report_model(models, "three_threads", 'parameters { key: "library_threads" value { string_value: "3" } }')
    report_model(models, "own", own)
    report_model(models, "own_pinned", own + group('host_policy: "last"'))
    report_model(models, "pinned", group('host_policy: "last"'))
    report_model(models, "by_kind", group("kind: KIND_MODEL"))
    report_model(models, "unknown_policy", group('host_policy: "nobody"'))
    report_model(models, "passive_too", group("passive: true count: 2") + group("count: 1"))
    report_model(models, "passive_only", group("passive: true"))
    with serving(root, models, *POLICIES) as server:
        yield server


@pytest.mark.parametrize(
    "model, cores",
    [("one", CORES), ("pinned", [LAST]), ("own_pinned", [LAST]), ("own", CORES), ("by_kind", [CORES[0]]), ("unknown_policy", CORES)],
)
def test_a_policy_holds_before_the_model_is_imported(server: ServerProcess, model: str, cores: List[int]) -> None:
    assert ask(server, model)["cores"] == cores


@pytest.mark.parametrize(
    "model, threads",
    [("one", USABLE), ("two", max(USABLE // 2, 1)), ("pinned", 1), ("three_threads", 3), ("own_pinned", 1), ("own", USABLE)],
)
def test_numpy_uses_as_many_threads_as_it_has_cores(server: ServerProcess, model: str, threads: int) -> None:
    told = ask(server, model)
    assert told["variables"] == {"OMP_NUM_THREADS": str(threads)}
    assert set(told["blas"]) == {min(threads, OPENBLAS_MOST)}
    assert {one["threads"] for one in instances(server, model)} == {threads}


def test_an_instance_with_one_thread_starts_no_other(server: ServerProcess) -> None:
    pinned, three = ask(server, "pinned"), ask(server, "three_threads")
    assert three["threads"] - pinned["threads"] == 2


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_the_environment_of_the_server_goes_first(variable: str, tmp_path: Path) -> None:
    report_model(tmp_path / "models", "two", group("count: 2"))
    report_model(tmp_path / "models", "three_threads", 'parameters { key: "library_threads" value { string_value: "3" } }')
    server = ServerProcess(tmp_path, tmp_path / "models", env={variable: "5"})
    try:
        server.start()
        told = ask(server, "two")
        assert told["variables"] == {variable: "5"}
        assert {one["threads"] for one in instances(server, "two")} == {None}
        assert set(told["blas"]) == {min(5, len(CORES))}, "OpenBLAS takes no more than there are cores when it is loaded"
        three = ask(server, "three_threads")
        assert three["variables"] == {"OMP_NUM_THREADS": "3"} and set(three["blas"]) == {3}
        server.stop()
    finally:
        server.cleanup()


@pytest.mark.parametrize("model, batch", [("four", ()), ("four_batched", (1,))])
def test_the_instance_that_was_used_last_is_used_next(server: ServerProcess, model: str, batch: Tuple[int, ...]) -> None:
    pids = {ask(server, model, *batch)["pid"] for _ in range(20)}
    assert len(instances(server, model)) == 4 and len(pids) == 1


def test_passive_instances_are_there_and_never_serve(server: ServerProcess) -> None:
    found = instances(server, "passive_too")
    assert [one["passive"] for one in found] == [True, True, False]
    assert all(one["state"] == "READY" and one["pid"] for one in found)
    assert {ask(server, "passive_too")["pid"] for _ in range(10)} == {found[2]["pid"]}


def test_a_model_of_passive_instances_is_not_ready(server: ServerProcess) -> None:
    with triton.InferenceServerClient(server.address) as client:
        assert not client.is_model_ready("passive_only")
    with pytest.raises(
        InferenceServerException, match="model 'passive_only' has passive instances only, which are never scheduled"
    ) as raised:
        ask(server, "passive_only")
    assert raised.value.status() == "503"


@pytest.mark.parametrize(
    "option, complaint",
    [
        (
            f"--host-policy=cpu,cpu-cores={LAST + 1}",
            f"--host-policy: policy 'cpu': there are no cores {LAST + 1} that this process may use",
        ),
        (
            "--host-policy=cpu,colour=red",
            "Unsupported host policy setting 'colour' is specified, supported settings are 'numa-node', 'cpu-cores'",
        ),
        ("--host-policy=cpu,numa-node=4096", "there is no NUMA node 4096"),
        ("--rate-limit=always", "is not one of 'off', 'execution_count'"),
        ("--rate-limit-resource=R", "'R' is not of the form <name>:<count> or <name>:<count>:<device>"),
        ("--rate-limit-resource=R:-1", "'R:-1' is not of the form"),
        ("--rate-limit-resource=R:1:2:3", "'R:1:2:3' is not of the form"),
    ],
)
def test_options_that_cannot_be(option: str, complaint: str, tmp_path: Path) -> None:
    obey(tmp_path)
    ended = run_serve(str(tmp_path), "--http-port=0", option)
    assert ended.returncode == 2 and complaint in ended.stderr
