"""Tensors on a GPU between models, over a stand-in for the driver: real processes, the real protocol, and memory that they share. What can be
seen without looking into the stand-in is in ``gpu_flows``.

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
from gpu_flows import ENSEMBLE, ENSEMBLES, LIMIT, SEGMENT
from scripted import Scripted, quiet, scripted
from server_process import until
from standin_models import gpu, told
from stublet.parent import Server, ServerError, devices, instance_report
from stublet.parent.options import BackendOptions, ServerOptions

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("gpu")
    gpu(root, "makes")
    gpu(root, "takes")
    gpu(root, "forced", takes=False)
    scripted(root, "plain", FORCE_CPU_ONLY_INPUT_TENSORS="no")
    scripted(root, "bare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "CHECK", (sys.executable, str(TESTS / "standin_check.py")))
        with Server(root, options=options()) as server:
            # The check, and the threads of all that follows.
            say(server, "makes", "result = said(call('takes', 'result = 1', on_gpu([1.0])).exec())")
            yield server


def options() -> ServerOptions:
    return ServerOptions(
        backend=BackendOptions(shm_default_byte_size=32 << 20, gpu_ipc_segment_byte_size=SEGMENT, gpu_ipc_limit_byte_size=LIMIT)
    )


def say(server: Server, name: str, code: str) -> str:
    return Scripted(server, name).say(told(code))


Say = Callable[[str, str], str]


@pytest.fixture
def ask(server: Server) -> Iterator[Say]:
    with quiet(server):
        yield lambda name, code: say(server, name, code)
    for name in ("makes", "takes", "forced"):
        until(lambda name=name: say(server, name, "gc.collect(); result = staged()") in ("0", "None"))  # type: ignore[misc]


DESCRIBE = "globals().update(model.gpu); result = (data.is_cpu(), (data.as_numpy() if data.is_cpu() else values(data)).tolist())"


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


def test_a_model_that_takes_host_memory_only_is_given_it(ask: Say) -> None:
    describe = "result = (data.is_cpu(), data.as_numpy().tolist())"
    for _ in range(2):
        assert ask("makes", f"result = said(call('forced', {describe!r}, on_gpu([1, 2, 3])).exec())") == "(True, [1.0, 2.0, 3.0])"
    # From the second call on it is known.
    before = ask("makes", "result = calls('cuMemcpyDtoDAsync_v2')")
    ask("makes", f"result = said(call('forced', {describe!r}, on_gpu([1, 2, 3])).exec())")
    assert ask("makes", "result = calls('cuMemcpyDtoDAsync_v2')") == before


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


# Deaths, and what is refused


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Servers of a test's own, with the models "makes" and "takes", the ensemble "on_gpu" of both, and, as a ``caller``, "bare"."""
    started = []

    def start(check: Path = TESTS / "standin_check.py", caller: bool = False) -> Server:
        monkeypatch.setattr(devices, "CHECK", (sys.executable, str(check)))
        for name in ("makes", "takes"):
            gpu(tmp_path, name)
        if caller:
            scripted(tmp_path, "bare")
        (tmp_path / "on_gpu" / "1").mkdir(parents=True)
        (tmp_path / "on_gpu" / "config.pbtxt").write_text(ENSEMBLE % ENSEMBLES["on_gpu"])
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
        until(lambda: "its model gets all tensors in host memory from now on" in caplog.text)
    assert say(server, "makes", "result = said(call('takes', 'result = data.is_cpu()', on_gpu([1])).exec())") == "True"
    assert say(server, "takes", CALLS_ONE_THAT_ANSWERS) == "True", "nor can it what others answer"


CALLS_ONE_THAT_ANSWERS = """
inner = "globals().update(model.gpu); returned = [pb_utils.InferenceResponse([on_gpu([4, 5])])]"
(tensor,) = call('makes', inner).exec().output_tensors()
result = tensor.cpu() is tensor"""


@pytest.mark.parametrize(
    "spoil, why",
    [
        ("devices._remember(devices.NoDriver('none'))", "this process cannot use one: none"),
        ("library.fails['cuDeviceGetCount'] = 999", "cuDeviceGetCount: an unknown error"),
    ],
)
def test_who_finds_no_gpu_gets_host_memory_from_then_on(fresh: Callable[..., Server], spoil: str, why: str) -> None:
    server = fresh()
    say(server, "takes", f"from stublet.stub.cuda import devices\ndevices.devices()._known.clear(); {spoil}")
    ask = "result = said(call('takes', 'result = data.cpu() is data', on_gpu([1])).exec())"
    assert why in say(server, "makes", ask)
    until(lambda: say(server, "makes", ask) == "True")
    assert say(server, "takes", CALLS_ONE_THAT_ANSWERS) == "True"


def test_who_only_calls_and_cannot_read_the_answers_gets_host_memory_from_then_on(fresh: Callable[..., Server]) -> None:
    server = fresh(caller=True)
    ask = CALLS_ONE_THAT_ANSWERS.replace("tensor.cpu() is tensor", "(tensor.is_cpu(), raised(tensor.cpu))")
    assert "this process cannot use one" in say(server, "bare", ask)
    until(lambda: say(server, "bare", ask) == "(True, 'nothing')")


def test_who_does_not_see_its_gpu_gets_host_memory_from_then_on(fresh: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    """As an instance that sees another GPU only (``own_gpu_only``)."""
    server = fresh()
    say(server, "takes", "library.cuDeviceGetUuid_v2._function = lambda out, device: setattr(out, 'raw', b'another' + bytes(9)) or 0")
    with caplog.at_level(logging.WARNING):
        answer = say(server, "makes", "result = said(call('takes', 'result = data.cpu()', on_gpu([1])).exec())")
        assert "the GPU of the tensor is not visible to this process (CUDA_VISIBLE_DEVICES)" in answer
        until(lambda: "its model gets all tensors in host memory from now on" in caplog.text)
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
    until(lambda: "its model gets all tensors in host memory from now on" in caplog.text)
    assert through() == "[1.0, 2.0]" and through("result = data.is_cpu()") == "True"


def test_memory_that_goes_before_the_process_that_exports_it(fresh: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    """As when that is killed: the driver takes its memory away before the server can know that it has ended."""
    server = fresh()
    assert say(server, "makes", "result = said(call('takes', 'model.kept = data', on_gpu([7, 8])).exec())") == ""
    (pid,) = Scripted(server, "makes").pids
    with caplog.at_level(logging.WARNING):
        say(server, "makes", "for allocation in library.allocations.values(): os.close(allocation.fd); allocation.fd = -1")
        assert "CUDA_ERROR_INVALID_HANDLE" in say(server, "takes", "result = raised(model.kept.cpu); model.kept = None")
        until(lambda: "its model gets all tensors in host memory from now on" in caplog.text)
    os.kill(pid, signal.SIGKILL)
    until(lambda: Scripted(server, "makes").pids not in ([], [pid]))
    assert say(server, "makes", f"result = said(call('takes', {DESCRIBE!r}, on_gpu([1])).exec())") == "(False, [1.0])"


def test_a_context_that_is_lost_ends_the_process(fresh: Callable[..., Server]) -> None:
    server = fresh()
    code = "tensor = on_gpu([1, 2])\nlibrary.fails['cuMemcpyDtoDAsync_v2'] = 700\nresult = said(call('takes', 'result = 1', tensor).exec())"
    assert Scripted(server, "makes").fail(told(code)).startswith("UNAVAILABLE: Stub process 'makes_0_0' is not healthy")
