"""A stub turned hostile: reaches into its own runtime and writes what it may not."""

import array
import ctypes
import gc
import os
import socket
import time

import triton_python_backend_utils as pb_utils
from stublet.shm import control
from stublet.shm.message import EMPTY, FINAL, INDIRECT, NEWS, RESCHEDULE, RETURNED, pack
from stublet.shm.ring import FIRST_SLOT, SLOT_BYTES, STARTED
from stublet.stub.process import Stub

STRINGS = 13
"""The code of BYTES in messages."""


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


def segments():
    """Descriptors of all shared memory that the stub has, its rings among it."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:stublet"):
                found.append(fd)
        except OSError:
            pass
    assert found
    return found


def truncate():
    """Nobody who maps them survives it, if it succeeds."""
    for fd in segments():
        for size in (0, 4096, 1 << 40):
            try:
                os.ftruncate(fd, size)
            except PermissionError:
                continue
            print("a segment was truncated", flush=True)
    garbage_record()


def punch_holes():
    for fd in segments():
        assert ctypes.CDLL(None).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(os.fstat(fd).st_size)) == 0
    tell(99, "and so on")


def scribble(byte):
    """All over what it shares with others, but for the requests of its model, which another instance may have."""
    memory = runtime()._memory
    names = {block[0] for block in memory.arena._blocks}
    for segment in [memory.segments[name] for name in names]:
        segment.memory[:] = bytes([byte]) * segment.size
    view = runtime()._words
    view.cast("B")[:] = bytes([byte]) * view.nbytes
    os.write(runtime()._outbox._up._bell, (1).to_bytes(8, "little"))
    tell(99, "and so on")


def strings_of_no_length():
    """An output of strings whose lengths point anywhere."""
    key = runtime()._memory.write(b"\xff" * 64)
    news((), [(now(), FINAL | RETURNED, 0, (), [key], [(0, STRINGS, (3,), 0, 0, 64)], (), "")])
    tell(99, "and so on")


def flood_of_growth():
    """Without looking at what comes back."""
    for _ in range(300):
        insist(control.GROW, 1 << 20)
    insist(99, "and so on")


def two_at_once():
    for _ in range(2):
        tell(control.GROW, 17 << 20)


def in_file(fd, nbytes):
    """A control message that is in a file."""
    socket.send_fds(runtime()._control._socket, [pack((control._IN_FILE, nbytes))], [fd])


def huge_message():
    fd = os.memfd_create("huge")
    os.posix_fallocate(fd, 0, control._MOST_BYTES + 4096)
    in_file(fd, control._MOST_BYTES + 4096)


def message_of_maps():
    """Each is one byte here, and sixty-four where it is read."""
    maps = b"\xdc\x40\x00" + b"\x80" * (1 << 14)
    data = b"\x92" + pack(control.TELL) + b"\xdc\x40\x00" + maps * (1 << 10)
    fd = os.memfd_create("maps")
    os.write(fd, data)
    in_file(fd, len(data))


def descriptors_nobody_asked_for():
    fds = array.array("i", [os.open("/dev/null", os.O_RDONLY) for _ in range(8)])
    runtime()._control._socket.setblocking(True)
    for _ in range(200):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        runtime()._control._socket.sendmsg([pack((control.LOG, ()))], rights)
    tell(99, "and so on")


def flood_of_questions():
    for number in range(2000):
        insist(control.ASK, number, "model.ready", ("nobody", ""))
    insist(99, "and so on")


def made_up_gpus():
    for number in range(100):
        insist(control.ASK, number, "device.export", (os.urandom(16), 2 << 20, bytes(64), bytes(16)))


def without_descriptors():
    os.closerange(3, 1024)


def insist(*message):
    """Until there is room for it in the socket."""
    while True:
        try:
            return tell(*message)
        except TimeoutError:
            time.sleep(0.001)


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
    "failed for no reason": lambda: tell(control.FAILED, b"text", {}),
    "failed to load": lambda: tell(control.FAILED, "text", ""),
    "a question without a number": lambda: tell(control.ASK, None, "model.ready", ()),
    "told nothing": lambda: tell(control.TELL),
    "a forked process without a socket": lambda: tell(control.FORKED),
    "truncated segments": truncate,
    "segments with holes": punch_holes,
    "zeros everywhere": lambda: scribble(0),
    "ones everywhere": lambda: scribble(0xFF),
    "strings of no length": strings_of_no_length,
    "flood of growth": flood_of_growth,
    "growth before growth": two_at_once,
    "shed what is not its own": lambda: tell(control.SHED, [10**6]),
    "shed words": lambda: tell(control.SHED, [[1], "x"]),
    "shed nothing at all": lambda: tell(control.SHED, 5),
    "unmapped words": lambda: tell(control.UNMAPPED, "x", True),
    "unmapped nothing": lambda: tell(control.UNMAPPED),
    "a message that is a device": lambda: in_file(os.open("/dev/zero", os.O_RDONLY), 100),
    "a message that is a pipe": lambda: in_file(os.pipe()[0], 100),
    "a message that is a file": lambda: in_file(os.open(__file__, os.O_RDONLY), os.stat(__file__).st_size),
    "huge message": huge_message,
    "message of maps": message_of_maps,
    "endless descriptors": descriptors_nobody_asked_for,
    "flood of questions": flood_of_questions,
    "GPUs that there are not": made_up_gpus,
    "closed control socket": lambda: runtime()._control._socket.close(),
    "closed descriptors": without_descriptors,
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
