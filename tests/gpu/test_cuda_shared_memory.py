"""CUDA shared memory of clients, as in ``processes/test_cuda_shared_memory_standin.py``. The client is a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripted import scripted
from server_process import DEADLINE, serving

from .libraries import needs

pytestmark = pytest.mark.gpu

CLIENT = """
import base64, ctypes, importlib, sys, time
import numpy as np
from tritonclient.utils import InferenceServerException
from stublet.shm.cuda.driver import load

SIZE, HALF = 4 << 20, 2 << 20
SHOW = "result = data.is_cpu(); output = data.cpu().as_numpy() + 1"

def refused(*arguments):
    try:
        client.register_cuda_shared_memory(*arguments)
    except InferenceServerException as error:
        return str(error.message())

def tensor(name, shape, dtype):
    return library.InferInput(name, shape, dtype)

library = importlib.import_module("tritonclient." + sys.argv[1])
client, driver = library.InferenceServerClient(sys.argv[2]), load()
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
    assert refused("r", handle, 0, SIZE) == "shared memory region 'r' already in manager"

    def infer(model, code, offset=0):
        text, data = tensor("CODE", [1], "BYTES"), tensor("DATA", [1000], "FP32")
        text.set_data_from_numpy(np.array([code], object))
        data.set_shared_memory("r", given.nbytes, offset)
        wanted = library.InferRequestedOutput("RESULT"), library.InferRequestedOutput("DATA")
        wanted[1].set_shared_memory("r", HALF, HALF)
        return client.infer(model, [text, data], outputs=list(wanted))

    def survives():
        try:
            infer("takes", "import os; data.cpu(); os.kill(os.getpid(), 9)")
        except InferenceServerException as error:
            print("died", "SIGKILL" in str(error.message()))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                return infer("takes", SHOW)
            except InferenceServerException:
                time.sleep(0.1)

    for model in sys.argv[3:]:
        answer = infer(model, SHOW)
        driver.copy_to_host(found.ctypes.data, pointer + HALF, found.nbytes, stream)
        driver.finish(stream)
        assert np.array_equal(found, given + 1), found
        print(model, answer.as_numpy("RESULT")[0].decode())
    for offset, why in (SIZE, "Invalid offset for"), (SIZE - 4, "Invalid offset + byte size for"):
        try:
            infer("takes", SHOW, offset)
        except InferenceServerException as error:
            assert str(error.message()) == why + " shared memory region: 'r'"
    print("served", survives() is not None)
    client.unregister_cuda_shared_memory("r")
    driver.free(pointer)
"""


LIBRARY = """
import sys
import numpy as np
import tritonclient.grpc as grpc
import tritonclient.utils.cuda_shared_memory as cuda

client = grpc.InferenceServerClient(sys.argv[1])
given = np.arange(1000, dtype=np.float32)
region = cuda.create_shared_memory_region("r", 3 * given.nbytes, 0)
cuda.set_shared_memory_region(region, [given])
client.register_cuda_shared_memory("r", cuda.get_raw_handle(region), 0, 3 * given.nbytes)
text, data = grpc.InferInput("CODE", [1], "BYTES"), grpc.InferInput("DATA", [1000], "FP32")
text.set_data_from_numpy(np.array(["output = data.cpu().as_numpy() + 1"], object))
data.set_shared_memory("r", given.nbytes)
wanted = grpc.InferRequestedOutput("DATA")
wanted.set_shared_memory("r", given.nbytes, given.nbytes)
client.infer("takes", [text, data], outputs=[wanted])
print(np.array_equal(cuda.get_contents_as_numpy(region, np.float32, [1000], offset=given.nbytes), given + 1))
client.unregister_cuda_shared_memory()
cuda.destroy_shared_memory_region(region)
client.close()
"""


def run(code: str, *arguments: str) -> str:
    """What a client says."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=4 * DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_regions_of_a_client(gpu: None, tmp_path: Path) -> None:
    root = tmp_path / "models"
    scripted(root, "takes", FORCE_CPU_ONLY_INPUT_TENSORS="no")
    scripted(root, "forced")
    with serving(tmp_path, root, "--allow-client-shm=true", "--grpc-port", "0") as server:
        for library, address in ("http", server.address), ("grpc", server.grpc_address):
            said = run(CLIENT, library, address, "takes", "forced").splitlines()
            assert said == ["takes False", "forced True", "died True", "served True"]


def test_regions_of_the_client_library(gpu: None, tmp_path: Path) -> None:
    needs("cuda.bindings.runtime")
    scripted(tmp_path / "models", "takes", FORCE_CPU_ONLY_INPUT_TENSORS="no")
    with serving(tmp_path, tmp_path / "models", "--allow-client-shm=true", "--grpc-port", "0") as server:
        assert run(LIBRARY, server.grpc_address) == "True\n"
