"""What a server makes of its ensembles beside answers: traces, metrics, the response cache, the poller, and an orderly end."""

from __future__ import annotations

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List

import httpx
from ensembles import PLUS_ONE, chain, ensemble, plus_one
from http_wire import tensor
from server_process import ServerProcess, serving, until

GATE = 'parameters {{ key: "gate" value: {{ string_value: "{}" }} }}'


def ask(server: ServerProcess, model: str, value: float) -> List[float]:
    body = {"inputs": [tensor("X", "FP32", [1], [value])]}
    answer = httpx.post(f"http://{server.address}/v2/models/{model}/infer", json=body, timeout=30).json()
    return list(answer["outputs"][0]["data"]) if "outputs" in answer else [answer["error"]]


def stats(server: ServerProcess, model: str) -> Dict[str, Any]:
    (found,) = httpx.get(f"http://{server.address}/v2/models/{model}/stats").json()["model_stats"]
    return dict(found)


def test_a_trace_has_one_of_each_step_as_its_child(tmp_path: Path) -> None:
    root, file = tmp_path / "models", tmp_path / "traces.json"
    plus_one(root, "one")
    plus_one(root, "two")
    ensemble(root, "chain", chain("one", "two"))
    ensemble(root, "nested", [("chain", {"X": "X"}, {"Y": "Y"})])
    options = ("rate=1", "level=TIMESTAMPS")
    with serving(tmp_path, root, *(f"--trace-config={one}" for one in options), f"--trace-config=triton,file={file}") as server:
        assert ask(server, "nested", 1) == [3]
    traces: Dict[int, Dict[str, Any]] = {}
    for entry in json.loads(file.read_text()):
        traces.setdefault(entry["id"], {}).update(entry)
    parents = {one["model_name"]: traces[one["parent_id"]]["model_name"] if "parent_id" in one else "" for one in traces.values()}
    assert parents == {"nested": "", "chain": "nested", "one": "chain", "two": "chain"}


def test_metrics(tmp_path: Path) -> None:
    root = tmp_path / "models"
    plus_one(root, "one")
    ensemble(root, "chain", chain("one", "one"))
    with serving(tmp_path, root, tracebacks=True) as server:
        assert ask(server, "chain", 1) == [3] and "bad number" in str(ask(server, "chain", -11)[0])
        text = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
    assert re.search(r'^nv_inference_request_success\{model="chain",version="1"\} 1(\.0)?$', text, re.M)
    assert re.search(r'^nv_inference_request_failure\{model="chain",reason="BACKEND",version="1"\} 1(\.0)?$', text, re.M)


def test_the_response_cache(tmp_path: Path) -> None:
    root = tmp_path / "models"
    plus_one(root, "one")
    plus_one(root, "kept", "response_cache { enable: true }")
    ensemble(root, "whole", chain("one", "one"), extra="response_cache { enable: true }")
    ensemble(root, "step", chain("kept", "one"))
    options = ("--cache-config=local,size=1048576", "--model-control-mode=explicit", "--load-model=*")
    with serving(tmp_path, root, *options) as server:
        assert [ask(server, "whole", 1) for _ in range(3)] == [[3]] * 3
        found = stats(server, "whole")
        assert (found["execution_count"], found["inference_stats"]["success"]["count"]) == (1, 3)
        assert found["inference_stats"]["cache_hit"]["count"] == 2 and stats(server, "one")["execution_count"] == 2
        assert [ask(server, "step", 1) for _ in range(3)] == [[3]] * 3
        assert stats(server, "kept")["execution_count"] == 1 and stats(server, "step")["execution_count"] == 3
        (root / "one" / "1" / "model.py").write_text(PLUS_ONE.replace("x + 1", "x + 100"))
        assert httpx.post(f"http://{server.address}/v2/repository/models/one/load", json={}, timeout=30).status_code == 200
        assert ask(server, "whole", 1) == [201]


def test_the_poller(tmp_path: Path) -> None:
    root = tmp_path / "models"
    plus_one(root, "z")
    ensemble(root, "a", chain("z", "z"))
    with serving(tmp_path, root, "--model-control-mode=poll", "--repository-poll-secs=1") as server:
        assert ask(server, "a", 1) == [3]
        ensemble(tmp_path, "b", chain("y", "a_later"))
        os.rename(tmp_path / "b", root / "b")
        until(lambda: "not available or ambiguous: a_later, y" in server.log, what="the failure to load")
        for name in ("a_later", "y"):
            plus_one(tmp_path, name)
            os.rename(tmp_path / name, root / name)
        until(lambda: httpx.get(f"http://{server.address}/v2/models/b/ready").status_code == 200, what="the ensemble")
        assert ask(server, "b", 1) == [3]
        (root / "z" / "1" / "model.py").write_text(PLUS_ONE.replace("x + 1", "x + 100"))
        until(lambda: ask(server, "a", 1) == [201], what="the changed model")


def test_what_is_under_way_is_finished(tmp_path: Path) -> None:
    root, gate = tmp_path / "models", tmp_path / "gate"
    plus_one(root, "one", GATE.format(gate))
    plus_one(root, "two")
    ensemble(root, "chain", chain("one", "two"))
    ensemble(root, "nested", [("chain", {"X": "X"}, {"Y": "Y"})])
    gate.touch()
    with ThreadPoolExecutor(1) as pool, serving(tmp_path, root) as server:
        answer = pool.submit(ask, server, "nested", 1)
        until(Path(f"{gate}.begun").exists, what="the first step")
        server.signal(signal.SIGTERM)
        until(lambda: "SIGTERM" in server.log, what="the signal")
        gate.unlink()
        assert answer.result(30) == [3]
