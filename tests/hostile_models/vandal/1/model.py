"""A stub turned hostile: reaches into its own runtime and writes what it may not."""

import gc
import os
import time

import triton_python_backend_utils as pb_utils
from stublet.shm.message import INDIRECT, RESULTS, pack
from stublet.shm.ring import FIRST_SLOT, SLOT_BYTES
from stublet.stub.process import StubProcess


def runtime():
    (stub,) = [thing for thing in gc.get_objects() if isinstance(thing, StubProcess)]
    return stub


def record(*parts):
    up = runtime()._up
    up.push(pack(parts))
    up.ring()


def result(key, blocks, outputs):
    record(RESULTS, [], [(key, 0, False, blocks, outputs, (), "")])


def slot(sequence, length):
    """Writes the two words of the slot that the server looks at next, and rings."""
    up = runtime()._up
    first = (FIRST_SLOT["up"] + up._produced * SLOT_BYTES) // 8
    runtime()._words[first + 1] = length
    runtime()._words[first] = sequence if sequence is not None else up._produced + 1
    os.write(up._bell, (1).to_bytes(8, "little"))


def garbage_record():
    up = runtime()._up
    up.push(b"\xc1" * 100)
    up.ring()


def output(segment, offset, start, nbytes):
    return [(segment, offset)], [(0, 2, (nbytes,), 0, start, nbytes)]


WAYS = {
    "garbage": garbage_record,
    "unknown kind": lambda: record(77, 1, 2),
    "unknown request": lambda: result(10**6, (), ()),
    "foreign block": lambda: result(0, *output(10**6, 0, 0, 8)),
    "outside its segment": lambda: result(0, *output(next(iter(runtime()._memory.arena._blocks))[0], 0, 0, 1 << 40)),
    "negative offset": lambda: result(0, [(-1, -1)], [(0, 2, (8,), 0, -8, 8)]),
    "unknown output": lambda: result(0, [], [(9, 2, (0,), 0, 0, 0)]),
    "release of what was not kept": lambda: record(RESULTS, [(1, 0)], []),
    "indirect to nowhere": lambda: record(INDIRECT, 10**6, 0, 10),
    "sequence word": lambda: slot(12345, 0),
    "length word": lambda: slot(None, 1 << 60),
    "control garbage": lambda: runtime()._control._socket.send(b"\xff\xff\xff"),
    "control unknown": lambda: runtime()._control.send((99, "x")),
    "grow by nothing": lambda: runtime()._control.send((3, -5)),
    "log of no level": lambda: runtime()._control.send((4, "LOUD", "file", 1, "text")),
    "ready again": lambda: runtime()._control.send((1,)),
}


class TritonPythonModel:
    def execute(self, requests):
        way = pb_utils.get_input_tensor_by_name(requests[0], "WAY").as_numpy()[0].decode()
        if way in WAYS:
            WAYS[way]()
            # Only the server can end this: it is what is tested.
            time.sleep(60)
        answer = pb_utils.get_input_tensor_by_name(requests[0], "WAY").as_numpy()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", answer)]) for _ in requests]
