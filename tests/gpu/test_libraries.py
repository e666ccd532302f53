"""Models that compute on a GPU with the libraries that are installed: what Triton's tests of its Python backend do with them, and more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from model_repository import write_model
from scripted import MEBI, Scripted, quiet, room, scripted
from stublet.parent import Server

from .libraries import needs

pytestmark = pytest.mark.gpu

SECONDS = 150.0
"""Two processes may have to import torch for it, from a disk that has never seen it, and make a context each."""

TAKES = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}

ADD_SUB = """
import torch
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''The sum on the GPU, the difference in host memory.'''

    def execute(self, requests):
        responses = []
        for request in requests:
            a, b = (torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)).to("cuda") for name in ("INPUT0", "INPUT1"))
            outputs = [pb_utils.Tensor.from_dlpack("OUTPUT0", a + b), pb_utils.Tensor.from_dlpack("OUTPUT1", (a - b).cpu())]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""
ADD_SUB_CONFIG = """
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [-1] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }, { name: "OUTPUT1" data_type: TYPE_FP32 dims: [-1] } ]
instance_group { kind: KIND_CPU }
parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }
"""
SQUARE = """
import torch
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    '''As many numbers as the request says, each the square of its own: on a stream of the model's own, which is busy.'''

    def execute(self, requests):
        responses = []
        for request in requests:
            (number,) = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            with torch.cuda.stream(torch.cuda.Stream()):
                many = torch.full((int(number),), float(number), device="cuda")
                for _ in range(20):
                    many = many + 1
                many = (many - 20) ** 2
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT", many)]))
        return responses
"""
SQUARE_CONFIG = """
max_batch_size: 0
input { name: "INPUT" data_type: TYPE_INT32 dims: [1] }
output { name: "OUTPUT" data_type: TYPE_FP32 dims: [-1] }
instance_group { kind: KIND_CPU count: 2 }
"""


@pytest.fixture(scope="module")
def server(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("gpu")
    for name in ("makes", "takes"):
        scripted(root, name, **TAKES)
    with Server(root, options=room(64)) as server:
        Scripted(server, "makes").say(made("result = said(call('takes', 'result = 1', on_gpu([1.0])).exec())"), timeout=SECONDS)
        yield server


def made(code: str) -> str:
    return f"on_gpu = lambda v: pb_utils.Tensor('DATA', np.asarray(v, np.float32)).to('cuda:0')\n{code}"


@pytest.fixture
def makes(server: Server) -> Iterator[Scripted]:
    with quiet(server):
        yield Scripted(server, "makes")


@pytest.mark.parametrize("mebibytes", [1, 64, 512])
def test_much(makes: Scripted, mebibytes: int) -> None:
    count = mebibytes * MEBI // 4
    take = "v = data.cpu().as_numpy(); result = (data.is_cpu(), v.size, float(v[-1]))"
    code = made(f"result = said(call('takes', {take!r}, on_gpu(np.arange({count}) % 7)).exec())")
    assert makes.say(code, timeout=SECONDS) == f"(False, {count}, {float((count - 1) % 7)})"


LIBRARIES = {
    "torch": ("torch.arange(6, dtype=torch.float32, device='cuda')", "torch.from_dlpack(data).sum().item()"),
    "cupy": ("cupy.arange(6, dtype=cupy.float32)", "float(cupy.from_dlpack(data).sum())"),
    "jax": ("jax.numpy.arange(6, dtype=jax.numpy.float32)", "float(jax.numpy.from_dlpack(data).sum())"),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_make_and_take_tensors(makes: Scripted, library: str) -> None:
    needs(library, *(["jax_plugins"] if library == "jax" else []))
    make, take = LIBRARIES[library]
    load = f"os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'\nimport {library}"  # else the first process takes most of the GPU
    inner = f"{load}\nresult = (data.is_cpu(), {take})"
    code = f"{load}\nresult = said(call('takes', {inner!r}, pb_utils.Tensor.from_dlpack('DATA', {make})).exec())"
    assert makes.say(code, timeout=SECONDS) == "(False, 15.0)"


def test_from_dlpack_waits_for_the_stream_of_the_producer(makes: Scripted) -> None:
    needs("torch")
    code = """
