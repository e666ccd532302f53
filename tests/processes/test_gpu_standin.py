"""Tensors on a GPU between models, over a stand-in for the driver: real processes, the real protocol, and memory that they share.

What a real GPU adds, its timing, its driver's rules and libraries that compute on it, is not in these tests.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import pytest
from scripted import Scripted, quiet, scripted
from server_process import until
from standin_models import gpu, told
from stublet.parent import Server, ServerError, devices, instance_report
from stublet.parent.options import BackendOptions, ServerOptions

TESTS = Path(__file__).parents[1]
SEGMENT, LIMIT = 2 << 20, 16 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("gpu")
    gpu(root, "makes")
    gpu(root, "takes")
    gpu(root, "streams", decoupled=True)
    gpu(root, "forced", takes=False)
    scripted(root, "plain", FORCE_CPU_ONLY_INPUT_TENSORS="no")
    scripted(root, "bare")
    for name in ENSEMBLES:
        ensemble(root, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "CHECK", (sys.executable, str(TESTS / "standin_check.py")))
        with Server(root, options=options()) as server:
            # The check, and the threads of all that follows.
            say(server, "makes", "result = said(call('takes', 'result = 1', on_gpu([1.0])).exec())")
            yield server


def ensemble(root: Path, name: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(ENSEMBLE % ENSEMBLES[name])


def options() -> ServerOptions:
    return ServerOptions(
        backend=BackendOptions(shm_default_byte_size=32 << 20, gpu_ipc_segment_byte_size=SEGMENT, gpu_ipc_limit_byte_size=LIMIT)
    )


def say(server: Server, name: str, code: str) -> str:
    model = Scripted(server, name)
    if name == "streams":
        (found,) = model.items(told(code))
        return found
    return model.say(told(code))


Say = Callable[[str, str], str]


@pytest.fixture
def ask(server: Server) -> Iterator[Say]:
    with quiet(server):
        yield lambda name, code: say(server, name, code)
    for name in ("makes", "takes", "forced"):
        until(lambda name=name: say(server, name, "gc.collect(); result = staged()") in ("0", "None"))  # type: ignore[misc]


DESCRIBE = "globals().update(model.gpu); result = (data.is_cpu(), (data.as_numpy() if data.is_cpu() else values(data)).tolist())"


def test_a_tensor_goes_to_another_model_on_the_gpu(ask: Say) -> None:
    assert ask("makes", f"result = said(call('takes', {DESCRIBE!r}, on_gpu([1, 2, 3])).exec())") == "(False, [1.0, 2.0, 3.0])"


def test_nothing_of_it_is_imported_without_a_tensor_on_a_gpu(server: Server, ask: Say) -> None:
    ask("plain", "result = said(call('bare', 'result = data.cpu().is_cpu()', [1.0, 2.0]).exec())")
    assert ask("bare", "result = [name for name in sys.modules if 'cuda' in name]") == "[]"


def test_a_segment_is_exported_once_and_opened_once(ask: Say) -> None:
    exports, opens = "result = calls('cuIpcGetMemHandle')", "result = calls('cuIpcOpenMemHandle_v2')"
    ask("makes", f"call('takes', {DESCRIBE!r}, on_gpu([1, 2])).exec()")
    before = ask("makes", exports), ask("takes", opens)
    assert ask("makes", f"result = [said(call('takes', {DESCRIBE!r}, on_gpu([1, 2])).exec()) for _ in range(5)]") == str(
        ["(False, [1.0, 2.0])"] * 5
    )
    assert (ask("makes", exports), ask("takes", opens)) == before


def test_what_instances_share_is_told(server: Server, ask: Say) -> None:
    ask("makes", f"call('takes', {DESCRIBE!r}, on_gpu([1, 2])).exec()")
    report = {model["name"]: model["instances"][0] for model in instance_report.collect(server.core)["models"] if model["instances"]}
    exported = report["makes"]["gpu_exported_bytes"]
    assert exported >= SEGMENT and exported % SEGMENT == 0
    others = sum(instance["gpu_exported_bytes"] for name, instance in report.items() if name != "makes")
    assert report["makes"]["gpu_imported_bytes"] <= others, "what other tests had it import"
    assert SEGMENT <= report["takes"]["gpu_imported_bytes"] <= exported
    assert report["bare"]["gpu_exported_bytes"] == report["bare"]["gpu_imported_bytes"] == 0


def test_no_device_is_waited_for_as_a_whole(ask: Say) -> None:
    count = "result = calls('cuCtxSynchronize')"
    before = ask("makes", count), ask("takes", count)
    assert ask("makes", f"result = said(call('takes', {DESCRIBE!r}, on_gpu([1, 2])).exec())") == "(False, [1.0, 2.0])"
    assert (ask("makes", count), ask("takes", count)) == before


def test_an_answer_stays_on_the_gpu(ask: Say) -> None:
    inner = "globals().update(model.gpu); returned = [pb_utils.InferenceResponse([on_gpu([4, 5])])]"
    code = f"answer = call('takes', {inner!r}).exec(); (t,) = answer.output_tensors(); result = (t.is_cpu(), values(t).tolist())"
    assert ask("makes", code) == "(False, [4.0, 5.0])"


@pytest.mark.parametrize("wanted, where", [("CPU", True), ("GPU", False)])
@pytest.mark.parametrize("made", ["on_gpu([4, 5])", "pb_utils.Tensor('DATA', np.array([4, 5], np.float32))"])
def test_a_preferred_memory(ask: Say, wanted: str, where: bool, made: str) -> None:
    inner = f"globals().update(model.gpu); returned = [pb_utils.InferenceResponse([{made}])]"
    code = f"""
