"""The control socket: messages and descriptors arrive together, and nothing that comes can hurt or leak."""

from __future__ import annotations

import os
import socket
from typing import Any, Iterator, List, Tuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stublet.shm import control
from stublet.shm.control import ControlSocket, close_all
from stublet.shm.errors import PeerGone, ProtocolError
from stublet.shm.message import pack

Ends = Tuple[ControlSocket, ControlSocket]

BIG = "x" * (256 << 10)


@pytest.fixture
def ends() -> Iterator[Ends]:
    near, far = ControlSocket.pair()
    yield near, ControlSocket(far)
    near.close()
    far.close()


@pytest.fixture
def raw() -> Iterator[Tuple[socket.socket, ControlSocket]]:
    """An end that writes what it likes, and the one under test."""
    near, far = ControlSocket.pair()
    yield far, near
    near.close()
    far.close()


def file_with(data: bytes, size: int = -1) -> int:
    fd = os.memfd_create("stublet-test")
    os.write(fd, data)
    if size >= 0:
        os.ftruncate(fd, size)
    return fd


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


@pytest.mark.parametrize("message", [(1,), (9, "text", b"bytes", None, True, 1.5, (1, (2,))), (2, {"a": 1}), (3, "ü" * 1000), (4, BIG)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_message_arrives_with_its_descriptors(ends: Ends, message: Tuple[Any, ...], count: int) -> None:
    sent = [file_with(b"") for _ in range(count)]
    for sender, receiver in (ends, ends[::-1]):
        sender.send(message, sent)
        arrived, fds = receiver.receive()
        assert arrived == message
        assert len(fds) == count and all(map(same, sent, fds)), "in the order in which they were sent"
        assert not any(map(os.get_inheritable, fds)), "no program that the model starts inherits them"
        close_all(fds)
    close_all(sent)


def test_messages_keep_their_order_and_their_borders(ends: Ends) -> None:
    messages = [(i, "x" * size) for i, size in enumerate([0, 70_000, 1, 65_000, 66_000])]
    for message in messages:
        ends[0].send(message)
    assert [ends[1].receive() for _ in messages] == [(message, []) for message in messages]


@given(st.binary(max_size=300))
@example(b"\x92\xcc\xff\x05")  # a message in a file, without a file
@example(b"\xc0" * (65 << 10))  # longer than agreed
@example(pack((0xFF,)))
def test_garbage_is_a_protocol_error(data: bytes) -> None:
    near, far = ControlSocket.pair()
    fd = file_with(b"")
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(far, [data], [fd])
    try:
        message, fds = near.receive()
        assert type(message) is tuple and message
        close_all(fds)
    except ProtocolError:
        pass
    assert len(os.listdir("/proc/self/fd")) == before, "its descriptor was closed"
    close_all([fd])
    near.close()
    far.close()


IN_FILE = pack((7, "text"))

# What takes far more memory when it is read than it has bytes.
MAPS = pack((7, [[{}] * 16_000] * 100))
LONG = b"\xdd\xff\xff\xff\xff" * 100 + bytes(1000)


@pytest.mark.parametrize(
    "message, content, size, reason",
    [
        ((0xFF, len(IN_FILE) + 1), IN_FILE, -1, "shorter than announced"),
        ((0xFF, len(IN_FILE) - 1), IN_FILE, -1, "shorter than announced"),
        ((0xFF, -1), IN_FILE, -1, "shorter than announced"),
        ((0xFF, "5"), IN_FILE, -1, "comes with its length and its descriptor"),
        ((0xFF,), IN_FILE, -1, "comes with its length and its descriptor"),
        ((0xFF, 5, 5), IN_FILE, -1, "comes with its length and its descriptor"),
        ((0xFF, 0), b"", -1, "not a message"),
        ((0xFF, 3), b"\xc1\xc1\xc1", -1, "not a message"),
        ((0xFF, 1 << 60), b"", 1 << 60, "in a file with holes"),
        ((0xFF, len(MAPS)), MAPS, -1, "more than 1048576 elements"),
        ((0xFF, len(LONG)), LONG, -1, "exceeds max_array_len"),
    ],
)
def test_a_file_that_is_not_a_message_is_refused(
    raw: Tuple[socket.socket, ControlSocket], message: Tuple[Any, ...], content: bytes, size: int, reason: str
) -> None:
    fds = [file_with(b"another"), file_with(content, size)]
    socket.send_fds(raw[0], [pack(message)], fds)
    close_all(fds)
    with pytest.raises(ProtocolError, match=reason):
        raw[1].receive()


def test_a_message_that_is_too_long_is_neither_sent_nor_taken(
    raw: Tuple[socket.socket, ControlSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_MOST_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"^a control message of 10000\d bytes is longer than 100000$"):
        raw[1].send((7, "x" * 100_000))
    content = pack((7, "x" * 100_000))
    file = file_with(content)
    socket.send_fds(raw[0], [pack((0xFF, len(content)))], [file])
    os.close(file)
    with pytest.raises(ProtocolError, match="is longer than 100000"):
        raw[1].receive()


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "file on a disk", "device"])
def test_a_descriptor_that_is_no_memory_is_refused(raw: Tuple[socket.socket, ControlSocket], kind: str) -> None:
    fds: List[int] = []
    if kind == "pipe":
        fds = list(os.pipe())
    elif kind == "socket":
        fds = [end.detach() for end in socket.socketpair()]
    else:
        fds = [os.open({"directory": "/proc/self", "device": "/dev/null"}.get(kind, __file__), os.O_RDONLY)]
    socket.send_fds(raw[0], [pack((0xFF, os.fstat(fds[0]).st_size))], fds[:1])
    close_all(fds)
    with pytest.raises(ProtocolError, match="cannot be read"):
        raw[1].receive()


def test_more_descriptors_than_agreed_are_refused(raw: Tuple[socket.socket, ControlSocket]) -> None:
    fds = [file_with(b"") for _ in range(20)]
    socket.send_fds(raw[0], [pack((1,))], fds)
    close_all(fds)
    with pytest.raises(ProtocolError, match="has more descriptors, than agreed"):
        raw[1].receive()


@pytest.mark.parametrize("message", [(1,), (1, BIG)])
def test_the_end_of_the_peer_is_told(message: Tuple[Any, ...]) -> None:
    near, far = ControlSocket.pair()
    with socket.socket(fileno=os.dup(far.fileno())) as other:
        ControlSocket(other).send((5,))
    far.close()
    assert near.receive() == ((5,), []), "what was sent before the end still arrives"
    with pytest.raises(PeerGone, match="closed"):
        near.receive()
    with pytest.raises(PeerGone, match="closed"):
        near.send(message, [near.fileno()])
    near.close()


def test_what_was_said_before_the_end_is_heard_though_something_was_left_unread() -> None:
    near, far = ControlSocket.pair()
    near.send((1,))
    with far:
        far.sendmsg([pack((2, "last words"))])
    assert near.receive() == ((2, "last words"), [])
    with pytest.raises(PeerGone, match="closed"):
        near.receive()
    near.close()


def test_the_end_of_a_peer_that_has_not_read_is_told() -> None:
    near, far = ControlSocket.pair()
    near.send((1,))
    far.close()
    with pytest.raises(PeerGone):
        near.receive()
    near.close()


def test_nothing_to_read(ends: Ends) -> None:
    ends[0].set_blocking(False)
    with pytest.raises(BlockingIOError):
        ends[0].receive()
    ends[1].send((1,))
    assert ends[0].receive() == ((1,), [])


@pytest.mark.parametrize("message", [(1, "x" * 1000), (1, BIG)])
def test_a_peer_that_does_not_read_is_told(ends: Ends, message: Tuple[Any, ...]) -> None:
    ends[0].set_blocking(False)
    with pytest.raises(TimeoutError, match="does not read"):
        for _ in range(100_000):
            ends[0].send(message)
    while True:  # what is under way holds descriptors
        ends[1].set_blocking(False)
        try:
            assert ends[1].receive() == (message, [])
        except BlockingIOError:
            return


def test_closing_what_is_closed() -> None:
    fd = file_with(b"")
    close_all([fd, fd, -1])
