"""``sequence_batching`` of a configuration (spec 5.4): what it may be, what it says to the scheduler, and what a request must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Hashable, Iterator, List, NamedTuple, Tuple, Union

from ...shm.dtype import BOOL, BY_CONFIG_NAME, FP32, INT32, DataType
from ..scheduling.batching import describer
from .batcher import Member, SequenceBatcher
from .strategies import Direct, Oldest

if TYPE_CHECKING:
    from ..request import Request

START, END = 1, 2
"""The flags of a request that begins and that ends a sequence."""

_KINDS = ("START", "READY", "END", "CORRID")
_VALUES = {"int32_false_true": INT32, "fp32_false_true": FP32, "bool_false_true": BOOL}
_EITHER = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"
_CORRID_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_IDLE_US = 1_000_000


class Control(NamedTuple):
    """An input that tells the model of the sequence. ``kind``: one of START, READY, END, CORRID. ``values``: what it is when that is false and
    when it is true; none for CORRID."""

    name: str
    kind: str
    dtype: DataType
    values: Tuple[Union[int, float, bool], ...] = ()


def is_sequenced(config: Any) -> bool:
    """Whether requests belong to sequences."""
    return bool(config.WhichOneof("scheduling_choice") == "sequence_batching")


def check_sequencing(config: Any, name: str) -> None:
    """Checks the section, but for its ``state`` (``state_config``).

    Raises:
        ValueError: with Triton's text where it has one.
    """
    if not is_sequenced(config):
        return
    section = config.sequence_batching
    kinds: Dict[str, str] = {}
    names: Dict[str, str] = {}
    inputs = {tensor.name for tensor in config.input}
    for given in section.control_input:
        if not given.name:
            raise ValueError(f"sequence batching control tensor must have a name for {name}")
        if given.name in inputs:
            raise ValueError(f"sequence batching control tensor '{given.name}' is an input of its own for {name}")
        for control in given.control:
            kind = _kind(control)
            if kind in kinds:
                raise ValueError(f"sequence batching specifies multiple {_full(kind)} tensors for {name}")
            if given.name in names:
                raise ValueError(f"sequence batching control tensor '{given.name}' is specified for multiple control kinds for {name}")
            kinds[kind], names[given.name] = given.name, kind
            _check_control(control, kind, name)
    strategy = section.WhichOneof("strategy_choice")
    if strategy == "oldest":
        for size in section.oldest.preferred_batch_size:
            if size <= 0:
                raise ValueError(f"sequence batching preferred batch size must be positive for {name}")
            if size > max(config.max_batch_size, 1):
                raise ValueError(f"sequence batching preferred batch size must be <= max batch size for {name}")
        if section.oldest.max_candidate_sequences < 0:
            raise ValueError(f"sequence batching max candidate sequences must be non-negative for {name}")
    if strategy == "direct" and not 0 <= section.direct.minimum_slot_utilization <= 1:
        raise ValueError(f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {name}")


def _check_control(control: Any, kind: str, name: str) -> None:
    given = [field for field in _VALUES if len(getattr(control, field))]
    if kind == "CORRID":
        if given:
            raise ValueError(f"sequence batching must not specify either {_EITHER} for {_full(kind)} for {name}")
        if _type_name(control) not in _CORRID_TYPES:
            allowed = ", ".join(_CORRID_TYPES[:-1])
            raise ValueError(
                f"unexpected data type for control {_full(kind)} for {name}. Allowed data types are {allowed} and {_CORRID_TYPES[-1]}"
            )
        return
    if not given:
        raise ValueError(f"sequence batching must specify either {_EITHER} for {_full(kind)} for {name}")
    if len(given) > 1:
        raise ValueError(f"sequence batching specifies more than one from {_EITHER.replace(' or ', ' and ')} for {_full(kind)} for {name}")
    if len(getattr(control, given[0])) != 2:
        raise ValueError(f"sequence batching control '{given[0]}' must have exactly 2 entries for {_full(kind)} for {name}")


def controls_of(config: Any) -> List[Control]:
    """The control inputs of a checked configuration."""
    return list(_controls(config.sequence_batching))


def _controls(section: Any) -> Iterator[Control]:
    for given in section.control_input:
        for control in given.control:
            kind = _kind(control)
            if kind == "CORRID":
                yield Control(given.name, kind, BY_CONFIG_NAME[_type_name(control)])
            else:
                field = next(field for field in _VALUES if len(getattr(control, field)))
                yield Control(given.name, kind, _VALUES[field], tuple(getattr(control, field)))


def _kind(control: Any) -> str:
    kind: str = _KINDS[control.kind]
    return kind


def _full(kind: str) -> str:
    return f"CONTROL_SEQUENCE_{kind}"


def _type_name(control: Any) -> str:
    return str(control.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[control.data_type].name)


def batcher_for(config: Any, on_end: Callable[[Hashable], None], most: int) -> SequenceBatcher[Any, Request]:
    """The scheduler of a model with that configuration, which was checked.

    Args:
        on_end: is called with the id of each sequence that has ended.
        most: requests that may wait, 0 for any number.
    """
    section = config.sequence_batching
    idle_ns = (section.max_sequence_idle_microseconds or _IDLE_US) * 1000
    return SequenceBatcher(strategy_of(config), member_describer(config), idle_ns, section.iterative_sequence, on_end, most)


def strategy_of(config: Any) -> Union[Direct, Oldest]:
    """How requests of a model with that configuration, which was checked, come together."""
    section = config.sequence_batching
    size = max(config.max_batch_size, 1)
    if section.WhichOneof("strategy_choice") == "oldest":
        oldest = section.oldest
        preferred = tuple(oldest.preferred_batch_size) or (size,)
        return Oldest(oldest.max_candidate_sequences or size, size, preferred, oldest.max_queue_delay_microseconds * 1000)
    return Direct(size, section.direct.max_queue_delay_microseconds * 1000, section.direct.minimum_slot_utilization)


def member_describer(config: Any) -> Callable[[Request], Member]:
    """What tells the scheduler what counts of a request, which has an id and flags by now, to the model of that configuration."""
    describe = describer(config)

    def describe_member(request: Request) -> Member:
        _, shapes, _, timeout_ns = describe(request)
        _, _, _, sequence, flags, *_ = request.extras
        return Member(sequence, bool(flags & START), bool(flags & END), timeout_ns, shapes)

    return describe_member
