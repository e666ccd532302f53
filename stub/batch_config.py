"""What the configuration says of a batch as a whole: which inputs may differ in shape, which are made of others, which outputs are
scattered (spec 5.2)."""

from __future__ import annotations

import json
from typing import Any, Dict, FrozenSet, NamedTuple, Optional

from ..shm.dtype import BY_CONFIG_NAME, DataType


class BatchInput(NamedTuple):
    """An input that is made for each batch: what of ``source`` it tells, and its data type."""

    kind: str
    source: str
    dtype: DataType


class BatchConfig:
    """``batches``: the first dimension of every tensor counts batch items. ``optional``: of each input, whether it may be missing; None
    where the configuration is not known. ``ragged``: the inputs that may have other shapes in each request. ``made``: the inputs that are
    made for each batch. ``scattered``: the outputs that are split as an input is, which they name."""

    def __init__(self, config: Optional[Dict[str, Any]]) -> None:
        """Args:
        config: as models are told; None where nobody tells, and then it is taken for that of a model that batches.
        """
        self.batches = config is None or config["max_batch_size"] > 0
        self.optional: Optional[Dict[str, bool]] = None
        self.ragged: FrozenSet[str] = frozenset()
        self.made: Dict[str, BatchInput] = {}
        self.scattered: Dict[str, str] = {}
        if config is None:
            return
        self.optional = {one["name"]: one.get("optional", False) for one in config["input"]}
        self.ragged = frozenset([one["name"] for one in config["input"] if one.get("allow_ragged_batch")])
        for section in config.get("batch_input", ()):
            made = BatchInput(section["kind"], section["source_input"][0], BY_CONFIG_NAME[section["data_type"]])
            self.made.update(dict.fromkeys(section["target_name"], made))
        for section in config.get("batch_output", ()):
            self.scattered.update(dict.fromkeys(section["target_name"], section["source_input"][0]))

    @classmethod
    def of(cls, model_config: str) -> BatchConfig:
        """That of ``args["model_config"]``; "" where there is none."""
        return cls(json.loads(model_config) if model_config else None)
