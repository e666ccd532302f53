"""The one error that ends a benchmark with a sentence instead of a traceback."""

from __future__ import annotations


class BenchmarkError(Exception):
    """A measurement cannot be made, or would be wrong; the message says why and what to do."""
