"""What the configuration of an ensemble has to be, apart from the models that it names (spec 5.4); the texts are Triton's."""

from __future__ import annotations

from typing import Any, Dict, List, Set

PLATFORM = "ensemble"


def is_ensemble(config: Any) -> bool:
    """Whether a configuration is that of an ensemble."""
    return bool(config.platform == PLATFORM)


def step_models(config: Any) -> List[str]:
    """The names of the models that an ensemble consists of, each once."""
    return list(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step))


def check_ensemble_identity(config: Any, name: str) -> None:
    """Checks what must be known before anything is loaded for a model, of any that is or is not an ensemble.

    Raises:
        ValueError: what is wrong.
    """
    if not is_ensemble(config):
        if config.HasField("ensemble_scheduling"):
            raise ValueError(f"ensemble scheduling cannot be set for model '{name}' whose platform is not ensemble")
        return
    if config.backend:
        raise ValueError(f"Ensemble model '{name}' must have platform type 'ensemble' and empty backend type")
    if not config.HasField("ensemble_scheduling"):
        raise ValueError(f"ensemble scheduling must be set for ensemble {name} whose platform is ensemble")


def check_ensemble(config: Any, name: str) -> None:
    """Checks the section ``ensemble_scheduling``, and what stands beside it.

    Raises:
        ValueError: what is wrong.
    """
    if not is_ensemble(config):
        return
    if config.instance_group:
        raise ValueError(f"instance group should not be specified for ensemble '{name}'")
    if config.HasField("optimization"):
        raise ValueError(f"optimization should not be specified for ensemble '{name}'")
    if config.model_warmup:
        raise ValueError(f"model_warmup can not be specified for ensemble '{name}'")
    _check_steps(config, name)
    _check_flow(config, name)


def _check_steps(config: Any, name: str) -> None:
    steps = config.ensemble_scheduling.step
    if not steps:
        raise ValueError(f"must specify 'step' for ensemble '{name}'")
    inputs = {tensor.name for tensor in config.input}
    written: Set[str] = set()
    for number, step in enumerate(steps):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                raise ValueError(f"must specify '{field}' in step {number} of ensemble '{name}'")
        for _, tensor in sorted(step.output_map.items()):
            if tensor in inputs:
                raise ValueError(f"ensemble input '{tensor}' of ensemble '{name}' cannot be in the output map of step {number}")
            if tensor in written:
                raise ValueError(f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble '{name}' step {number}")
            written.add(tensor)


def _check_flow(config: Any, name: str) -> None:
    """Every tensor comes from somewhere and goes somewhere."""
    steps = config.ensemble_scheduling.step
    read = {tensor for step in steps for tensor in step.input_map.values()}
    # Of each tensor that a step writes, those that it is made of.
    sources = {tensor: list(step.input_map.values()) for step in steps for tensor in step.output_map.values()}
    inputs = [tensor.name for tensor in config.input]
    outputs = [tensor.name for tensor in config.output]
    for tensor in inputs:
        if tensor not in read and tensor not in outputs:
            raise ValueError(f"ensemble input '{tensor}' for ensemble {name}' is not used")
    for tensor in outputs:
        if tensor not in sources and tensor not in inputs:
            raise ValueError(f"ensemble output '{tensor}' for ensemble {name}' is not used")
    ready = _connected(inputs, sources)
    for tensor in outputs:
        if tensor not in ready:
            raise ValueError(
                f"output '{tensor}' for ensemble '{name}' is not written: at least one of its depending tensors, "
                f"'{_gap(tensor, sources, ready)}', is not connected"
            )
    for tensor in sources:
        if tensor not in read and tensor not in outputs:
            raise ValueError(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")
    for tensor in sources:
        if tensor not in ready:
            raise ValueError(
                f"ensemble tensor '{tensor}' for ensemble '{name}' is not written: at least one of its depending tensors, "
                f"'{_gap(tensor, sources, ready)}', is not connected"
            )


def _connected(inputs: List[str], sources: Dict[str, List[str]]) -> Set[str]:
    """The tensors that the inputs lead to."""
    ready = set(inputs)
    while True:
        more = {tensor for tensor, needed in sources.items() if tensor not in ready and ready.issuperset(needed)}
        if not more:
            return ready
        ready |= more


def _gap(tensor: str, sources: Dict[str, List[str]], ready: Set[str]) -> str:
    """The first tensor on the way back from one that is not ready, beyond which there is none that is missing and was not passed."""
    passed = {tensor}
    while True:
        behind = next((one for one in sources.get(tensor, ()) if one not in ready and one not in passed), None)
        if behind is None:
            return tensor
        passed.add(behind)
        tensor = behind
