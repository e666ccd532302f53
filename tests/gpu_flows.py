"""What tensors on GPUs do between models: tests that pass on a GPU and over its stand-in alike (``Flows``), and the models that they use.

A model's text finds ``on_gpu`` in scope, which puts an array there, ``host_of``, which copies a tensor back, ``overwrite``, ``staged``, how many
bytes the process has lent, ``exported``, how many it exports, and ``pointer``, of a tensor's memory.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import pytest
from model_repository import write_model
from scripted import Scripted, quiet, scripted
from server_process import until
from stublet.parent import Server, devices
from stublet.parent.options import BackendOptions, ServerOptions

SEGMENT, LIMIT = 2 << 20, 16 << 20

TOOLS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from stublet.stub.cuda import devices
from stublet.stub.host import host

%s

def on_gpu(values, name="DATA"):
    return pb_utils.Tensor(name, np.asarray(values, np.float32)).to("cuda:0")

def host_of(tensor):
    return tensor.cpu().as_numpy()

def overwrite(tensor, values):
    data, found = np.asarray(values, np.float32), devices.devices()
    found.copy_from_host(found.get(0), tensor.begin(), data.ctypes.data, data.nbytes)

def arenas():
    exports = host.caller._memory._exports
    return [] if exports is None else [exported.arena for exported in exports._by_device.values()]

model.gpu = dict(
    host=host, devices=devices, on_gpu=on_gpu, host_of=host_of, overwrite=overwrite, pointer=lambda tensor: tensor.begin(),
    staged=lambda: sum(arena.taken for arena in arenas()), exported=lambda: sum(arena.size for arena in arenas()),
)
"""
"""What a model runs when it is loaded; in the place of %s what makes a GPU, where none is there."""

IDENTITY = """
import triton_python_backend_utils as pb_utils

%s

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.answer(pb_utils.get_input_tensor_by_name(r, "IN"))]) for r in requests]

    def answer(self, tensor):
        assert not tensor.is_cpu()
        return pb_utils.Tensor.from_dlpack("OUT", tensor)
"""
IDENTITY_CONFIG = """
input {{ name: "IN" data_type: TYPE_{0} dims: [-1, -1] }}
output {{ name: "OUT" data_type: TYPE_{0} dims: [-1, -1] }}
instance_group {{ kind: KIND_CPU }}
parameters {{ key: "FORCE_CPU_ONLY_INPUT_TENSORS" value {{ string_value: "no" }} }}
"""
DTYPES = {"UINT8": "uint8", "INT8": "int8", "INT64": "int64", "FP16": "float16", "FP64": "float64", "BOOL": "bool"}

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

CALLED = """
platform: "ensemble"
input [ { name: "TAKE" data_type: TYPE_STRING dims: [1] }, { name: "DATA" data_type: TYPE_FP32 dims: [-1] } ]
output [ { name: "SAID" data_type: TYPE_STRING dims: [1] }, { name: "OUT" data_type: TYPE_FP32 dims: [-1] } ]
ensemble_scheduling { step {
  model_name: "%s" model_version: -1 input_map { key: "%s" value: "TAKE" } input_map { key: "DATA" value: "DATA" }
  output_map { key: "%s" value: "SAID" } output_map { key: "%s" value: "OUT" }
} }
"""
CALLED_ENSEMBLES = {
    "within": ("takes", "CODE", "RESULT", "DATA"),
    "within_forced": ("forced", "CODE", "RESULT", "DATA"),
    "beyond": ("within", "TAKE", "SAID", "OUT"),
}

SHOW = "result = (data.is_cpu(), host_of(data).tolist())"


def told(code: str) -> str:
    """Text for a model that finds the tools for its GPU in scope."""
    return f"globals().update(model.gpu)\n{code}"


