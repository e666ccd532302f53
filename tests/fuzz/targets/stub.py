"""What a stub says over its control socket, and what its model asks of other models."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import socket
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List
from unittest.mock import patch

from leaks import eventually
from stub_end import OWN, Stub
from stublet.parent import bls
from stublet.parent.bls import Router, make_request
from stublet.parent.devices import DeviceMemory
from stublet.parent.errors import ServerError
from stublet.parent.forked_caller import ForkedCaller
from stublet.parent.instance import Instance
from stublet.parent.lifecycle import State
from stublet.parent.model import Model
from stublet.parent.news import read_call
from stublet.parent.placement.instance_groups import instance_specs
from stublet.parent.placement.placement import ANYWHERE
from stublet.parent.request import Request, drop
from stublet.shm.control import ControlSocket, close_all
from stublet.shm.cuda.segment import DeviceSegment
from stublet.shm.dtype import BY_NAME
from stublet.shm.errors import PeerGone, ProtocolError
from stublet.shm.message import decode_up
from stublet.shm.ring import RECORD_BYTES, Producer, Words

from ..offered import NoProcess, Offered, offered
from ..target import Check, Target
from .rings import TOKENS

_KINDS_OF_FILE = 4

_IN_RING = 0x80
"""The first byte of what is a record in the ring, and not a datagram."""

_FIRST_SEGMENT = 50
"""Id of the first segment of an instance's arena."""

_MOST_BYTES = 4 << 20
_FP32 = BY_NAME["FP32"].code


def _files(kinds: bytes) -> List[int]:
    """A descriptor for each byte: of a file with the rest of the bytes, of a sparse one, of a pipe, or of a socket that is connected to nothing."""
    fds = []
    for kind in kinds:
        if kind % _KINDS_OF_FILE == 0:
            fds.append(os.memfd_create("fuzz", os.MFD_CLOEXEC))
            os.write(fds[-1], kinds)
        elif kind % _KINDS_OF_FILE == 1:
            fds.append(os.memfd_create("fuzz", os.MFD_CLOEXEC))
            os.truncate(fds[-1], kind << 24)
        elif kind % _KINDS_OF_FILE == 2:
            ends = os.pipe()
            fds.append(ends[0])
            os.close(ends[1])
        else:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as alone:
                fds.append(alone.detach())
    return fds


def _said(data: bytes) -> Any:
    """The first byte says how many descriptors come with the datagram; a byte each is what they are of."""
    count = data[0] % 4 if data else 0
    return data[1 + count :], _files(data[1 : 1 + count])


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- any datagram ----


@contextmanager
def control_socket() -> Iterator[Check]:
    """Any datagram is a message, or an error, and no descriptor stays open."""

    def check(data: bytes) -> None:
        before = _open_files()
        near, far = ControlSocket.pair()
        with far:
            datagram, fds = _said(data)
            socket.send_fds(far, [datagram], fds)
            close_all(fds)
            try:
                message, received = near.receive()
                assert type(message) is tuple and message
                close_all(received)
            except (ProtocolError, PeerGone):
                pass
            finally:
                near.close()
        assert eventually(lambda: _open_files() <= before)

    yield check


# ---- the life of an instance ----


class _SharesDevices(DeviceMemory):
    """Whether device memory can be shared is not found out: a process for each GPU that somebody makes up takes too long."""

    async def _verdict(self, instance: Instance, segment: DeviceSegment, pattern: bytes) -> str:
        return "ok" if pattern else "there is no such GPU"


class _Life:
    """Of an instance, whose process is the test. It is handed two requests when it has loaded, and asked whether it is ready."""

    def __init__(self, server: Offered, spawner: NoProcess) -> None:
        self._core = server.core
        self._model = server.models["add_sub"]
        self._core._segment_ids = itertools.count(_FIRST_SEGMENT)
        (spec,) = instance_specs(self._model.config)
        self.instance = Instance(self._model, spec, ANYWHERE)
        self._model.instances = [self.instance]
        self.instance.start()
        self._core.watcher.watch(self.instance)
        self.far = spawner.far
        channel = self.instance.channel
        self._up = Producer(Words(channel.segment), "up", channel.up_bell)
        self._asked = False

    def say(self, line: bytes) -> None:
        """A datagram, or, if the first byte is so large, a record in the ring."""
        instance = self.instance
        if line and line[0] >= _IN_RING:
            if instance.state.talks and not instance.broken:
                self._up.push(line[1 : 1 + RECORD_BYTES])
                self._model.drain(instance)
            return
        datagram, fds = _said(line)
        with suppress(BrokenPipeError, BlockingIOError):
            socket.send_fds(self.far, [datagram], fds)
        close_all(fds)
        instance.process.collect()
        instance.shed()
        if instance.state is State.READY and not self._asked:
            self._asked = True
            for _ in range(2):
                self._model.submit(_added(self._model))
            self._core.keep(asyncio.get_running_loop().create_task(self._check_ready()))

    async def _check_ready(self) -> None:
        with suppress(ServerError):
            await self.instance.check_ready()

    async def end(self) -> None:
        instance = self.instance
        segments = instance.segments
        instance.process.on_exit(0)
        assert instance.ended.done() and not instance.state.alive
        assert not instance.channel.in_flight and not self._model.in_flight
        self._model.instances = []
        self.far.close()
        for segment in segments:
            segment.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        for _ in range(4):
            await asyncio.sleep(0)  # what was to be done about a call that waits


