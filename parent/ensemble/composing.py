"""What an ensemble asks of the models that it consists of (spec 5.4); the texts are Triton's."""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, Mapping, NamedTuple, Sequence, Tuple

from ..model_config import ConfigError, messages
from .flow import REQUEST


class Node(NamedTuple):
    """A tensor as one of those has it that read or write it. ``dims`` without that of the batch, ``full`` with it."""

    model: str
    data_type: int
    dims: Tuple[int, ...]
    full: Tuple[int, ...]


def check_composing(name: str, config: Any, models: Sequence[Any]) -> None:
    """Checks the steps of an ensemble against the configurations of their models.

    Args:
        config: that of the ensemble, which was checked by itself.
        models: those of the models, one for each step.

    Raises:
        ConfigError: what does not fit.
    """
    nodes = {tensor.name: _node(name, config, tensor) for tensor in (*config.input, *config.output)}
    for step, model in zip(config.ensemble_scheduling.step, models):
        if config.max_batch_size > model.max_batch_size > 0:
            raise ConfigError(
                f"ensemble {name} allows maximum batch size {config.max_batch_size}, but it contains model {step.model_name} which only allows "
                f"maximum batch size to be {model.max_batch_size}"
            )
        inputs = {tensor.name: tensor for tensor in model.input}
        outputs = {tensor.name: tensor for tensor in model.output}
        for tensor in model.input:
            if tensor.name not in step.input_map and not tensor.optional:
                raise ConfigError(
                    f"in ensemble {name}, input {tensor.name} in model {step.model_name} is not mapped to any ensemble tensors"
                )
        for own, tensor in sorted(step.input_map.items()):
            if own not in inputs:
                raise ConfigError(
                    f"in ensemble {name}, ensemble tensor {tensor} is mapping to non-existing input {own} in model {step.model_name}"
                )
            _check_same(name, tensor, nodes, _node(step.model_name, model, inputs[own]))
        for own, tensor in sorted(step.output_map.items()):
            if own not in outputs:
                raise ConfigError(
                    f"in ensemble {name}, ensemble tensor {tensor} is mapped from non-existing output {own} in model {step.model_name}"
                )
            _check_same(name, tensor, nodes, _node(step.model_name, model, outputs[own]))
    _check_decoupled(name, needs_of(config), [model.model_transaction_policy.decoupled for model in models])


def _node(name: str, config: Any, tensor: Any) -> Node:
    dims = tuple(tensor.dims)
    return Node(name, tensor.data_type, dims, (-1, *dims) if config.max_batch_size > 0 else dims)


def _check_same(name: str, tensor: str, nodes: Dict[str, Node], node: Node) -> None:
    first = nodes.setdefault(tensor, node)
    where = f"in ensemble {name}, ensemble tensor {tensor}: inconsistent"
    if first.data_type != node.data_type:
        one, other = (messages.DataType.Name(each.data_type) for each in (first, node))
        raise ConfigError(
            f"{where} data type: {one} is inferred from model {first.model} while {other} is inferred from model {node.model}"
        )
    # A tensor may pass between models of which one batches and the other has the batch among its dims, or takes single items.
    if not matches(first.dims, node.dims) and not matches(first.full, node.full):
        raise ConfigError(
            f"{where} shape: {_text(first.full)} is inferred from model {first.model} while {_text(node.full)} is inferred from model "
            f"{node.model}"
        )


def _text(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def matches(dims: Sequence[int], others: Sequence[int]) -> bool:
    """Whether shapes are the same, -1 being any size."""
    return len(dims) == len(others) and all(dim == other or -1 in (dim, other) for dim, other in zip(dims, others))


def needs_of(config: Any) -> List[Tuple[int, ...]]:
    """For each step the origins of its inputs, as ``flow`` numbers them; in the last place, those of the outputs of the ensemble."""
    origins = origins_of(config)
    needs = [tuple(origins[tensor] for tensor in step.input_map.values()) for step in config.ensemble_scheduling.step]
    return [*needs, tuple(origins[tensor.name] for tensor in config.output)]


def origins_of(config: Any) -> Dict[str, int]:
    """Where each tensor of an ensemble comes from."""
    origins = {tensor.name: REQUEST for tensor in config.input}
    for number, step in enumerate(config.ensemble_scheduling.step, 1):
        origins.update((tensor, number) for tensor in step.output_map.values())
    return origins


def _check_decoupled(name: str, needs: Sequence[Sequence[int]], decoupled: Sequence[bool]) -> None:
    """What is executed together, and what is answered together, follows from the responses of the same decoupled step, or from none."""
    labels: Dict[int, Hashable] = {REQUEST: None}
    todo = list(range(len(needs)))
    while todo:
        ready = [taker for taker in todo if all(origin in labels for origin in needs[taker])]
        for taker in ready:
            found = {labels[origin] for origin in needs[taker]}
            if len(found) > 1:
                # Triton names the ensemble where it means the model.
                raise ConfigError(f"in ensemble {name}, step of model '{name}' receives inputs originated from different decoupled models")
            if taker < len(decoupled):
                labels[taker + 1] = taker if decoupled[taker] else next(iter(found), None)
            todo.remove(taker)


def circle(name: str, parts: Mapping[str, Sequence[str]]) -> str:
    """The ensemble that closes a circle which leads from an ensemble back to it, "" if there is none.

    Args:
        parts: the models of each ensemble.
    """
    seen = {name}
    todo = [name]
    while todo:
        one = todo.pop()
        if name in parts.get(one, ()):
            return one
        more = [part for part in parts.get(one, ()) if part not in seen]
        seen.update(more)
        todo += more
    return ""
