"""What can go wrong between two processes that share memory."""

from __future__ import annotations


class ShmError(Exception):
    """Base of every error of this room."""


class ProtocolError(ShmError):
    """The other side sent something that the protocol does not allow.

    Raised for any bytes that are not a message, and for any index, offset or size that lies outside what was agreed. The
    peer can no longer be trusted: fail what it was working on and end it.
    """


class OutOfSharedMemory(ShmError):
    """The system has no room for another segment. Free memory, send less at once, or raise the container's limit."""


class PeerGone(ShmError):
    """The other end of the control socket is closed: its process ended."""