class Models:
    """Those of a server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def say(self, name: str, code: str) -> str:
        """What a model says to a text; the text to a called model is ``told`` likewise."""
        model = Scripted(self.server, name)
        if name == "streams":
            (found,) = model.items(told(code))
            return found
        return model.say(told(code))

    def asked(self, callee: str, code: str, values: Any) -> str:
        """What a model says to a text and a tensor on the GPU that "makes" sends it."""
        return self.say("makes", f"result = said(call({callee!r}, {told(code)!r}, on_gpu({values!r})).exec())")

    def through(self, ensemble: str, make: str, take: str) -> Any:
        """The answer of an ensemble of "makes" and another."""
        inputs = {"MAKE": np.array([told(make)], object), "TAKE": np.array([told(take)], object)}
        return self.server.infer(ensemble, inputs, timeout=30)

    def kill(self, name: str) -> None:
        """Its process; returns when the next one serves."""
        (pid,) = Scripted(self.server, name).pids
        os.kill(pid, signal.SIGKILL)
        until(lambda: Scripted(self.server, name).pids not in ([], [pid]), what=f"the next process of '{name}'")

    def staged(self, name: str = "makes") -> int:
        """Bytes that a process has lent."""
        return int(self.say(name, "gc.collect(); result = staged()"))


@contextmanager
def serving(root: Path, gpu: str = "", check: Optional[Path] = None, all_of_them: bool = True, segment: int = SEGMENT) -> Iterator[Models]:
    """A server with the models "makes" and "takes", which take tensors on a GPU.

    Args:
        gpu: what makes a GPU, where none is there.
        check: the program that finds out whether memory can be shared there.
        all_of_them: also "streams", which is decoupled, "forced", which takes host memory only, identities, and ensembles.
        segment: bytes of what a process exports at least.
    """
    takes = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    tools = TOOLS % gpu
    for name in ("makes", "takes"):
        scripted(root, name, initialize=tools, **takes)
    if all_of_them:
        scripted(root, "streams", decoupled=True, initialize=tools, **takes)
        scripted(root, "forced", initialize=tools)
        for dtype in DTYPES:
            write_model(root, f"identity_{dtype}", IDENTITY % gpu, IDENTITY_CONFIG.format(dtype))
        for name, parts in ENSEMBLES.items():
            (root / name / "1").mkdir(parents=True)
            (root / name / "config.pbtxt").write_text(ENSEMBLE % parts)
        for name, words in CALLED_ENSEMBLES.items():
            (root / name / "1").mkdir(parents=True)
            (root / name / "config.pbtxt").write_text(CALLED % words)
    options = BackendOptions(shm_default_byte_size=32 << 20, gpu_ipc_segment_byte_size=segment, gpu_ipc_limit_byte_size=max(LIMIT, segment))
    with pytest.MonkeyPatch.context() as patch:
        if check is not None:
            patch.setattr(devices, "CHECK", (sys.executable, str(check)))
        with Server(root, options=ServerOptions(backend=options)) as server:
            yield Models(server)


class Flows:
    """``gpu`` and ``check`` are those of ``serving``."""

    gpu = ""
    check: Optional[Path] = None

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
        with serving(tmp_path_factory.mktemp("gpu"), cls.gpu, cls.check) as models:
            models.asked("takes", "result = 1", [1.0])  # the check, and the threads of all that follows
            yield models

    @pytest.fixture
    def models(self, shared: Models) -> Iterator[Models]:
        with quiet(shared.server):
            yield shared
        for name in ("makes", "takes", "forced"):
            until(lambda name=name: shared.staged(name) == 0)  # type: ignore[misc]

    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[Models]:
        """Of a server of the test's own, in which processes may die."""
        with serving(tmp_path, self.gpu, self.check, all_of_them=False) as models:
            yield models

    # From model to model

    def test_a_tensor_goes_to_another_model_on_the_gpu(self, models: Models) -> None:
        assert models.asked("takes", SHOW, [1, 2, 3]) == "(False, [1.0, 2.0, 3.0])"

    def test_an_answer_stays_on_the_gpu(self, models: Models) -> None:
        inner = told("returned = [pb_utils.InferenceResponse([on_gpu([4, 5])])]")
        code = f"(t,) = call('takes', {inner!r}).exec().output_tensors(); result = (t.is_cpu(), host_of(t).tolist())"
        assert models.say("makes", code) == "(False, [4.0, 5.0])"

    @pytest.mark.parametrize("wanted, where", [("CPU", True), ("GPU", False)])
    @pytest.mark.parametrize("made", ["on_gpu([4, 5])", "pb_utils.Tensor('DATA', np.array([4, 5], np.float32))"])
    def test_a_preferred_memory(self, models: Models, wanted: str, where: bool, made: str) -> None:
        inner = told(f"returned = [pb_utils.InferenceResponse([{made}])]")
        code = f"""
preferred = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_{wanted}, 0)
(t,) = call('takes', {inner!r}, preferred_memory=preferred).exec().output_tensors()
result = (t.is_cpu(), host_of(t).tolist())"""
        assert models.say("makes", code) == f"({where}, [4.0, 5.0])"

    def test_a_client_gets_it_from_host_memory(self, models: Models) -> None:
        for size in (0, 3, 1 << 16):
            code = told(f"returned = [pb_utils.InferenceResponse([on_gpu(np.arange({size}))])]")
            np.testing.assert_array_equal(Scripted(models.server, "makes").run(code)["DATA"], np.arange(size, dtype=np.float32))

    def test_a_model_that_takes_host_memory_only_is_given_it(self, models: Models) -> None:
        for _ in range(3):
            assert models.asked("forced", "result = (data.is_cpu(), data.as_numpy().tolist())", [1, 2, 3]) == "(True, [1.0, 2.0, 3.0])"

    def test_a_tensor_that_came_can_be_sent_on(self, models: Models) -> None:
        inner = told("sender.send(response(host_of(data).tolist()), FINAL)")
        on = f"result = said(next(iter(call('streams', {inner!r}, data).exec(decoupled=True))))"
        assert models.asked("takes", on, [1, 2, 3]) == "[1.0, 2.0, 3.0]"
        back = "returned = [pb_utils.InferenceResponse([data])]"
        code = f"(t,) = call('takes', {back!r}, on_gpu([1, 2])).exec().output_tensors(); result = (t.is_cpu(), host_of(t).tolist())"
        assert models.say("makes", code) == "(False, [1.0, 2.0])"

    def test_a_decoupled_model_streams_from_the_gpu(self, models: Models) -> None:
        inner = told("for i in range(3): sender.send(pb_utils.InferenceResponse([on_gpu([i])]))\nsender.send(flags=FINAL)")
        code = (
            f"result = [host_of(r.output_tensors()[0])[0] for r in call('streams', {inner!r}).exec(decoupled=True) if r.output_tensors()]"
        )
        assert models.say("makes", code.replace("host_of(r.output_tensors()[0])[0]", "float(host_of(r.output_tensors()[0])[0])")) == (
            "[0.0, 1.0, 2.0]"
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_data_type_and_shape(self, models: Models, dtype: str) -> None:
        code = f"""
found = []
for shape in ((2, 3), (1, 1), (1, 0), (0, 5)):
    given = (np.arange(np.prod(shape)) % 2 if {dtype!r} == "BOOL" else np.arange(np.prod(shape))).astype({DTYPES[dtype]!r}).reshape(shape)
    call_ = pb_utils.InferenceRequest("", inputs=[pb_utils.Tensor("IN", given).to("cuda:0")], model_name="identity_{dtype}", requested_output_names=["OUT"])
    answer = call_.exec()
    assert not answer.has_error(), answer.error().message()
    (t,) = answer.output_tensors()
    found.append((t.is_cpu(), host_of(t).dtype == given.dtype, host_of(t).shape == shape, np.array_equal(host_of(t), given)))
result = found"""
        assert models.say("makes", code) == str([(False, True, True, True)] * 4)

    def test_sizes_around_those_of_blocks_and_segments(self, models: Models) -> None:
        sizes = [0, 1, 127, 128, 129, SEGMENT // 4 - 1, SEGMENT // 4, SEGMENT // 4 + 1, SEGMENT]
        take = told("v = host_of(data); result = (data.is_cpu(), v.size, float(v[-1]) if v.size else None)")
        code = f"result = [said(call('takes', {take!r}, on_gpu(np.arange(n) % 1000)).exec()) for n in {sizes}]"
        assert models.say("makes", code) == str([f"(False, {n}, {float((n - 1) % 1000) if n else None})" for n in sizes])

    # Many at a time, and one after another

    def test_calls_of_coroutines_and_threads(self, models: Models) -> None:
        inner = told(SHOW)
        code = f"""
async def several():
    return await asyncio.gather(*[call('takes', {inner!r}, on_gpu([i])).async_exec() for i in range(4)])
answers = asyncio.run(several())
with ThreadPoolExecutor(4) as pool:
    answers += pool.map(lambda i: call('takes', {inner!r}, on_gpu([i])).exec(), range(4))
    answers += pool.map(lambda i: call('forced', {inner!r}, on_gpu([i])).exec(), range(4))
result = [said(answer) for answer in answers]"""
        found = [f"({where}, [{i}.0])" for where in (False, False, True) for i in range(4)]
        assert models.say("makes", code) == str(found)

    def test_many_calls_take_no_more_memory_than_a_few(self, models: Models) -> None:
        take = told("v = host_of(data); result = (float(v[0]), float(v[-1]), v.size)")
        code = f"""
def hand_over(count):
    for i in range(count):
        size = 1 + i * 7919 % 5000
        assert said(call('takes', {take!r}, on_gpu(np.full(size, i))).exec()) == str((float(i), float(i), size)), i
hand_over(20)
before = exported()
hand_over(200)
result = exported() - before"""
        assert int(models.say("makes", code)) <= SEGMENT

    # What is sent is not the model's own any more

    def test_what_a_model_keeps_is_not_overwritten(self, models: Models) -> None:
        assert models.asked("takes", "model.kept = data", [7, 8]) == ""
        for _ in range(3):
            models.asked("takes", SHOW, [1, 2])
        assert models.staged() > 0
        assert models.say("takes", "result = host_of(model.kept).tolist(); model.kept = None") == "[7.0, 8.0]"

    def test_what_a_model_overwrites_or_drops_after_it_was_sent(self, models: Models) -> None:
        code = "tensor = on_gpu([7, 8]); call('takes', 'model.kept = data', tensor).exec(); overwrite(tensor, [0, 0]); del tensor; gc.collect()"
        models.say("makes", code)
        assert models.say("takes", "result = host_of(model.kept).tolist(); model.kept = None") == "[7.0, 8.0]"

    # Ensembles

    @pytest.mark.parametrize("name, where", [("on_gpu", False), ("off_gpu", True), ("shows", True)])
    def test_steps_of_an_ensemble(self, models: Models, name: str, where: bool) -> None:
        found = models.through(name, "returned = [pb_utils.InferenceResponse([on_gpu([1, 2])])]", SHOW)
        assert found["SAID"][0].decode() == f"({where}, [1.0, 2.0])"
        assert "between" not in found or found["between"].tolist() == [1, 2]

    def test_the_answer_of_an_ensemble(self, models: Models) -> None:
        make = told("returned = [pb_utils.InferenceResponse([on_gpu([1, 2])])]")
        say = "pb_utils.Tensor('RESULT', np.array([str(data.is_cpu())], object))"
        take = told(f"returned = [pb_utils.InferenceResponse([{say}, data])]")
        found = models.through("answers", make, take)
        assert found["SAID"][0] == b"False" and found["OUT"].tolist() == [1, 2], "of a client's request, in host memory"
        code = f"""
def ask(**more):
    inputs = [pb_utils.Tensor("MAKE", np.array([{make!r}], object)), pb_utils.Tensor("TAKE", np.array([{take!r}], object))]
    request = pb_utils.InferenceRequest(model_name="answers", inputs=inputs, requested_output_names=[], **more)
    return sorted((tensor.name(), tensor.is_cpu()) for tensor in request.exec().output_tensors())
result = ask(), ask(preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0))"""
        where = models.say("streams", f"{code}\nsender.send(response(result), FINAL)")
        assert eval(where) == ([("OUT", False), ("SAID", True)], [("OUT", True), ("SAID", True)]), "of a model's, where it was made"

    @pytest.mark.parametrize("name, there", [("within", True), ("within_forced", False), ("beyond", True)])
    def test_a_tensor_goes_through_an_ensemble_that_a_model_calls(self, models: Models, name: str, there: bool) -> None:
        take = told("returned = [pb_utils.InferenceResponse([pb_utils.Tensor('RESULT', np.array([str(data.is_cpu())], object)), data])]")
        code = f"""
inputs = [pb_utils.Tensor("TAKE", np.array([{take!r}], object)), on_gpu([1, 2])]
answer = pb_utils.InferenceRequest(model_name={name!r}, inputs=inputs, requested_output_names=[]).exec()
assert not answer.has_error(), answer.error().message()
found = dict((tensor.name(), tensor) for tensor in answer.output_tensors())
result = found["SAID"].as_numpy()[0].decode(), found["OUT"].is_cpu(), host_of(found["OUT"]).tolist()"""
        assert models.say("makes", code) == str((str(not there), not there, [1.0, 2.0]))

    # What finds no room

    def test_what_finds_no_room_goes_through_host_memory(self, models: Models) -> None:
        take = "result = (data.is_cpu(), float(data.cpu().as_numpy().sum()))"
        code = f"result = [said(call('takes', {take!r}, on_gpu(np.ones(n))).exec()) for n in ({LIMIT // 4 + 1}, 2)]"
        assert models.say("makes", code) == str([f"(True, {float(LIMIT // 4 + 1)})", "(False, 2.0)"])

    def test_a_device_that_has_no_room(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """For what no device has room for."""
        with serving(tmp_path, self.gpu, self.check, all_of_them=False, segment=1 << 42) as models, caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert models.asked("takes", "result = (data.is_cpu(), data.as_numpy().tolist())", [1, 2]) == "(True, [1.0, 2.0])"
            full = [record.getMessage() for record in caplog.records if "goes through host memory" in record.getMessage()]
            assert len(full) == 1 and full[0].endswith("cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY (2)")
            code = """
from stublet.stub.cuda.memory import DeviceMemory
found = devices.devices()
result = raised(DeviceMemory.allocate, found, found.get(0), 1 << 42)"""
            assert models.say("makes", code) == "TritonModelException: GPU 0: cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY (2)"

    # What is wrong

    @pytest.mark.parametrize(
        "made, why",
        [
            ("shape=[2, 2], strides=[1, 2]", "DLPack tensor is not contiguous."),
            ("shape=[2], strides=[2]", "DLPack tensor is not contiguous."),
            ("shape=[2], dtype=(capsule.COMPLEX, 64, 1)", "Dtype is invalid."),
            ("shape=[2], dtype=(capsule.FLOAT, 32, 2)", "Dtype is invalid."),
            ("shape=[2], device=(capsule.CUDA, 99)", "there is no GPU 99 in this process, which sees "),
            ("shape=[2], device=(capsule.METAL, 0)", "DLDevice type 8 is not support by Python backend."),
        ],
    )
    def test_a_capsule_that_is_none(self, models: Models, made: str, why: str) -> None:
        code = f"""
import capsule
tensor = on_gpu(np.arange(8))
for make in (lambda producer: producer.capsule, lambda producer: producer):
    producer = capsule.Producer(b"", **{{"dtype": (capsule.FLOAT, 32, 1), "device": (capsule.CUDA, 0), **dict({made})}})
    producer._managed.tensor.data = pointer(tensor)
    result = raised(pb_utils.Tensor.from_dlpack, "DATA", make(producer)), producer.deleted"""
        found = models.say("makes", code)
        assert found.startswith(f"('TritonModelException: {why}") and found.endswith(", [])")

    def test_a_capsule_can_be_used_once(self, models: Models) -> None:
        code = """
import capsule
source = on_gpu([1, 2])
producer = capsule.Producer(b"", [2], dtype=(capsule.FLOAT, 32, 1), device=(capsule.CUDA, 0))
producer._managed.tensor.data = pointer(source)
tensor = pb_utils.Tensor.from_dlpack("DATA", producer.capsule)
again = raised(pb_utils.Tensor.from_dlpack, "DATA", producer.capsule)
found = host_of(tensor).tolist(), len(producer.deleted)
del tensor
gc.collect()
result = (again, *found, len(producer.deleted))"""
        again = "The DLPack capsule was consumed before, or is not a DLPack capsule."
        assert models.say("makes", code) == str((f"TritonModelException: {again}", [1.0, 2.0], 0, 1))

    def test_as_numpy_says_what_to_do_instead(self, models: Models) -> None:
        code = "result = raised(on_gpu([1]).as_numpy), on_gpu([1]).to('cpu').as_numpy().tolist(), raised(on_gpu([1]).to, 'cuda:99')"
        text, values, absent = eval(models.say("makes", code))
        assert text == (
            "TritonModelException: Tensor is stored in GPU and cannot be converted to NumPy. Use tensor.cpu().as_numpy()."
        ) and values == [1.0]
        assert absent.startswith("TritonModelException: there is no GPU 99 in this process, which sees ")

    def test_dlpack_arguments(self, models: Models) -> None:
        code = """
import capsule
t = on_gpu(np.arange(6).reshape(2, 3))
def of(**more):
    found = capsule.contents(t.__dlpack__(**more))
    return found.device[0], found.dtype, found.shape, found.version is not None
result = [of(), of(stream=1), of(stream=2), of(stream=-1), of(max_version=(1, 0)), of(dl_device=(1, 0)), of(copy=True, stream=1)]
result += [raised(t.__dlpack__, **more).split(":")[0] for more in (dict(stream=0), dict(stream=-2), dict(stream="1"), dict(dl_device=(1, 0), copy=False), dict(dl_device=(2, 99)))]"""
        there, here = (2, (2, 32, 1), [2, 3], False), (1, (2, 32, 1), [2, 3], False)
        expected: Any = [there, there, there, there, (*there[:3], True), here, there]
        expected += ["ValueError", "ValueError", "TypeError", "BufferError", "BufferError"]
        assert models.say("makes", code) == str(expected)

    def test_a_handle_of_nothing_is_refused(self, own: Models) -> None:
        code = "result = raised(host.ask, 'device.export', devices.devices().get(0).uuid, 2 << 20, bytes(64), bytes(512))"
        assert "cannot be shared between processes: CudaError: cuIpcOpenMemHandle_v2: " in own.say("makes", code)

    def test_an_export_that_is_none_ends_the_instance(self, own: Models) -> None:
        code = told("result = raised(host.ask, 'device.export', b'', 7, b'', b''); time.sleep(30)")
        assert "an export of device memory that is none" in Scripted(own.server, "makes").fail(code)

    # Deaths

    def test_memory_that_is_open_outlives_its_exporter(self, own: Models) -> None:
        assert own.asked("takes", "model.kept = data; result = host_of(data).tolist()", [7, 8]) == "[7.0, 8.0]"
        own.kill("makes")
        assert own.say("takes", "result = host_of(model.kept).tolist(); model.kept = None") == "[7.0, 8.0]"
        assert own.asked("takes", SHOW, [1]) == "(False, [1.0])"

    def test_memory_that_was_not_opened_is_an_error_after_its_exporter_died(self, own: Models) -> None:
        assert own.asked("takes", "model.kept = data", [7, 8]) == ""
        own.kill("makes")
        found = own.say("takes", "result = (model.kept.shape(), raised(model.kept.cpu)); model.kept = None")
        assert found.startswith("([2], ") and "cannot be opened in this process: cuIpcOpenMemHandle_v2: " in found
        assert own.asked("takes", SHOW, [1]) == "(False, [1.0])", "as with any other"

    def test_an_importer_that_dies_gives_everything_back(self, own: Models) -> None:
        assert own.asked("takes", "model.kept = data; result = host_of(data).tolist()", [7, 8]) == "[7.0, 8.0]"
        assert own.staged() > 0
        own.kill("takes")
        until(lambda: own.staged() == 0)
        assert own.asked("takes", SHOW, [1]) == "(False, [1.0])"

    def test_both_die_again_and_again(self, own: Models) -> None:
        for number in range(3):
            assert own.asked("takes", f"model.kept = data; {SHOW}", [number]) == f"(False, [{number}.0])"
            for name in ("makes", "takes")[:: 1 if number % 2 else -1]:
                own.kill(name)
        assert own.asked("takes", SHOW, [9]) == "(False, [9.0])"