preferred = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_{wanted}, 0)
(t,) = call('takes', {inner!r}, preferred_memory=preferred).exec().output_tensors()
result = (t.is_cpu(), t.cpu().as_numpy().tolist())"""
    assert ask("makes", code) == f"({where}, [4.0, 5.0])"


def test_a_client_gets_it_from_host_memory(server: Server, ask: Say) -> None:
    for size in (3, 1 << 16):
        found = Scripted(server, "makes").run(told(f"returned = [pb_utils.InferenceResponse([on_gpu(np.arange({size}))])]"))
        np.testing.assert_array_equal(found["DATA"], np.arange(size, dtype=np.float32))


def test_a_model_that_takes_host_memory_only_is_given_it(ask: Say) -> None:
    describe = "result = (data.is_cpu(), data.as_numpy().tolist())"
    for _ in range(2):
        assert ask("makes", f"result = said(call('forced', {describe!r}, on_gpu([1, 2, 3])).exec())") == "(True, [1.0, 2.0, 3.0])"
    # From the second call on it is known.
    before = ask("makes", "result = calls('cuMemcpyDtoDAsync_v2')")
    ask("makes", f"result = said(call('forced', {describe!r}, on_gpu([1, 2, 3])).exec())")
    assert ask("makes", "result = calls('cuMemcpyDtoDAsync_v2')") == before


def test_calls_of_coroutines_and_threads(ask: Say) -> None:
    code = f"""
async def several():
    return await asyncio.gather(*[call('takes', {DESCRIBE!r}, on_gpu([i])).async_exec() for i in range(4)])
answers = asyncio.run(several())
with ThreadPoolExecutor(4) as pool:
    answers += pool.map(lambda i: call('takes', {DESCRIBE!r}, on_gpu([i])).exec(), range(4))
    answers += pool.map(lambda i: call('forced', {DESCRIBE!r}, on_gpu([i])).exec(), range(4))
result = [said(answer) for answer in answers]"""
    found = [f"({where}, [{i}.0])" for where in (False, False, True) for i in range(4)]
    assert ask("makes", code) == str(found)


def test_a_decoupled_model_streams_from_the_gpu(ask: Say) -> None:
    inner = (
        "globals().update(model.gpu)\nfor i in range(3): sender.send(pb_utils.InferenceResponse([on_gpu([i])]))\nsender.send(flags=FINAL)"
    )
    code = f"""
