"""What can be seen on a GPU only: a context that is lost, and what NVML says. What else goes wrong is in ``gpu_flows``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from gpu_flows import SHOW, Models, serving, told
from scripted import Scripted
from server_process import until

from .libraries import needs

pytestmark = pytest.mark.gpu

SECONDS = 150.0


@pytest.fixture
def own(gpu: None, tmp_path: Path) -> Iterator[Models]:
    with serving(tmp_path, all_of_them=False) as models:
        yield models


def test_a_kernel_that_loses_the_context(own: Models) -> None:
    needs("torch")
    assert own.asked("takes", "model.kept = data; result = host_of(data).tolist()", [7, 8]) == "[7.0, 8.0]"
    (pid,) = Scripted(own.server, "makes").pids
    lose = """
import torch
tensor = on_gpu([1, 2])
try:
    torch.zeros(10, device="cuda")[torch.tensor([10_000_000], device="cuda")] = 1
    torch.cuda.synchronize()
except Exception:
    pass
result = said(call("takes", "result = 1", tensor).exec())"""
    failure = Scripted(own.server, "makes").fail(told(lose), timeout=SECONDS)
    assert failure.startswith("UNAVAILABLE: Stub process 'makes_0_0' is not healthy")
    until(lambda: Scripted(own.server, "makes").pids not in ([], [pid]))
    assert own.say("takes", "result = host_of(model.kept).tolist(); model.kept = None") == "[7.0, 8.0]", "others have theirs"
    assert own.asked("takes", SHOW, [1, 2]) == "(False, [1.0, 2.0])"


USED = """
import json
from stublet.parent.gpu_memory import by_process
print(json.dumps(by_process()))
"""


def test_how_much_memory_processes_use(own: Models) -> None:
    own.asked("takes", SHOW, [1, 2])
    done = subprocess.run([sys.executable, "-c", USED], capture_output=True, text=True, timeout=60, check=True)
    used = {int(pid): nbytes for pid, nbytes in json.loads(done.stdout).items()}
    pids = Scripted(own.server, "makes").pids + Scripted(own.server, "takes").pids
    if not used.keys() & set(pids):
        pytest.skip("NVML does not know the processes of this container by the numbers that they have here")
    assert all(used[pid] > 1 << 20 for pid in pids)
    assert os.getpid() not in used, "the server has no context"


METRICS = """
from stublet.parent.metrics.machine import find_gpus
gpus = find_gpus()
gpus.sample()
print(*(family.name for family in gpus.collect() if family.samples))
gpus.close()
"""


def test_metrics_of_the_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", METRICS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert {"nv_gpu_utilization", "nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes"} <= set(done.stdout.split())
