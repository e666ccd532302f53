"""CUDA shared memory of clients, as in ``processes/test_cuda_shared_memory_standin.py``. The client is a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripted import scripted
from server_process import DEADLINE, serving

pytestmark = pytest.mark.gpu

CLIENT = """
import base64, ctypes, sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException
from stublet.shm.cuda.driver import load

SIZE, HALF = 4 << 20, 2 << 20
SHOW = "result = data.is_cpu(); output = data.cpu().as_numpy() + 1"

def refused(*arguments):
    try:
        client.register_cuda_shared_memory(*arguments)
    except InferenceServerException as error:
        return str(error.message())

client, driver = http.InferenceServerClient(sys.argv[1]), load()
with driver.on(0):
    stream, pointer = driver.create_stream(), driver.allocate(SIZE)
    handle = base64.b64encode(driver.export(pointer))
    given, found = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    driver.copy_from_host(pointer, given.ctypes.data, given.nbytes, stream)
    driver.finish(stream)
    wrong = "failed to register shared memory region: invalid args"
    assert refused("g", base64.b64encode(bytes(range(64))), 0, SIZE) == wrong
    assert refused("g", handle, 0, 1 << 40) == wrong
    assert refused("g", handle, 99, SIZE) == wrong
    client.register_cuda_shared_memory("r", handle, 0, SIZE)
    for model in sys.argv[2:]:
        text, data = http.InferInput("CODE", [1], "BYTES"), http.InferInput("DATA", [1000], "FP32")
        text.set_data_from_numpy(np.array([SHOW], object))
        data.set_shared_memory("r", given.nbytes)
        wanted = http.InferRequestedOutput("RESULT"), http.InferRequestedOutput("DATA")
        wanted[1].set_shared_memory("r", HALF, HALF)
        answer = client.infer(model, [text, data], outputs=list(wanted))
        driver.copy_to_host(found.ctypes.data, pointer + HALF, found.nbytes, stream)
        driver.finish(stream)
        assert np.array_equal(found, given + 1), found
        print(model, answer.as_numpy("RESULT")[0].decode())
    client.unregister_cuda_shared_memory("r")
    driver.free(pointer)
"""


def test_inputs_and_outputs_in_regions_of_a_client(gpu: None, tmp_path: Path) -> None:
    root = tmp_path / "models"
    scripted(root, "takes", FORCE_CPU_ONLY_INPUT_TENSORS="no")
    scripted(root, "forced")
    with serving(tmp_path, root, "--allow-client-shm=true") as server:
        command = [sys.executable, "-c", CLIENT, server.address, "takes", "forced"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[:2] == ["takes False", "forced True"]