found = [values(r.output_tensors()[0]).tolist() for r in call('streams', {inner!r}).exec(decoupled=True) if r.output_tensors()]
result = found"""
    assert ask("makes", code) == "[[0.0], [1.0], [2.0]]"


def test_nothing_and_much(ask: Say) -> None:
    code = f"result = [said(call('takes', {DESCRIBE!r}, on_gpu(v)).exec()) for v in ([], )]"
    assert ask("makes", code) == "['(False, [])']"
    much = "globals().update(model.gpu); v = values(data); result = (data.is_cpu(), v.size, float(v.sum()))"
    code = f"result = said(call('takes', {much!r}, on_gpu(np.ones(1 << 20))).exec())"
    assert ask("makes", code) == f"(False, {1 << 20}, {float(1 << 20)})"


def test_what_finds_no_room_goes_through_host_memory(ask: Say) -> None:
    ask("makes", "host.caller._memory._exports._by_device[0].warned = False")
    describe = "globals().update(model.gpu); result = (data.is_cpu(), float(data.cpu().as_numpy().sum()))"
    code = f"result = said(call('takes', {describe!r}, on_gpu(np.ones({LIMIT // 4 + 1}))).exec())"
    assert ask("makes", code) == f"(True, {float(LIMIT // 4 + 1)})"
    assert ask("makes", f"result = said(call('takes', {DESCRIBE!r}, on_gpu([1])).exec())") == "(False, [1.0])", "as before"


def test_a_full_device_is_not_full_for_ever(server: Server, ask: Say, caplog: pytest.LogCaptureFixture) -> None:
    describe = "globals().update(model.gpu); result = data.is_cpu()"
    big = (SEGMENT + 4096) // 4  # for which a segment is to be made
    code = f"""
exported = host.caller._memory._exports._by_device[0]
exported.warned = False
while exported.arena.take({big * 4}): pass
tensor, library.limit = on_gpu(np.ones({big})), 0
first = said(call('takes', {describe!r}, tensor).exec())
second = said(call('takes', {describe!r}, tensor).exec())
library.limit = 1 << 30
for place in [place for place in exported.arena._taken]: exported.arena.give(place)
result = first, second, said(call('takes', {describe!r}, tensor).exec())"""
    with caplog.at_level(logging.WARNING):
        assert ask("makes", code) == "('True', 'True', 'False')"
    assert (
        len([r for r in caplog.records if "goes through host memory" in r.getMessage() and "CUDA_ERROR_OUT_OF_MEMORY" in r.getMessage()])
        == 1
    )


def test_what_a_model_keeps_is_not_overwritten(ask: Say) -> None:
    assert ask("makes", "result = said(call('takes', 'model.kept = data', on_gpu([7, 8])).exec())") == ""
    for _ in range(3):
        ask("makes", f"result = said(call('takes', {DESCRIBE!r}, on_gpu([1, 2])).exec())")
    assert ask("makes", "result = staged() > 0") == "True"
    assert ask("takes", "result = values(model.kept).tolist(); model.kept = None") == "[7.0, 8.0]"


def test_memory_comes_back_when_the_stream_that_reads_it_has_ended(ask: Say) -> None:
    hold = """
globals().update(model.gpu)
from stublet.stub.cuda import devices
with devices.devices().driver.on(0):
    model.reader = devices.devices().driver.create_stream()
library.streams[model.reader].free_to_run.clear()
model.capsule = data.__dlpack__(stream=model.reader)
"""
    ask("makes", f"result = said(call('takes', {hold!r}, on_gpu([1, 2])).exec())")
    ask("takes", "model.capsule = None; gc.collect()")
    for _ in range(3):
        assert ask("makes", "gc.collect(); result = staged() > 0") == "True"
    ask("takes", "library.streams[model.reader].free_to_run.set()")
    until(lambda: ask("makes", "result = staged()") == "0")


def test_a_stream_that_was_destroyed_does_not_keep_it(ask: Say) -> None:
    hold = """
globals().update(model.gpu)
from stublet.stub.cuda import devices
with devices.devices().driver.on(0):
    stream = devices.devices().driver.create_stream()
    held = data.__dlpack__(stream=stream)
    devices.devices().driver.destroy_stream(stream)
"""
    ask("makes", f"result = said(call('takes', {hold!r}, on_gpu([1, 2])).exec())")
    until(lambda: ask("makes", "result = staged()") == "0")


def test_a_tensor_that_came_can_be_sent_on(ask: Say) -> None:
    inner = f"result = said(call('streams', {'globals().update(model.gpu); sender.send(response(values(data).tolist()), FINAL)'!r}, data).exec(decoupled=True).__next__())"
    assert ask("makes", f"result = said(call('takes', {inner!r}, on_gpu([1, 2, 3])).exec())") == "[1.0, 2.0, 3.0]"
    back = "returned = [pb_utils.InferenceResponse([data])]"
    code = f"(t,) = call('takes', {back!r}, on_gpu([1, 2])).exec().output_tensors(); result = (t.is_cpu(), values(t).tolist())"
    assert ask("makes", code) == "(False, [1.0, 2.0])"


def test_a_process_without_a_driver_says_so(ask: Say) -> None:
    code = """
