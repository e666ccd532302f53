"""``auto_complete_config`` and models without ``config.pbtxt``, in a server: spec 2.2 and 5.1."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

import numpy as np
import pytest
from server_process import alive, until
from stublet.parent import NotFound, Server
from stublet.parent.instance import LoadFailed
from stublet.parent.options import BackendOptions, ServerOptions

ADD_TENSORS = """
        config.add_input({"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [4]})
        config.add_output({"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [4]})
"""

HEAD = """
import ctypes, json, os, signal, sys, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        {body}
        return config

    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        {initialize}

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", r.inputs()[0].as_numpy())]) for r in requests]
"""

FOUR = np.arange(4, dtype=np.float32)


def write(root: Path, body: str, config: str = "", initialize: str = "pass", name: str = "m", versions: str = "1") -> Path:
    """A model whose ``auto_complete_config`` has that body; without ``config.pbtxt`` unless one is given."""
    directory = root / name
    for version in versions:
        (directory / version).mkdir(parents=True)
        (directory / version / "model.py").write_text(HEAD.format(body=body.strip(), initialize=initialize))
    if config:
        (directory / "config.pbtxt").write_text(config)
    return directory


@contextmanager
def serving(root: Path, **options: Any) -> Iterator[Server]:
    with Server(root, options=ServerOptions(**options)) as server:
        yield server


def reason(root: Path, **options: Any) -> str:
    """Why the model ``m`` does not load."""
    with pytest.raises(LoadFailed) as caught, serving(root, **options):
        pass
    text = str(caught.value)
    assert text.startswith("failed to load 'm': ")
    return text.split(": ", 1)[1]


def test_a_model_without_config(tmp_path: Path) -> None:
    write(tmp_path, ADD_TENSORS)
    with serving(tmp_path) as server:
        np.testing.assert_array_equal(server.infer("m", {"INPUT0": FOUR})["OUTPUT0"], FOUR)
        config = server.core.find("m").config_dict
        assert (config["name"], config["backend"], config["max_batch_size"]) == ("m", "python", 0)
        assert [group["name"] for group in config["instance_group"]] == ["m_0"]


def test_a_model_that_its_name_says_to_be_pythons(tmp_path: Path) -> None:
    write(tmp_path, ADD_TENSORS, name="m.python")
    with serving(tmp_path) as server:
        assert server.core.find("m.python").config.backend == "python"


def test_a_model_without_config_that_completes_nothing_serves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "pass")
    with serving(tmp_path) as server:
        assert server.ready()
        assert (server.core.find("m").inputs, server.core.find("m").outputs) == ([], [])


def test_everything_that_can_be_completed(tmp_path: Path) -> None:
    body = ADD_TENSORS + (
        "        config.set_max_batch_size(4)\n        config.set_dynamic_batching()\n"
        "        config.set_model_transaction_policy({'decoupled': False})\n        config.as_dict()['instance_group'] = []"
    )
    write(tmp_path, body, initialize="assert self.config['max_batch_size'] == 4 and self.config['dynamic_batching']")
    with serving(tmp_path) as server:
        model = server.core.find("m")
        assert model.max_batch_size == 4
        assert model.inputs[0].shape == (-1, 4)
        assert model.config_dict["dynamic_batching"]["preferred_batch_size"] == [4]
        assert model.config_dict["model_transaction_policy"] == {"decoupled": False}
        assert len(model.instances) == 1
        np.testing.assert_array_equal(server.infer("m", {"INPUT0": FOUR[None]})["OUTPUT0"], FOUR[None])


def test_a_config_is_completed_and_not_contradicted(tmp_path: Path) -> None:
    write(tmp_path, ADD_TENSORS, 'max_batch_size: 2 input { name: "INPUT0" data_type: TYPE_FP32 } instance_group { count: 2 }')
    with serving(tmp_path) as server:
        model = server.core.find("m")
        assert (model.max_batch_size, model.inputs[0].shape, len(model.instances)) == (2, (-1, 4), 2)
    write(tmp_path / "other", ADD_TENSORS, 'input { name: "INPUT0" data_type: TYPE_INT32 dims: [4] }')
    assert reason(tmp_path / "other").startswith(
        "version 1 is at UNAVAILABLE state: ValueError: unable to load model 'm', configuration expects datatype TYPE_INT32 for input 'INPUT0',"
        " model provides TYPE_FP32"
    )


def test_it_runs_once_for_each_version_before_any_instance_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    note = f"open({str(log)!r}, 'a').write(%s)"
    config = "version_policy { all { } } instance_group { count: 2 }"
    write(tmp_path / "models", note % "f'complete {__name__}\\n'", config, note % "f'initialize {__name__}\\n'", versions="12")
    with serving(tmp_path / "models"):
        lines = log.read_text().splitlines()
        assert sorted(lines) == ["complete 1.model", "complete 2.model"] + ["initialize 1.model"] * 2 + ["initialize 2.model"] * 2
        for version in "12":
            assert lines.index(f"complete {version}.model") < lines.index(f"initialize {version}.model")


def test_its_process_is_its_own_and_ends(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    write(
        tmp_path / "models",
        f"open({str(pids)!r}, 'w').write(str(os.getpid())); sys.made_here = 1",
        initialize="assert not hasattr(sys, 'made_here')",
    )
    with serving(tmp_path / "models") as server:
        (pid,) = map(int, pids.read_text().split())
        assert not alive(pid)
        assert pid not in {instance.pid for instance in server.core.find("m").instances}


def test_it_knows_where_it_is(tmp_path: Path) -> None:
    directory = write(tmp_path, "assert pb_utils.get_model_dir() == os.path.dirname(__file__), pb_utils.get_model_dir()")
    with serving(tmp_path) as server:
        assert server.core.find("m").directory == str(directory)


@pytest.mark.parametrize(
    "call",
    ["pb_utils.load_model('m')", "pb_utils.unload_model('m')", "pb_utils.is_model_ready('m')"],
)
def test_it_cannot_control_models(tmp_path: Path, call: str) -> None:
    write(tmp_path, call)
    assert "is not available in auto_complete_config" in reason(tmp_path, model_control_mode="explicit", load_models=["m"])


@pytest.mark.parametrize("options", [{"auto_complete_config": False}])
def test_it_can_be_disabled(tmp_path: Path, options: Dict[str, Any]) -> None:
    write(tmp_path, "raise ValueError('run')", 'input { name: "INPUT0" data_type: TYPE_FP32 dims: [4] }')
    with serving(tmp_path, **options) as server:
        assert server.ready()


def test_an_incomplete_config_needs_it(tmp_path: Path) -> None:
    write(tmp_path, ADD_TENSORS, 'input { name: "INPUT0" }')
    assert (
        reason(tmp_path, auto_complete_config=False)
        == "version 1 is at UNAVAILABLE state: model input 'INPUT0' must specify 'data_type' for m"
    )
    with serving(tmp_path) as server:
        assert server.ready()


@pytest.mark.parametrize(
    "body, text",
    [
        ("raise KeyError('gone')", "KeyError: 'gone'"),
        (
            "config.add_input({'name': 'A'})",
            "ValueError: input 'A' in auto-complete-config function for model 'm' is missing 'data_type' property.",
        ),
        ("return None", "auto_complete_config function in model 'm' must return a valid pb.ModelConfig object."),
        (
            "config.add_input({'name': 'A', 'data_type': 'TYPE_NONE', 'dims': [1]})",
            "auto_complete_config of model 'm' returned what is not a conf",
        ),
        ("config.as_dict()['max_batch_size'] = '4'", "auto_complete_config of model 'm' set max_batch_size to '4'"),
        ("config.as_dict()['max_batch_size'] = -4", "'max_batch_size' must be non-negative value for m"),
        ("config.add_input({'name': 'A', 'data_type': 'TYPE_FP32', 'dims': [0]})", "model input 'A' dimension must be integer >= 1, or -1"),
        ("config.as_dict()['input'] = object()", "TypeError: Object of type object is not JSON serializable"),
        ("sys.exit(4)", "the model called sys.exit(4) while it was loaded"),
        (
            "os._exit(5)",
            "Stub process 'm' is not healthy: it ended with exit code 5 while loading the model to complete its configuration (pid",
        ),
        ("os._exit(0)", "Stub process 'm' is not healthy: it ended with exit code 0 while"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "Stub process 'm' is not healthy: it ended with SIGKILL while"),
        ("ctypes.string_at(0)", "Stub process 'm' is not healthy: it ended with SIGSEGV while"),
    ],
)
def test_every_way_to_fail_is_told(tmp_path: Path, body: str, text: str) -> None:
    write(tmp_path, body)
    assert reason(tmp_path).startswith(f"version 1 is at UNAVAILABLE state: {text}")


def test_its_last_words_are_told(tmp_path: Path) -> None:
    write(tmp_path, "print('out of luck', file=sys.stderr, flush=True); os._exit(1)")
    assert reason(tmp_path).endswith("; last lines of its stderr:\nout of luck")


@pytest.mark.parametrize(
    "body", ["time.sleep(600)", "ctypes.PyDLL(None).sleep(600)", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(600)"]
)
def test_one_that_does_not_return_is_ended(tmp_path: Path, body: str) -> None:
    write(tmp_path, body)
    started = time.monotonic()
    told = reason(tmp_path, backend=BackendOptions.parse([("auto-complete-timeout-seconds", "1")]))
    assert (
        told
        == "version 1 is at UNAVAILABLE state: model 'm' has not been imported and its auto_complete_config has not returned within 1 seconds"
    )
    assert 0.9 < time.monotonic() - started < 10


def test_a_process_that_does_not_end_is_ended(tmp_path: Path) -> None:
    body = "import threading; threading.Thread(target=time.sleep, args=(600,)).start()"
    write(tmp_path, body)
    started = time.monotonic()
    with serving(tmp_path) as server:
        assert server.ready()
        assert time.monotonic() - started < 10


def test_one_version_that_cannot_be_completed(tmp_path: Path) -> None:
    directory = write(tmp_path, "pass", "version_policy { all { } }", versions="12")
    (directory / "2" / "model.py").write_text(HEAD.format(body="raise ValueError('odd')", initialize="pass"))
    with Server(tmp_path, exit_on_error=False) as server:
        assert server.core.find("m").version == 1
        assert server.core.failures["m"].startswith("version 2 is at UNAVAILABLE state: ValueError: odd")
        with pytest.raises(NotFound):
            server.core.find("m", 2)
        assert sorted((row.version, row.state) for row in server.status()) == [("", "UNAVAILABLE"), ("1", "READY")]


def test_the_end_of_the_server_ends_it(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    write(tmp_path / "models", f"open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    with serving(tmp_path / "models", model_control_mode="explicit") as server:
        assert server.loop is not None
        loading = asyncio.run_coroutine_threadsafe(server.core.load_model("m"), server.loop)
        until(begun.exists)
        pid = int(until(begun.read_text))
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert not alive(pid)
    with pytest.raises(Exception, match="the server is ending"):
        loading.result(1)


def test_what_it_logs_and_prints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "pb_utils.Logger.log_info('logged'); print('printed')")
    with caplog.at_level("INFO"), serving(tmp_path):
        found = {record.getMessage(): (record.about, record.where) for record in caplog.records if hasattr(record, "where")}
    assert found["logged"][1].startswith("model.py:") and found["printed"][1] == "stdout"
    assert found["logged"][0] == found["printed"][0] == {"model": "m", "version": "1"}


def test_the_json_that_an_instance_is_given(tmp_path: Path) -> None:
    write(tmp_path, ADD_TENSORS, initialize="assert self.config['input'][0]['dims'] == [4], self.config")
    with serving(tmp_path) as server:
        assert json.loads(server.core.find("m").config_json)["output"][0]["dims"] == [4]
