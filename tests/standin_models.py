"""Scripted models (``scripted``) that use a GPU which is a stand-in."""

from __future__ import annotations

from pathlib import Path

from scripted import scripted

TESTS = Path(__file__).parent

USES_A_GPU = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from standin_cuda import StandinCuda
import standin_library
from stublet.stub.cuda import devices
from stublet.stub.host import host
import weakref

library = model.library = StandinCuda(devices=1)
devices.attach(library.driver())

def on_gpu(values, name="DATA"):
    array = standin_library.Array(library, np.asarray(values, np.float32))
    tensor = pb_utils.Tensor.from_dlpack(name, array)
    weakref.finalize(tensor._memory, array.free).atexit = False
    return tensor

def staged():
    exports = host.caller._memory._exports
    return None if exports is None else sum(exported.arena.taken for exported in exports._by_device.values())

def calls(name):
    return library.calls.count(name)

model.gpu = dict(host=host, on_gpu=on_gpu, staged=staged, calls=calls, library=library, values=lambda t: standin_library.values_of(library, t))
"""


def gpu(root: Path, name: str, takes: bool = True, decoupled: bool = False) -> None:
    """A model of that name; ``takes``: it wants inputs that are on a GPU left there."""
    scripted(root, name, initialize=USES_A_GPU, decoupled=decoupled, **({"FORCE_CPU_ONLY_INPUT_TENSORS": "no"} if takes else {}))


def told(code: str) -> str:
    """Text for such a model, which finds the tools for its GPU in scope."""
    return f"globals().update(getattr(model, 'gpu', {{}}))\n{code}"