answer = call('plain', 'result = (data.is_cpu(), data.shape(), raised(data.as_numpy), raised(data.to_dlpack))', on_gpu([1, 2])).exec()
result = said(answer)"""
    found = ask("makes", code)
    assert found.startswith("(False, [2], 'TritonModelException: Tensor is stored in GPU and cannot be converted to NumPy.")
    assert "this process cannot use one: there is no CUDA driver" in found


def test_an_error_of_the_gpu_is_an_error_of_the_request(server: Server, ask: Say) -> None:
    code = """
tensor = on_gpu([1, 2])
library.fails['cuMemcpyDtoDAsync_v2'] = 1
result = said(call('takes', 'result = 1', tensor).exec())
library.fails.clear()"""
    assert ask("makes", code) == "error: GPU 0: cuMemcpyDtoDAsync_v2: CUDA_ERROR_INVALID_VALUE (1)"
    code = "library.fails['cuMemcpyDtoHAsync_v2'] = 1; returned = [pb_utils.InferenceResponse([on_gpu([1])])]"
    assert "CUDA_ERROR_INVALID_VALUE" in Scripted(server, "makes").fail(told(code))
    ask("makes", "library.fails.clear()")


ENSEMBLE = """
platform: "ensemble"
input [ { name: "MAKE" data_type: TYPE_STRING dims: [1] }, { name: "TAKE" data_type: TYPE_STRING dims: [1] } ]
output [ { name: "SAID" data_type: TYPE_STRING dims: [1] } %(output)s ]
ensemble_scheduling { step [
  { model_name: "makes" model_version: -1 input_map { key: "CODE" value: "MAKE" } output_map { key: "DATA" value: "between" } },
  { model_name: "%(taker)s" model_version: -1 input_map { key: "CODE" value: "TAKE" } input_map { key: "DATA" value: "between" }
    output_map { key: "RESULT" value: "SAID" } %(map)s }
] }
"""
ENSEMBLES = {
    "on_gpu": {"taker": "takes", "output": "", "map": ""},
    "off_gpu": {"taker": "forced", "output": "", "map": ""},
    "answers": {
        "taker": "takes",
        "output": ', { name: "OUT" data_type: TYPE_FP32 dims: [-1] }',
        "map": 'output_map { key: "DATA" value: "OUT" }',
    },
    "shows": {"taker": "takes", "output": ', { name: "between" data_type: TYPE_FP32 dims: [-1] }', "map": ""},
}


@pytest.mark.parametrize("name, where", [("on_gpu", False), ("off_gpu", True), ("shows", True)])
def test_steps_of_an_ensemble(server: Server, ask: Say, name: str, where: bool) -> None:
    make = told("returned = [pb_utils.InferenceResponse([on_gpu([1, 2])])]")
    take = "result = (data.is_cpu(), data.cpu().as_numpy().tolist())"
    found = server.infer(name, {"MAKE": np.array([make], object), "TAKE": np.array([take], object)}, timeout=30)
    assert found["SAID"][0].decode() == f"({where}, [1.0, 2.0])"
    assert "between" not in found or found["between"].tolist() == [1, 2]


def test_the_answer_of_an_ensemble_is_in_host_memory(server: Server, ask: Say) -> None:
    make = told("returned = [pb_utils.InferenceResponse([on_gpu([1, 2])])]")
    take = "result = data.is_cpu(); returned = [pb_utils.InferenceResponse([pb_utils.Tensor('RESULT', np.array([str(result)], object)), data])]"
    found = server.infer("answers", {"MAKE": np.array([make], object), "TAKE": np.array([take], object)}, timeout=30)
    assert found["SAID"][0] == b"False" and found["OUT"].tolist() == [1, 2]
    code = f"""
inputs = [pb_utils.Tensor("MAKE", np.array([{make!r}], object)), pb_utils.Tensor("TAKE", np.array([{take!r}], object))]
request = pb_utils.InferenceRequest(model_name="answers", inputs=inputs, requested_output_names=[])
result = [tensor.is_cpu() for tensor in request.exec().output_tensors()]"""
    assert ask("streams", f"{code}\nsender.send(response(result), FINAL)") == "[True, True]"


# Deaths, and what is refused


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Servers of a test's own, with the models "makes" and "takes", and the ensemble "on_gpu" of both."""
    started = []

    def start(check: Path = TESTS / "standin_check.py", **more: str) -> Server:
        monkeypatch.setattr(devices, "CHECK", (sys.executable, str(check)))
        for name in ("makes", "takes"):
            gpu(tmp_path, name)
        ensemble(tmp_path, "on_gpu")
        server = Server(tmp_path, options=options())
        started.append(server)
        return server.__enter__()

    yield start
    for server in started:
        server.__exit__(None, None, None)