import torch
stream, other = torch.cuda.Stream(), torch.cuda.Stream()
long = torch.zeros(1 << 28, device='cuda')
torch.cuda.synchronize()
with torch.cuda.stream(other):
    for _ in range(2000):
        long += 1
with torch.cuda.stream(stream):
    x = torch.zeros(1 << 24, device='cuda')
    for _ in range(200):
        x += 1
    tensor = pb_utils.Tensor.from_dlpack('DATA', x)
    done = stream.query(), other.query()
result = (*done, float(tensor.cpu().as_numpy()[-1]))
torch.cuda.synchronize()
"""
    assert makes.say(code, timeout=SECONDS) == "(True, False, 200.0)", "and for no other"


def test_data_types_of_torch(makes: Scripted) -> None:
    needs("torch")
    code = """
import torch
found = []
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool):
    for shape in ((2, 3), (1, 1), (1, 0), (0, 3), ()):
        given = torch.ones(shape, dtype=dtype, device='cuda')
        tensor = pb_utils.Tensor.from_dlpack('x', given)
        back = torch.from_dlpack(tensor)
        same = back.dtype == dtype and back.shape == given.shape and bool((back == given).all())
        if not (same and (back.data_ptr() == given.data_ptr() or not given.numel())):
            found.append((dtype, shape))
result = found"""
    assert makes.say(code, timeout=SECONDS) == "[]"


def test_what_torch_has_and_cannot_be_sent(makes: Scripted) -> None:
    needs("torch")
    code = """
import torch
make = lambda x: raised(pb_utils.Tensor.from_dlpack, 'DATA', x).split('.')[0]
x = torch.arange(12., device='cuda').reshape(3, 4)
result = [make(x.t()), make(x[:, ::2]), make(x[::2]), make(x.to(torch.complex64)), make(x[1:])]
capsule = torch.utils.dlpack.to_dlpack(x)
result += [make(capsule), make(capsule)]"""
    strided = "TritonModelException: DLPack tensor is not contiguous"
    used = "TritonModelException: The DLPack capsule was consumed before, or is not a DLPack capsule"
    assert makes.say(code, timeout=SECONDS) == str([strided] * 3 + ["TritonModelException: Dtype is invalid", "nothing", "nothing", used])


def test_what_a_library_overwrites_after_it_was_sent(makes: Scripted) -> None:
    needs("torch")
    code = """
import torch
x = torch.full((1 << 20,), 3., device='cuda')
call('takes', 'model.kept = data', pb_utils.Tensor.from_dlpack('DATA', x)).exec()
x.zero_()
del x
torch.cuda.empty_cache()
result = said(call('takes', 'result = float(model.kept.cpu().as_numpy().min()); model.kept = None').exec())"""
    assert makes.say(code, timeout=SECONDS) == "3.0"


def test_memory_comes_back_when_the_stream_that_reads_it_has_ended(makes: Scripted) -> None:
    needs("torch")
    take = """
import torch
if not hasattr(model, 'stream'):
    model.stream = torch.cuda.Stream()
with torch.cuda.stream(model.stream):
    x = torch.from_dlpack(data)
    slow = torch.ones(1 << 26, device='cuda')
    for _ in range(300):
        slow = slow + 1
    model.sums = getattr(model, 'sums', [])
    model.sums.append((slow[0] - 301 + x).sum())
    del x"""
    code = f"""
import torch
for i in range(20):
    call('takes', {take!r}, pb_utils.Tensor.from_dlpack('DATA', torch.full((1000,), float(i), device='cuda'))).exec()
