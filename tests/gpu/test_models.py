"""Tensors on a GPU between models, as in ``processes/test_gpu_standin.py``, and with the libraries that are installed."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from scripted import MEBI, Scripted, quiet, room, scripted
from server_process import until
from stublet.parent import Server

pytestmark = pytest.mark.gpu

TAKES = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}

SAY = "result = (data.is_cpu(), data.cpu().as_numpy().tolist())"


@pytest.fixture(scope="module")
def server(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("gpu")
    for name in ("makes", "takes", "dies"):
        scripted(root, name, **TAKES)
    scripted(root, "forced")
    with Server(root, options=room(64)) as server:
        Scripted(server, "makes").say(made("result = said(call('takes', 'result = 1', on_gpu([1.0])).exec())"))
        yield server


def made(code: str) -> str:
    return f"on_gpu = lambda v: pb_utils.Tensor('DATA', np.asarray(v, np.float32)).to('cuda:0')\n{code}"


@pytest.fixture
def makes(server: Server) -> Iterator[Scripted]:
    with quiet(server):
        yield Scripted(server, "makes")


def test_from_model_to_model_and_back(makes: Scripted) -> None:
    assert makes.say(made(f"result = said(call('takes', {SAY!r}, on_gpu([1, 2, 3])).exec())")) == "(False, [1.0, 2.0, 3.0])"
    back = "returned = [pb_utils.InferenceResponse([data])]"
    code = f"(t,) = call('takes', {back!r}, on_gpu([1, 2])).exec().output_tensors(); result = (t.is_cpu(), t.cpu().as_numpy().tolist())"
    assert makes.say(made(code)) == "(False, [1.0, 2.0])"


def test_nothing_stays_on_the_gpu_too(makes: Scripted) -> None:
    assert makes.say(made(f"result = said(call('takes', {SAY!r}, on_gpu([])).exec())")) == "(False, [])"


@pytest.mark.parametrize("mebibytes", [1, 64, 512])
def test_much(makes: Scripted, mebibytes: int) -> None:
    count = mebibytes * MEBI // 4
    code = f"result = said(call('takes', 'v = data.cpu().as_numpy(); result = (data.is_cpu(), v.size, float(v[-1]))', on_gpu(np.arange({count}) % 7)).exec())"
    assert makes.say(made(code)) == f"(False, {count}, {float((count - 1) % 7)})"


def test_a_client_and_a_forced_model_get_host_memory(makes: Scripted) -> None:
    found = makes.run(made("returned = [pb_utils.InferenceResponse([on_gpu([1, 2, 3])])]"))
    np.testing.assert_array_equal(found["DATA"], [1, 2, 3])
    assert makes.say(made(f"result = said(call('forced', {SAY!r}, on_gpu([1, 2])).exec())")) == "(True, [1.0, 2.0])"


def test_memory_of_a_process_that_died_can_be_read(server: Server, makes: Scripted) -> None:
    back = "on_gpu = lambda v: pb_utils.Tensor('DATA', np.asarray(v, np.float32)).to('cuda:0'); returned = [pb_utils.InferenceResponse([on_gpu([5, 6])])]"
    makes.say(f"(model.kept,) = call('dies', {back!r}).exec().output_tensors(); result = model.kept.cpu()")
    dies = Scripted(server, "dies")
    (pid,) = dies.pids
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in dies.pids)
    assert makes.say("result = model.kept.cpu().as_numpy().tolist(); model.kept = None") == "[5.0, 6.0]"


LIBRARIES = {
    "torch": ("torch.arange(6, dtype=torch.float32, device='cuda')", "torch.from_dlpack(data).sum().item()"),
    "cupy": ("cupy.arange(6, dtype=cupy.float32)", "float(cupy.from_dlpack(data).sum())"),
    "jax": ("jax.numpy.arange(6, dtype=jax.numpy.float32)", "float(jax.numpy.from_dlpack(data).sum())"),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_make_and_take_tensors(makes: Scripted, library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    make, take = LIBRARIES[library]
    inner = f"import {library}\nresult = (data.is_cpu(), {take})"
    code = f"import {library}\nresult = said(call('takes', {inner!r}, pb_utils.Tensor.from_dlpack('DATA', {make})).exec())"
    assert makes.say(code) == "(False, 15.0)"


def test_from_dlpack_waits_for_the_stream_of_the_producer(makes: Scripted) -> None:
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    code = """
import torch
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    x = torch.zeros(1 << 24, device='cuda')
    for _ in range(200):
        x += 1
    tensor = pb_utils.Tensor.from_dlpack('DATA', x)
    result = (stream.query(), float(tensor.cpu().as_numpy()[-1]))
"""
    assert makes.say(code) == "(True, 200.0)"


def test_an_instance_that_sees_its_own_gpu_only(makes: Scripted, tmp_path: Path) -> None:
    scripted(tmp_path, "own", own_gpu_only="yes")
    config = tmp_path / "own" / "config.pbtxt"
    config.write_text(config.read_text().replace("kind: KIND_CPU", "kind: KIND_GPU gpus: [0]"))
    with Server(tmp_path, options=room()) as server:
        assert (
            Scripted(server, "own").value(
                "os.environ['CUDA_VISIBLE_DEVICES'] != '', pb_utils.Tensor('x', np.zeros(1)).to('cuda:0').is_cpu()"
            )
            == "(True, False)"
        )
