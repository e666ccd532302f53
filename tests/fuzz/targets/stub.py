"""What a stub says over its control socket, and what its model asks of other models."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

from stub_end import OWN, Stub
from stublet.parent.bls import Router, make_request
from stublet.parent.errors import ServerError
from stublet.parent.forked_caller import ForkedCaller
from stublet.parent.instance import Instance
from stublet.parent.model import Model
from stublet.parent.news import read_call
from stublet.parent.placement.instance_groups import instance_specs
from stublet.parent.placement.placement import ANYWHERE
from stublet.parent.request import Request
from stublet.shm.control import GROW, ControlSocket, close_all
from stublet.shm.errors import PeerGone, ProtocolError
from stublet.shm.message import decode_up, unpack

from ..offered import offered
from ..target import Check, Target
from .rings import TOKENS

_KINDS_OF_FILE = 4


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
        assert _open_files() == before

    yield check


# ---- the life of an instance ----


class _NoProcess:
    """Takes the place of the fork server: the test is the process."""

    def spawn(self, stub: Any, interpreter: Any, environment: Any, placement: Any, fds: Any) -> None:
        self.far = socket.socket(fileno=os.dup(fds[0]))


@contextmanager
def control_messages() -> Iterator[Check]:
    """Each line is a datagram of a stub's. Whatever it says, the server goes on, and what is not right ends the stub."""
    spawner = _NoProcess()
    loop = asyncio.new_event_loop()
    complaints: List[Dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, about: complaints.append(about))
    quiet = logging.getLogger("stublet")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    with offered() as server:
        server.core.spawner = spawner  # type: ignore[assignment]
        (spec,) = instance_specs(server.models["add_sub"].config)

        async def live(data: bytes) -> None:
            server.core.bls = Router(server.core)
            server.core._loop = asyncio.get_running_loop()
            instance = Instance(server.models["add_sub"], spec, ANYWHERE)
            instance.start()
            far = spawner.far
            try:
                for line in data.split(b"\n\n"):
                    datagram, fds = _said(line)
                    # What is asked for is given: this much memory need not be.
                    if not _asks_for_much(datagram):
                        socket.send_fds(far, [datagram], fds)
                        instance.process.collect()
                        await asyncio.sleep(0)
                    close_all(fds)
                await asyncio.sleep(0)
            finally:
                segments = instance.segments
                instance.process.on_exit(0)
                far.close()
                for segment in segments:
                    segment.close()
                for task in list(server.core._kept):
                    task.cancel()
                await asyncio.sleep(0)

        def check(data: bytes) -> None:
            before = _open_files()
            loop.run_until_complete(live(data))
            assert not complaints, complaints
            gc.collect()  # an instance and its parts hold each other, and mappings have descriptors
            assert _open_files() == before

        loop.run_until_complete(asyncio.sleep(0))
        gc.collect()
        gc.freeze()  # only what an input leaves behind is looked at
        try:
            yield check
        finally:
            gc.unfreeze()
            loop.close()
            quiet.setLevel(level)


def _asks_for_much(datagram: bytes) -> bool:
    try:
        kind, *parts = unpack(datagram)
    except ProtocolError:
        return False
    return bool(kind == GROW and parts and type(parts[0]) is int and parts[0] > 1 << 20)


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