def _added(model: Model) -> Request:
    block = model.allocate(128)
    inputs = ((0, _FP32, (4,), 0, 0, 16), (1, _FP32, (4,), 0, 64, 16))
    return Request([(block, 128)], inputs, (), lambda outcome, _: drop(outcome))


@contextmanager
def control_messages() -> Iterator[Check]:
    """Each part is a datagram of a stub's, or a record. Whatever it says, the server goes on, and what is not right ends the stub."""
    spawner = NoProcess()
    loop = asyncio.new_event_loop()
    complaints: List[Dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, about: complaints.append(about))
    quiet = logging.getLogger("stublet")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    with offered() as server, patch.object(bls, "_GRACE_SECONDS", 0.0):
        core, model = server.core, server.models["add_sub"]
        core.spawner = spawner  # type: ignore[assignment]
        core.device_memory.__class__ = _SharesDevices
        core.models["add_sub"] = {1: model}
        model.instance_limit = _MOST_BYTES
        model.begin_memory()

        async def begin() -> None:
            core.bls = Router(core)
            core._loop = model._loop = model.pump._loop = asyncio.get_running_loop()

        async def live(data: bytes) -> None:
            life = _Life(server, spawner)
            try:
                for line in data.split(b"\n\n"):
                    life.say(line)
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
            finally:
                await life.end()

        def check(data: bytes) -> None:
            before = _open_files()
            loop.run_until_complete(live(data))
            assert not complaints, complaints
            server.assert_nothing_held()
            gc.collect()  # an instance and its parts hold each other, and mappings have descriptors
            # Other threads of this process, as those of grpc, have files of their own, which come and go.
            assert eventually(lambda: _open_files() <= before), f"{_open_files()} descriptors, {before} before"

        loop.run_until_complete(begin())
        gc.collect()
        gc.freeze()  # only what an input leaves behind is looked at
        try:
            yield check
        finally:
            gc.unfreeze()
            loop.close()
            quiet.setLevel(level)


# ---- calls of other models ----


class _Called(Model):
    """A model that is called: whatever it is to execute has to be right for its stub, which would end otherwise."""

    stub: Stub
    ready = True

    def submit(self, request: Request) -> None:
        self.stub.hand(request)
        assert len(self.stub.records()) == 1
        self.stub.channel.in_flight.clear()
        self.stub.channel.loans.take_all_back()


@contextmanager
def _called() -> Iterator[Any]:
    with offered() as server:

        async def begin() -> None:
            server.core.bls = Router(server.core)

        asyncio.run(begin())
        stub = Stub()
        for name, model in server.models.items():
            model.__class__ = _Called
            model.stub = stub  # type: ignore[attr-defined]
            server.core.models[name] = {1: model}
        try:
            yield server, stub
        finally:
            stub.close()


@contextmanager
def call_in_ring() -> Iterator[Check]:
    """A record of a stub's with calls, whose inputs lie in its arena: each is refused, or is a request that the callee's stub takes."""
    with _called() as (server, caller):

        def check(data: bytes) -> None:
            try:
                message = decode_up(data)
                calls = message[3] if len(message) == 4 and message[0] == 1 else ()
                for number, *parts in calls:
                    if not parts:
                        continue
                    call = read_call(caller.channel.loans, number, *parts)
                    try:
                        callee = server.core.bls.find(call.model, call.version, True)
                        callee.submit(make_request(callee, call, lambda *_: None))
                    except ServerError:
                        for loan, _ in call.blocks:
                            loan.release()
            except ProtocolError:
                pass
            server.assert_nothing_held()

        yield check


@contextmanager
def call_of_fork() -> Iterator[Check]:
    """A datagram of a process that a model forked: it is refused, or a request that the callee's stub takes."""
    loop = asyncio.new_event_loop()
    with _called() as (server, _):

        class Caller:
            model = server.models["add_sub"]

        async def live(data: bytes) -> None:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            caller = ForkedCaller(Caller, near.fileno())  # type: ignore[arg-type]
            near.close()
            with far:
                far.send(data or b"\0")
                caller._on_readable()
                caller._request = None
                caller.close()

        def check(data: bytes) -> None:
            loop.run_until_complete(live(data))
            server.assert_nothing_held()

        try:
            yield check
        finally:
            loop.close()


TARGETS = [
    Target("control_socket", control_socket, [*TOKENS, b"\x92\xcc\xff\x05"], mutations=1000),
    Target("control_messages", control_messages, [*TOKENS, b"\n\n", bytes([OWN])], mutations=300),
    Target("call_in_ring", call_in_ring, [*TOKENS, b"add_sub", b"INPUT0", b"OUTPUT0"], mutations=1500),
    Target("call_of_fork", call_of_fork, [*TOKENS, b"add_sub", b"INPUT0", b"OUTPUT0"], mutations=1000),
]
