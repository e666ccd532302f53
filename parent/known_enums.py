"""Numbers that no name of an enumeration stands for: protobuf takes them, in text and JSON, for values that a later version may know."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def check_enums(message: Any) -> None:
    """Checks every enumeration that is set in a message.

    Raises:
        ValueError: a number that has no name; says of which field.
    """
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            _check(entry, value.values())
        else:
            _check(field, value if field.is_repeated else [value])


def _check(field: FieldDescriptor, values: Any) -> None:
    if field.message_type is not None:
        for value in values:
            check_enums(value)
    elif field.enum_type is not None:
        for value in values:
            if value not in field.enum_type.values_by_number:
                raise ValueError(f"{value} of '{field.name}' is no value of {field.enum_type.name}")
