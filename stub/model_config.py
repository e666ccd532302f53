"""``pb_utils.ModelConfig``: what ``auto_complete_config`` is given and returns (spec 1.13)."""

from __future__ import annotations

import json
from operator import index
from typing import Any, Dict, List, Tuple, Union

_INPUT = ("name", "data_type", "dims", "optional")
_OUTPUT = ("name", "data_type", "dims")
_SCHEDULERS = ("sequence_batching", "ensemble_scheduling")

Config = Dict[str, Any]


class ModelConfig:
    """A model's configuration, to be completed but not contradicted: each method refuses what the configuration file says otherwise.

    Args:
        model_config: JSON text, or the dict parsed from it, which is then changed in place.

    Raises (all methods):
        ValueError: the change contradicts the configuration or is malformed. The text names the model.
        TypeError: an argument of a wrong Python type.
    """

    def __init__(self, model_config: Union[str, bytes, Config]) -> None:
        config = json.loads(model_config) if isinstance(model_config, (str, bytes)) else model_config
        if not isinstance(config, dict):
            raise TypeError(f"ModelConfig: the configuration must be a JSON object, not {type(config).__name__}")
        self._config: Config = config

    def as_dict(self) -> Config:
        """The configuration itself, not a copy."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Raises the largest batch size to that; it cannot be lowered."""
        size, configured = index(max_batch_size), self._config.get("max_batch_size", 0)
        if configured > size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function for model '{self._name}' "
                f"specified max_batch_size {size}"
            )
        self._config["max_batch_size"] = size

    def set_dynamic_batching(self) -> None:
        """Chooses the dynamic batcher, with its defaults if it is not configured; not possible with another scheduler."""
        for scheduler in _SCHEDULERS:
            if scheduler in self._config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function for model "
                    f"'{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._config.setdefault("dynamic_batching", {})

    def add_input(self, input: Config) -> None:
        """Adds an input, or completes the one of that name: ``name``, ``data_type``, ``dims`` (a list of ints), perhaps ``optional``.

        Raises:
            KeyError: another key, and no ``name`` to tell whose it is.
        """
        self._add("input", input, _INPUT, "'name', 'data_type', 'dims' and 'optional'")

    def add_output(self, output: Config) -> None:
        """Adds an output, or completes the one of that name: ``name``, ``data_type`` and ``dims`` (a list of ints).

        Raises:
            KeyError: another key, and no ``name`` to tell whose it is.
        """
        self._add("output", output, _OUTPUT, "'name', 'data_type' and 'dims'")

    def set_model_transaction_policy(self, transaction_policy_dict: Config) -> None:
        """Sets ``{"decoupled": bool}``; what the configuration says explicitly stays as it is."""
        given = _checked("set_model_transaction_policy", transaction_policy_dict)
        if set(given) - {"decoupled"}:
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{self._name}' contains property other than 'decoupled'."
            )
        policy = self._config.setdefault("model_transaction_policy", {})
        if "decoupled" not in given:
            return
        decoupled = given["decoupled"]
        if not isinstance(decoupled, bool):
            raise TypeError(f"ModelConfig.set_model_transaction_policy: decoupled must be bool, not {type(decoupled).__name__}")
        if policy.setdefault("decoupled", decoupled) != decoupled:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{self._name}', "
                f"which is already set to '{policy['decoupled']}'."
            )

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(self, kind: str, given: Config, allowed: Tuple[str, ...], allowed_words: str) -> None:
        where = f"in auto-complete-config function for model '{self._name}'"
        given = _checked(f"add_{kind}", given)
        if set(given) - set(allowed):
            raise ValueError(f"{kind} '{given['name']}' {where} contains property other than {allowed_words}.")
        if "name" not in given:
            raise ValueError(f"{kind} {where} is missing 'name' property.")
        for key in ("data_type", "dims"):
            if key not in given:
                raise ValueError(f"{kind} '{given['name']}' {where} is missing '{key}' property.")
        given["dims"] = [index(size) for size in given["dims"]]  # numpy's integers are not JSON
        entries: List[Config] = self._config.setdefault(kind, [])
        for entry in entries:
            if entry.get("name") == given["name"]:
                self._check_against(kind, entry, given)
                entry.update(given)
                return
        entries.append(given)

    def _check_against(self, kind: str, entry: Config, given: Config) -> None:
        name = given["name"]
        configured = entry.get("data_type", "TYPE_INVALID")
        if configured not in ("TYPE_INVALID", given["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {configured} for {kind} '{name}', "
                f"model provides {given['data_type']}"
            )
        about = f"model '{self._name}', tensor '{name}': the model expects"
        dims = entry.get("dims") or given["dims"]
        if dims != given["dims"]:
            raise ValueError(f"{about} dims {given['dims']} but the model configuration specifies dims {dims}")
        if "optional" in given and entry.get("optional", given["optional"]) != given["optional"]:
            raise ValueError(f"{about} optional {given['optional']} but the model configuration specifies optional {entry['optional']}")


def _checked(method: str, given: Config) -> Config:
    """A copy of what a model gives."""
    if not isinstance(given, dict):
        raise TypeError(f"ModelConfig.{method}: a dict is needed, not {type(given).__name__}")
    return dict(given)
