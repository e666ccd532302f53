"""A stub turned hostile: reaches into its own runtime and writes what it may not."""

import gc
import os
import time

import triton_python_backend_utils as pb_utils
from stublet.shm import control
from stublet.shm.message import EMPTY, FINAL, INDIRECT, NEWS, RESCHEDULE, RETURNED, pack
from stublet.shm.ring import FIRST_SLOT, SLOT_BYTES, STARTED
from stublet.stub.process import Stub


def runtime():
    (stub,) = [thing for thing in gc.get_objects() if isinstance(thing, Stub)]
    return stub


def record(*parts):
    up = runtime()._outbox._up
    up.push(pack(parts))
    up.ring()


def news(releases=(), results=(), calls=()):
    record(NEWS, releases, results, calls)


def results(*rows):
    """Each row is (key, flags, blocks, outputs)."""
    news((), [(key, flags, 0, (), blocks, outputs, (), "") for key, flags, blocks, outputs in rows])


def result(key, blocks, outputs):
    results((key, FINAL | RETURNED, blocks, outputs))


def now():
    """The key of the request that is executed."""
    return runtime()._words[STARTED // 8] - 1


def call(*blocks):
    news((), (), [(1, 0, "model", -1, blocks, [("x", 2, (8,), 0, 0, 8)] if blocks else (), (), ("", "{}", 0, 0, 0))])


def slot(sequence, length):
    """Writes the two words of the slot that the server looks at next, and rings."""
    up = runtime()._outbox._up
    first = (FIRST_SLOT["up"] + up._produced * SLOT_BYTES) // 8
    runtime()._words[first + 1] = length
    runtime()._words[first] = sequence if sequence is not None else up._produced + 1
    os.write(up._bell, (1).to_bytes(8, "little"))


def garbage_record():
    up = runtime()._outbox._up
    up.push(b"\xc1" * 100)
    up.ring()


def indirect_to_itself():
    """A record in a block that names the block."""
    memory = runtime()._memory
    key = memory.write(bytes(64))
    data = pack((INDIRECT, *key, 32))
    block = memory.arena.find(key)
    block.write(0, data, len(data))
    record(INDIRECT, *key, len(data))


def output(segment, offset, start, nbytes):
    return [(segment, offset)], [(0, 2, (nbytes,), 0, start, nbytes)]


def own_segment():
    return next(iter(runtime()._memory.arena._blocks))[0]


def tell(*message):
    runtime()._control.send(message)


WAYS = {
    "garbage": garbage_record,
    "unknown kind": lambda: record(77, 1, 2),
    "a record for stubs": lambda: record(1, (), (), ((1, True, (), (), (), ""),)),
    "unknown request": lambda: result(10**6, (), ()),
    "foreign block": lambda: result(now(), *output(10**6, 0, 0, 8)),
    "outside its segment": lambda: result(now(), *output(own_segment(), 0, 0, 1 << 40)),
    "negative offset": lambda: result(now(), [(-1, -1)], [(0, 2, (8,), 0, -8, 8)]),
    "unknown output": lambda: result(now(), [(own_segment(), 0)], [(9, 2, (0,), 0, 0, 0)]),
    "answered twice": lambda: results(*[(now(), FINAL, (), ())] * 2),
    "returned twice": lambda: results(*[(now(), RETURNED | EMPTY, (), ())] * 2),
    "finished without a response": lambda: results((now(), FINAL | EMPTY, (), ())),
    "unknown flags": lambda: results((now(), 64 | FINAL | RESCHEDULE, (), ())),
    "release of what was not kept": lambda: news([(1, 0)]),
    "call with a foreign block": lambda: call((10**6, 0)),
    "call with a block beyond its segment": lambda: call((own_segment(), 1 << 40)),
    "call of no words": lambda: news((), (), [(1, 2, 3)]),
    "indirect to nowhere": lambda: record(INDIRECT, 10**6, 0, 10),
    "indirect to itself": indirect_to_itself,
    "sequence word": lambda: slot(12345, 0),
    "length word": lambda: slot(None, 1 << 60),
    "control garbage": lambda: runtime()._control._socket.send(b"\xff\xff\xff"),
    "control unknown": lambda: tell(99, "x"),
    "grow by nothing": lambda: tell(control.GROW, -5),
    "grow by words": lambda: tell(control.GROW, "much"),
    "log of no level": lambda: tell(control.LOG, [("LOUD", "file", 1, "text")]),
    "log of no lines": lambda: tell(control.LOG, 5),
    "ready again": lambda: tell(control.READY, False),
    "hello again": lambda: tell(control.HELLO, 2, "3", "1", "python"),
    "failed to load": lambda: tell(control.FAILED, "text", ""),
    "a question without a number": lambda: tell(control.ASK, None, "model.ready", ()),
    "told nothing": lambda: tell(control.TELL),
    "a forked process without a socket": lambda: tell(control.FORKED),
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
