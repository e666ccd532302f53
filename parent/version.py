"""Version numbers."""

TRITON_VERSION = "2.73.0"
"""The Triton whose behaviour this is; what the protocol's metadata reports, because clients compare it."""


def stublet_version() -> str:
    """The version of this distribution."""
    from importlib.metadata import version

    return version("stublet")
