"""Benchmarks of stublet: load over HTTP, the in-process round trip, a model's own calls, start-up and memory.

Run `python -m benchmarks --help` from the repository root; README.md says what the figures mean.
"""
