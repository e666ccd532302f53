"""``config.pbtxt``: read, completed, checked, and told to models as JSON (spec section 5)."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor

from ..shm.dtype import BY_CONFIG_NAME, DataType


def _load_messages() -> Any:
    """The message classes that tritonclient ships, without the import of gRPC that its package would bring (0.25 s).

    They get the module name that they have there, so a later import of tritonclient finds them and protobuf sees one copy.
    """
    name = "tritonclient.grpc.model_config_pb2"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        raise ImportError("stublet needs the package tritonclient[grpc] for the messages of Triton's protocol")
    path = os.path.join(package.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


messages = _load_messages()

FILE_NAME = "config.pbtxt"
_FORBIDDEN_IN_NAME = set(";|&$`<>()[]{}\\\"'*?~#!/")
_ENSEMBLE = "ensemble"


class ConfigError(Exception):
    """A model's configuration is wrong; the text says what and where."""


class TensorSpec(NamedTuple):
    """One input or output as clients see it. ``shape`` leads with -1 when the model batches; -1 is a size that varies."""

    name: str
    dtype: DataType
    shape: Tuple[int, ...]
    optional: bool


class InstanceSpec(NamedTuple):
    """One instance: its name (``<group>_<index>``), kind as a model sees it, and device."""

    name: str
    kind: str
    device: int


def parse(text: str, path: str) -> Any:
    """The ModelConfig in ``text``.

    Raises:
        ConfigError: not the text format, or an unknown field; with file, line and column.
    """
    config = messages.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        where = ":".join(str(part) for part in (path, error.GetLine(), error.GetColumn()) if part is not None)
        what = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise ConfigError(f"{where}: {what}") from error
    return config


def complete(config: Any, name: str) -> None:
    """Fills in what Triton fills in (spec 5.1): the config that models and clients are shown is the effective one."""
    config.name = config.name or name
    if not config.backend and not config.platform:
        config.backend = "python"
    config.default_model_filename = config.default_model_filename or "model.py"
    batching = config.dynamic_batching if config.WhichOneof("scheduling_choice") == "dynamic_batching" else None
    if batching is not None and not batching.preferred_batch_size and config.max_batch_size > 0:
        batching.preferred_batch_size.append(config.max_batch_size)
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    if not config.instance_group:
        config.instance_group.add()
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{name}_{index}"
        group.count = group.count or 1
        if group.kind == messages.ModelInstanceGroup.KIND_AUTO:
            group.kind = messages.ModelInstanceGroup.KIND_CPU


def check(config: Any, name: str) -> None:
    """Checks a completed configuration for what this server can serve.

    Raises:
        ConfigError: with Triton's text where it has one.
    """
    if set(name) & _FORBIDDEN_IN_NAME:
        raise ConfigError(f"Invalid stub name: contains invalid characters: '{name}'")
    if config.name != name:
        raise ConfigError(f"the model's directory is named '{name}', but its configuration says name: '{config.name}'")
    if config.platform == _ENSEMBLE:
        raise ConfigError(f"'{name}' is an ensemble, which this version of stublet does not serve")
    if config.platform or config.backend != "python":
        raise ConfigError(
            f"unable to find backend '{config.backend or config.platform}' of model '{name}': stublet serves backend: \"python\""
        )
    for section in ("sequence_batching", "batch_input", "batch_output", "model_warmup"):
        if _is_set(config, section):
            raise ConfigError(f"'{section}' of model '{name}' is not supported by this version of stublet")
    if config.max_batch_size < 0:
        raise ConfigError(f"'max_batch_size' must be non-negative value for {name}")
    _check_tensors(config.input, "input", name)
    _check_tensors(config.output, "output", name)
    for group in config.instance_group:
        if group.kind == messages.ModelInstanceGroup.KIND_GPU:
            raise ConfigError(
                f"instance group {group.name} of model {name} has kind KIND_GPU, but this version of stublet runs instances on the CPU only"
            )
        if group.gpus:
            raise ConfigError(f"instance group {group.name} of model {name} has kind KIND_CPU but specifies one or more GPU")