def test_device_memory_of_an_instance_that_died_is_let_go(fresh: Callable[..., Server]) -> None:
    server = fresh()
    assert say(server, "makes", "result = said(call('takes', 'model.kept = data', on_gpu([7, 8])).exec())") == ""
    assert say(server, "takes", "result = values(model.kept).tolist()") == "[7.0, 8.0]"
    (pid,) = Scripted(server, "makes").pids
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in Scripted(server, "makes").pids)
    assert say(server, "takes", "result = (values(model.kept).tolist(), len(library.opened))") == "([7.0, 8.0], 1)"
    say(server, "takes", "model.kept = None; gc.collect()")
    until(lambda: say(server, "takes", "result = len(library.opened)") == "0")


def test_what_was_not_opened_yet_is_an_error_after_its_exporter_died(fresh: Callable[..., Server]) -> None:
    server = fresh()
    assert say(server, "makes", "result = said(call('takes', 'model.kept = data', on_gpu([7, 8])).exec())") == ""
    (pid,) = Scripted(server, "makes").pids
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in Scripted(server, "makes").pids)
    found = say(server, "takes", "result = (model.kept.shape(), raised(model.kept.cpu))")
    assert (
        found.startswith("([2], ") and "cannot be opened in this process: cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_HANDLE (400)" in found
    )
    say(server, "takes", "model.kept = None")
    until(lambda: bool(Scripted(server, "makes").pids))
    assert say(server, "makes", f"result = said(call('takes', {DESCRIBE!r}, on_gpu([1])).exec())") == "(False, [1.0])", "as with any other"


def test_an_importer_that_dies_gives_everything_back(fresh: Callable[..., Server]) -> None:
    server = fresh()
    read = "globals().update(model.gpu); model.kept = data; result = values(data).tolist()"
    assert say(server, "makes", f"result = said(call('takes', {read!r}, on_gpu([7, 8])).exec())") == "[7.0, 8.0]"
    assert say(server, "makes", "result = staged() > 0") == "True"
    (pid,) = Scripted(server, "takes").pids
    os.kill(pid, signal.SIGKILL)
    until(lambda: say(server, "makes", "result = staged()") == "0")


