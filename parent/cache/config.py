"""``response_cache`` of a configuration (spec 5.5): who cannot have it."""

from __future__ import annotations

from typing import Any


def check_response_cache(config: Any, name: str) -> None:
    """Checks the section.

    Raises:
        ValueError: with Triton's text.
    """
    if not config.response_cache.enable:
        return
    unsupported = ""
    if config.model_transaction_policy.decoupled:
        unsupported = "'decoupled' transaction policy"
    elif config.HasField("sequence_batching"):
        unsupported = "sequence batching scheduler"
    if unsupported:
        raise ValueError(f"Response Cache does not currently support model {name} with {unsupported}. Please disable the response cache.")