result = said(call('takes', 'result = [x.item() for x in model.sums]; model.sums = []').exec())"""
    assert makes.say(code, timeout=SECONDS) == str([1000.0 * i for i in range(20)]), "no later tensor was put where one was being read"


def test_add_and_subtract(gpu: None, tmp_path: Path) -> None:
    needs("torch")
    write_model(tmp_path, "add_sub", ADD_SUB, ADD_SUB_CONFIG)
    scripted(tmp_path, "calls", **TAKES)
    a, b = np.random.default_rng(seed=0).random((2, 1000), np.float32)
    with Server(tmp_path, options=room(64)) as server:
        found = server.infer("add_sub", {"INPUT0": a, "INPUT1": b}, timeout=SECONDS)
        np.testing.assert_allclose(found["OUTPUT0"], a + b)
        np.testing.assert_allclose(found["OUTPUT1"], a - b)
        code = """
put = lambda name, values: pb_utils.Tensor(name, np.asarray(values, np.float32)).to('cuda:0')
inputs = [put('INPUT0', [1, 2]), pb_utils.Tensor('INPUT1', np.array([5, 5], np.float32))]
request = pb_utils.InferenceRequest(model_name='add_sub', inputs=inputs, requested_output_names=['OUTPUT0', 'OUTPUT1'])
result = [(t.name(), t.is_cpu(), t.cpu().as_numpy().tolist()) for t in request.exec().output_tensors()]"""
        assert Scripted(server, "calls").say(code, timeout=SECONDS) == str(
            [("OUTPUT0", False, [6.0, 7.0]), ("OUTPUT1", True, [-4.0, -3.0])]
        )


def test_many_clients_and_outputs_of_many_sizes(gpu: None, tmp_path: Path) -> None:
    needs("torch")
    write_model(tmp_path, "square", SQUARE, SQUARE_CONFIG)
    with Server(tmp_path, options=room(64)) as server:

        def square(number: int) -> bool:
            found = server.infer("square", {"INPUT": np.array([number], np.int32)}, timeout=SECONDS)["OUTPUT"]
            return found.tolist() == [float(number**2)] * number

        square(1)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(square, list(range(100)) * 3))


def test_bfloat16_from_model_to_model(gpu: None, tmp_path: Path) -> None:
    needs("torch")
    identity = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUT", r.inputs()[0])]) for r in requests]
"""
    config = ADD_SUB_CONFIG[ADD_SUB_CONFIG.index("instance_group") :]
    io = 'input { name: "IN" data_type: TYPE_BF16 dims: [-1] }\noutput { name: "OUT" data_type: TYPE_BF16 dims: [-1] }\n'
    write_model(tmp_path, "identity", identity, io + config)
    scripted(tmp_path, "calls", **TAKES)
    code = """
import torch
given = torch.arange(7, dtype=torch.bfloat16, device='cuda')
request = pb_utils.InferenceRequest(model_name='identity', inputs=[pb_utils.Tensor.from_dlpack('IN', given)], requested_output_names=['OUT'])
(t,) = request.exec().output_tensors()
result = (t.is_cpu(), torch.equal(torch.from_dlpack(t), given))"""
    with Server(tmp_path, options=room(64)) as server:
        assert Scripted(server, "calls").say(code, timeout=SECONDS) == "(False, True)"


def test_an_instance_that_sees_its_own_gpu_only(gpu: None, tmp_path: Path) -> None:
    scripted(tmp_path, "own", own_gpu_only="yes")
    config = tmp_path / "own" / "config.pbtxt"
    config.write_text(config.read_text().replace("kind: KIND_CPU", "kind: KIND_GPU gpus: [0]"))
    code = "os.environ['CUDA_VISIBLE_DEVICES'] != '', pb_utils.Tensor('x', np.zeros(1)).to('cuda:0').is_cpu()"
    with Server(tmp_path, options=room()) as server:
        assert Scripted(server, "own").value(code) == "(True, False)"