def _is_set(config: Any, field: str) -> bool:
    value = getattr(config, field)
    return bool(value) if hasattr(value, "__len__") else bool(config.HasField(field))


def _check_tensors(tensors: Any, what: str, model: str) -> None:
    seen = set()
    for tensor in tensors:
        if not tensor.name:
            raise ConfigError(f"model {what} must specify 'name' for {model}")
        if tensor.name in seen:
            raise ConfigError(f"model {what} '{tensor.name}' is specified more than once for {model}")
        seen.add(tensor.name)
        if tensor.data_type == messages.TYPE_INVALID:
            raise ConfigError(f"model {what} '{tensor.name}' must specify 'data_type' for {model}")
        if not tensor.dims:
            raise ConfigError(f"model {what} '{tensor.name}' must specify 'dims' for {model}")
        if any(dim < 1 and dim != -1 for dim in tensor.dims):
            raise ConfigError(
                f"model {what} '{tensor.name}' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for {model}"
            )
        if tensor.HasField("reshape"):
            raise ConfigError(f"'reshape' of {what} '{tensor.name}' of model '{model}' is not supported by this version of stublet")


def tensor_specs(config: Any, tensors: Any) -> List[TensorSpec]:
    """The inputs or outputs of a checked configuration."""
    batch = (-1,) if config.max_batch_size > 0 else ()
    return [
        TensorSpec(
            t.name,
            BY_CONFIG_NAME[messages.DataType.Name(t.data_type)],
            batch + tuple(t.dims),
            bool(getattr(t, "optional", False)),
        )
        for t in tensors
    ]


def instance_specs(config: Any) -> List[InstanceSpec]:
    """Every instance of every group (spec 5.3)."""
    specs = []
    for group in config.instance_group:
        kind = messages.ModelInstanceGroup.Kind.Name(group.kind)[len("KIND_") :]
        specs += [InstanceSpec(f"{group.name}_{i}", kind, 0) for i in range(group.count)]
    return specs


def chosen_versions(config: Any, available: List[int]) -> List[int]:
    """The versions that the version policy serves, ascending.

    Raises:
        ConfigError: the policy names a version that has no directory.
    """
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    versions = sorted(available)
    if kind == "all":
        return versions
    if kind == "specific":
        missing = sorted(set(policy.specific.versions) - set(versions))
        if missing:
            raise ConfigError(f"model '{config.name}' has no version {missing[0]}, which its version_policy names")
        return sorted(set(policy.specific.versions))
    return versions[-max(policy.latest.num_versions, 1) :]


def as_dict(message: Any) -> Dict[str, Any]:
    """A protobuf message as Triton prints it: every plain field, sections that are set, integers as numbers, enums as names.

    protobuf's own printer writes 64-bit integers as strings, which models that compare ``dims`` do not expect.
    """
    result: Dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            result[field.name] = {key: _plain(entry, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            result[field.name] = [_plain(field, item) for item in value]
        elif (field.message_type is None and field.containing_oneof is None) or message.HasField(field.name):
            result[field.name] = _plain(field, value)
    return result


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return as_dict(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.decode("latin-1")
    return value


def environment_of(config: Any, model_dir: str) -> Optional[str]:
    """The directory of ``EXECUTION_ENV_PATH``, ``$$TRITON_MODEL_DIRECTORY`` replaced; None when the model names none (spec 2.13).

    Raises:
        ConfigError: it is no directory, or has no interpreter.
    """
    value: str = config.parameters["EXECUTION_ENV_PATH"].string_value if "EXECUTION_ENV_PATH" in config.parameters else ""
    if not value:
        return None
    path = os.path.abspath(value.replace("$$TRITON_MODEL_DIRECTORY", model_dir))
    if not os.path.isdir(path):
        kind = "is not a directory (packed archives are not supported by this version)" if os.path.exists(path) else "does not exist"
        raise ConfigError(f"EXECUTION_ENV_PATH of model '{config.name}': '{path}' {kind}")
    if not os.access(os.path.join(path, "bin", "python"), os.X_OK):
        raise ConfigError(f"EXECUTION_ENV_PATH of model '{config.name}': '{path}/bin/python' is not an executable interpreter")
    return path
