"""``batch_input`` and ``batch_output`` of a configuration (spec 5.2): what they may be. The stub makes the ones and scatters the others."""

from __future__ import annotations

from typing import Any, Set


def check_batch_io(config: Any, name: str) -> None:
    """Checks both sections.

    Raises:
        ValueError: with Triton's text where it has one.
    """
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    targets: Set[str] = set()
    for section in config.batch_input:
        _check_source("batch input", section, inputs, name)
        data_type = _name_of(section, "data_type", section.data_type)
        if data_type == "TYPE_INVALID":
            raise ValueError("unexpected batch input data type 'TYPE_INVALID'")
        if data_type not in ("TYPE_INT32", "TYPE_FP32"):
            raise ValueError(f"batch input data type must be TYPE_INT32 or TYPE_FP32 for {name}")
        for target in section.target_name:
            if target in inputs or target in targets:
                raise ValueError(f"batch input target name '{target}' can only be specified once, and not for an input, for {name}")
            targets.add(target)
    targets = set()
    for section in config.batch_output:
        _check_source("batch output", section, inputs, name)
        for target in section.target_name:
            if target not in outputs:
                raise ValueError(f"unknown target output name '{target}' for {name}")
            if target in targets:
                raise ValueError(f"target output name '{target}' can only be specified once for {name}")
            targets.add(target)


def _check_source(what: str, section: Any, inputs: Set[str], name: str) -> None:
    if len(section.source_input) != 1:
        kind = _name_of(section, "kind", section.kind)
        raise ValueError(f"{what} kind '{kind}' expects 1 source input, got {len(section.source_input)} for {name}")
    if section.source_input[0] not in inputs:
        raise ValueError(f"unknown source input name '{section.source_input[0]}' for {name}")


def _name_of(section: Any, field: str, number: int) -> str:
    values = section.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return str(values[number].name) if number in values else str(number)
