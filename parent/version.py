"""Version numbers."""

from importlib.metadata import version

STUBLET_VERSION = version("stublet")
TRITON_VERSION = "2.73.0"
"""The Triton whose behaviour this is; what the protocol's metadata reports, because clients compare it."""
