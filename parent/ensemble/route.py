"""The steps of an ensemble, bound to the models that serve them now, and what of them runs for the outputs that a client wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple

from ..model_config import ConfigError
from .composing import check_composing, needs_of, origins_of
from .flow import Course, course_of
from .tensors import AnswerPlan, Source, StepPlan, plan_answer, plan_step

if TYPE_CHECKING:
    from ..servable import Servable

Wanted = Optional[Tuple[int, ...]]
"""Outputs by their indices in the configuration; None for all."""

_REMEMBERED = 1024


class Bound:
    """A step's model as it serves now: ``model``, found in ``versions``."""

    __slots__ = ("model", "name", "version", "versions")

    def __init__(self, core: Any, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.versions: Optional[Mapping[int, Servable]] = core.models.get(name)
        served = {number: one for number, one in (self.versions or {}).items() if one.takes_requests}
        number = version if version >= 0 else max(served, default=-1)
        self.model: Optional[Servable] = served.get(number)

    def holds(self, models: Mapping[str, Mapping[int, Servable]]) -> bool:
        """Whether it is still what serves."""
        return self.model is not None and models.get(self.name) is self.versions and self.model.takes_requests


class Step:
    """A step on a route. ``inputs``: the tensors of the ensemble by the names that the model has for them; ``outputs``: the same of those
    that are needed; ``requested`` as a message has them."""

    __slots__ = ("bound", "inputs", "model", "outputs", "plain_extras", "plans", "requested")

    def __init__(self, bound: Bound, inputs: Dict[str, str], outputs: Dict[str, str]) -> None:
        assert bound.model is not None
        self.bound = bound
        self.model: Servable = bound.model
        self.inputs = inputs
        self.outputs = outputs
        indices = tuple(index for index, spec in enumerate(self.model.outputs) if spec.name in outputs)
        self.requested: Wanted = None if len(indices) == len(self.model.outputs) else indices
        self.plain_extras: Tuple[Any, ...] = () if self.requested is None else ("", self.requested, "{}", 0, 0, 0)
        self.plans: Dict[Hashable, StepPlan] = {}

    def plan(self, sources: Sequence[Source], batched: Dict[str, bool]) -> StepPlan:
        """How the request to it is made from these sources.

        Raises:
            InvalidArgument: the model does not take them.
        """
        key = sources[0].shape if len(sources) == 1 else tuple([source.shape for source in sources])
        plan = self.plans.get(key)
        if plan is None:
            plan = plan_step(self.model, sources, self.inputs, batched)
            _remember(self.plans, key, plan)
        return plan


class Route:
    """``course``: what has to run. ``steps``: all, in their order."""

    __slots__ = ("_answers", "_device_takers", "_ensemble", "batched", "course", "steps", "wanted")

    def __init__(self, ensemble: Servable, binding: Binding, wanted: Wanted) -> None:
        config = ensemble.config
        needs = needs_of(config)
        if wanted is not None:
            origins = origins_of(config)
            needs[-1] = tuple(origins[config.output[index].name] for index in wanted)
        section = config.ensemble_scheduling
        self.course: Course = course_of(needs, binding.decoupled, section.max_inflight_requests)
        self.batched = binding.batched
        self.wanted = wanted
        running = [step for step, origins in zip(section.step, self.course.needs) if origins]
        needed = {tensor for step in running for tensor in step.input_map.values()}
        needed.update(tensor.name for index, tensor in enumerate(config.output) if wanted is None or index in wanted)
        self.steps = [
            Step(bound, dict(sorted(step.input_map.items())), {own: tensor for own, tensor in step.output_map.items() if tensor in needed})
            for bound, step in zip(binding.bounds, section.step)
        ]
        models = binding.models
        self._device_takers = [_device_takers(model, takers, models) for model, takers in zip(models, self.course.takers[1:])]
        self._ensemble = ensemble
        self._answers: Dict[Hashable, AnswerPlan] = {}

    def keeps_on_device(self, step: int, answer: bool) -> bool:
        """Whether all who need the outputs of a step take device memory now: a model that found that it cannot open any takes none.

        Args:
            answer: the answer may be there.
        """
        found = self._device_takers[step]
        if found is None:
            return False
        is_answer, takers = found
        return (answer or not is_answer) and False not in [taker.takes_device_inputs for taker in takers]

    def plan_answer(self, sources: Sequence[Source], writes: Tuple[int, ...]) -> AnswerPlan:
        """How the answer is made from these sources.

        Args:
            writes: the indices of outputs that go to regions of the client's.

        Raises:
            Unsupported: one of these cannot.
        """
        key = (writes, *[source.shape for source in sources])
        plan = self._answers.get(key)
        if plan is None:
            plan = plan_answer(self._ensemble, sources, self.wanted, self.batched, writes)
            _remember(self._answers, key, plan)
        return plan


def _device_takers(model: Servable, takers: Sequence[int], models: Sequence[Servable]) -> Optional[Tuple[bool, Tuple[Servable, ...]]]:
    """Who needs a model's outputs, where these may be on a GPU: whether the answer does, and the models."""
    found = tuple([models[taker] for taker in takers if taker < len(models)])
    if not model.answers_on_device or not all(taker.wants_device_inputs for taker in found):
        return None
    return len(models) in takers, found


class Binding:
    """The models that serve the steps now, which fit together.

    Raises:
        ConfigError: a model is not there, or does not fit.
    """

    def __init__(self, ensemble: Servable) -> None:
        config, core = ensemble.config, ensemble.server
        section = config.ensemble_scheduling
        self.bounds = [Bound(core, step.model_name, step.model_version) for step in section.step]
        missing = sorted(
            {bound.name for bound in self.bounds if not any(model.takes_requests for model in (bound.versions or {}).values())}
        )
        if missing:
            reasons = [_why_not(core, name) for name in missing]
            raise ConfigError(
                f"ensemble {ensemble.name} contains models that are not available or ambiguous: {', '.join(missing)}"
                + "".join(f"; {reason}" for reason in reasons if reason)
            )
        for bound in self.bounds:
            if bound.model is None:
                raise ConfigError(
                    f"ensemble '{ensemble.name}' depends on '{bound.name}' whose required version {bound.version} is not loaded."
                )
        self.models: List[Servable] = [bound.model for bound in self.bounds if bound.model is not None]
        check_composing(ensemble.name, config, [model.config for model in self.models])
        self.decoupled = tuple(model.decoupled for model in self.models)
        self.batched = {tensor.name: config.max_batch_size > 0 for tensor in config.input}
        for model, step in zip(self.models, section.step):
            self.batched.update((tensor, model.max_batch_size > 0) for tensor in step.output_map.values())
        given = {tensor.name for tensor in config.input}
        takers = [model for model, step in zip(self.models, section.step) if not given.isdisjoint(step.input_map.values())]
        self.input_takers = tuple(takers)
        """The models that take an input of the ensemble."""
        self.wants_device_inputs = all(model.wants_device_inputs for model in takers) and given.isdisjoint(
            tensor.name for tensor in config.output
        )
        """Whether inputs that are on a GPU may stay there: not what is part of the answer, which may be for a client."""
        self._ensemble = ensemble
        self._routes: Dict[Wanted, Route] = {}

    def holds(self) -> bool:
        """Whether all models are still those that serve."""
        models = self._ensemble.server.models
        return all(bound.holds(models) for bound in self.bounds)

    def route(self, wanted: Wanted) -> Route:
        """What runs for these outputs."""
        route = self._routes.get(wanted)
        if route is None:
            route = Route(self._ensemble, self, wanted)
            _remember(self._routes, wanted, route)
        return route


def _why_not(core: Any, name: str) -> str:
    """What is known of why a model does not serve."""
    failure: str = core.failures.get(name, "")
    if failure:
        return f"'{name}': {failure}"
    models = list(core.models.get(name, {}).values())
    return f"'{name}': {models[-1].unavailable_text()}" if models else ""


def _remember(memo: Dict[Any, Any], key: Hashable, value: Any) -> None:
    if len(memo) >= _REMEMBERED:
        memo.clear()
    memo[key] = value
