"""Sequence batching: requests that belong together (spec 5.4)."""
