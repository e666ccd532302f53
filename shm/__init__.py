"""Shared memory and messages: segments, arenas, rings, doorbells, tensor descriptors.

This room knows of no model and no network, and needs only the standard library, numpy and msgpack (pure Python will do),
because the stub's half of it runs under any interpreter. ``docs/shared-memory.md`` is its theory of operation.
"""