def test_where_memory_cannot_be_shared_it_goes_through_the_host(
    fresh: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    check = tmp_path_factory.mktemp("check") / "check.py"
    check.write_text("print('CudaError: cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_CONTEXT (201)')")
    server = fresh(check)
    describe = "result = (data.is_cpu(), data.cpu().as_numpy().tolist())"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert say(server, "makes", f"result = said(call('takes', {describe!r}, on_gpu([1, 2])).exec())") == "(True, [1.0, 2.0])"
    told = [record.getMessage() for record in caplog.records if "go through host memory" in record.getMessage()]
    assert told == [
        "tensors on GPU-7374616e-6469-6e2d-6465-766963650000 go through host memory: CUDA IPC does not work here: "
        "CudaError: cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_CONTEXT (201)"
    ]
    assert say(server, "makes", "result = len(library.allocations)") == "0", "what was to be exported is free again"


def test_a_gpu_that_was_too_full_to_be_tried_is_tried_again(
    fresh: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path_factory.mktemp("check")
    check, full = directory / "check.py", directory / "full"
    full.touch()
    check.write_text(f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from standin_cuda import StandinCuda
from stublet.shm.cuda.check import main

library = StandinCuda()
if Path({str(full)!r}).exists():
    library.fails["cuDevicePrimaryCtxRetain"] = 2
main(library.driver)
""")
    server = fresh(check)
    ask = "result = said(call('takes', 'result = data.is_cpu()', on_gpu([1])).exec())"
    with caplog.at_level(logging.WARNING):
        assert say(server, "makes", ask) == "True"
    (told,) = [record.getMessage() for record in caplog.records if "host memory" in record.getMessage()]
    assert told.endswith(
        "go through host memory for now: whether CUDA IPC works here cannot be tried while the GPU is full: "
        "CudaError: cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY (2)"
    )
    full.unlink()
    assert say(server, "makes", ask) == "True", "not at once"
    assert say(server, "makes", f"host.caller._memory._exports._by_device[0].closed_until = 0.0\n{ask}") == "False"


def test_a_check_that_sees_other_memory(fresh: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = fresh()
    say(server, "makes", "library.cuMemcpyHtoDAsync_v2._function = lambda *arguments: 0")
    with caplog.at_level(logging.WARNING):
        assert say(server, "makes", "result = said(call('takes', 'result = data.is_cpu()', on_gpu([1])).exec())") == "True"
    assert "another process sees other bytes there" in caplog.text


def test_who_cannot_open_it_gets_host_memory_from_then_on(fresh: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = fresh()
    say(server, "takes", "library.fails['cuIpcOpenMemHandle_v2'] = 801")
    with caplog.at_level(logging.WARNING):
        answer = say(server, "makes", "result = said(call('takes', 'result = data.cpu()', on_gpu([1])).exec())")
        assert "cannot be opened in this process: cuIpcOpenMemHandle_v2: CUDA_ERROR_NOT_SUPPORTED (801)" in answer
        until(lambda: "its model gets its inputs in host memory from now on" in caplog.text)
    assert say(server, "makes", "result = said(call('takes', 'result = data.is_cpu()', on_gpu([1])).exec())") == "True"


def test_a_step_that_cannot_open_it_gets_host_memory_from_then_on(fresh: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = fresh()
    make = told("returned = [pb_utils.InferenceResponse([on_gpu([1, 2])])]")

    def through(take: str = "result = data.cpu().as_numpy().tolist()") -> str:
        found = server.infer("on_gpu", {"MAKE": np.array([make], object), "TAKE": np.array([take], object)}, timeout=30)
        return str(found["SAID"][0].decode())

    assert through("result = data.is_cpu()") == "False"
    say(server, "takes", "library.fails['cuIpcOpenMemHandle_v2'] = 801")
    with caplog.at_level(logging.WARNING), pytest.raises(ServerError, match="CUDA_ERROR_NOT_SUPPORTED"):
        through()
    until(lambda: "its model gets its inputs in host memory from now on" in caplog.text)
    assert through() == "[1.0, 2.0]" and through("result = data.is_cpu()") == "True"


def test_memory_that_goes_before_the_process_that_exports_it(fresh: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    """As when that is killed: the driver takes its memory away before the server can know that it has ended."""
    server = fresh()
    assert say(server, "makes", "result = said(call('takes', 'model.kept = data', on_gpu([7, 8])).exec())") == ""
    (pid,) = Scripted(server, "makes").pids
    with caplog.at_level(logging.WARNING):
        say(server, "makes", "for allocation in library.allocations.values(): os.close(allocation.fd); allocation.fd = -1")
        assert "CUDA_ERROR_INVALID_HANDLE" in say(server, "takes", "result = raised(model.kept.cpu); model.kept = None")
        until(lambda: "its model gets its inputs in host memory from now on" in caplog.text)
    os.kill(pid, signal.SIGKILL)
    until(lambda: Scripted(server, "makes").pids not in ([], [pid]))
    assert say(server, "makes", f"result = said(call('takes', {DESCRIBE!r}, on_gpu([1])).exec())") == "(False, [1.0])"


def test_a_context_that_is_lost_ends_the_process(fresh: Callable[..., Server]) -> None:
    server = fresh()
    code = "tensor = on_gpu([1, 2])\nlibrary.fails['cuMemcpyDtoDAsync_v2'] = 700\nresult = said(call('takes', 'result = 1', tensor).exec())"
    assert Scripted(server, "makes").fail(told(code)).startswith("UNAVAILABLE: Stub process 'makes_0_0' is not healthy")


def test_an_export_that_is_none_ends_the_instance(fresh: Callable[..., Server]) -> None:
    server = fresh()
    code = "result = raised(host.ask, 'device.export', b'', 7, b'', b'')\nimport time; time.sleep(30)"
    assert "an export of device memory that is none" in Scripted(server, "makes").fail(f"from stublet.stub.host import host\n{code}")


def test_a_handle_of_nothing_is_refused(fresh: Callable[..., Server]) -> None:
    server = fresh()
    code = "result = raised(host.ask, 'device.export', library.driver().uuid(0), 2 << 20, bytes(64), bytes(512))"
    found = say(server, "makes", code)
    assert "cannot be shared between processes: CudaError: cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_HANDLE (400)" in found
