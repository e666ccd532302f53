"""``config.pbtxt``: read, completed, checked, and told to models as JSON (spec section 5)."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import FieldDescriptor

from ..shm.dtype import BY_CONFIG_NAME, DataType
from .batch_io import check_batch_io
from .cache.config import check_response_cache
from .classification import check_labels
from .ensemble.config import check_ensemble, check_ensemble_identity, is_ensemble
from .known_enums import check_enums
from .log import about, facts
from .memory_limits import MemoryOptions, instance_limit
from .metrics.options import check_bounds
from .placement.instance_groups import check_instance_groups, complete_instance_groups
from .placement.placement import check_threads
from .reshape import check_reshape, model_shape
from .sandbox.config import check_sandbox
from .scheduling.batching import check_batching
from .sequence.config import check_sequencing
from .sequence.state_config import check_states
from .supervision.config import check_supervision
from .warmup.samples import check_warmup


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
PYTHON = "python"
MODEL_FILE_NAME = "model.py"


_MOST_CONCURRENT = 4096
_FORCE_CPU = "FORCE_CPU_ONLY_INPUT_TENSORS"


logger = logging.getLogger(__name__)


class ConfigError(Exception):
    """A model's configuration is wrong; the text says what and where."""


class TensorSpec(NamedTuple):
    """One input or output as clients see it. ``shape`` leads with -1 when the model batches; -1 is a size that varies. ``model_shape``: what
    the model sees instead, if that is another."""

    name: str
    dtype: DataType
    shape: Tuple[int, ...]
    optional: bool
    model_shape: Optional[Tuple[int, ...]] = None

    def metadata(self) -> Dict[str, Any]:
        """As the protocol describes it."""
        about = {"name": self.name, "datatype": self.dtype.name, "shape": self.shape}
        return {**about, "optional": True} if self.optional else about


def parse(text: str, path: str) -> Any:
    """The ModelConfig in ``text``.

    Raises:
        ConfigError: not the text format, or an unknown field; with file, line and column.
    """
    config = messages.ModelConfig()
    try:
        text_format.Parse(text, config)
        check_enums(config)
    except text_format.ParseError as error:
        where = ":".join(str(part) for part in (path, error.GetLine(), error.GetColumn()) if part is not None)
        what = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise ConfigError(f"{where}: {what}") from error
    except ValueError as error:  # protobuf's, too, of a number that is too large for any enumeration
        raise ConfigError(f"{path}: {error}") from error
    return config


def parse_json(text: str) -> Any:
    """The ModelConfig in ``text``, which is JSON as ``/config`` prints it, or as protobuf does.

    Raises:
        ConfigError: not JSON, or an unknown field.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"the configuration is not a JSON object: {text:.50}")
    return from_dict(document, "the configuration does not hold")


def from_dict(document: Dict[str, Any], complaint: str) -> Any:
    """The ModelConfig that a dict describes, which came from JSON of any origin.

    Raises:
        ConfigError: it describes none; ``complaint`` and the reason.
    """
    try:
        config = json_format.ParseDict(document, messages.ModelConfig())
        check_enums(config)
        return config
    except Exception as error:  # protobuf meets some of what is no configuration with errors of other kinds than its own
        raise ConfigError(f"{complaint}: {error}") from error


def complete(config: Any, name: str) -> None:
    """Fills in what Triton fills in (spec 5.1), the backend apart: the config that models and clients are shown is the effective one."""
    config.name = config.name or name
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    if is_ensemble(config):
        return
    config.default_model_filename = config.default_model_filename or MODEL_FILE_NAME
    batching = config.dynamic_batching if config.WhichOneof("scheduling_choice") == "dynamic_batching" else None
    if batching is not None and not batching.preferred_batch_size and config.max_batch_size > 0:
        batching.preferred_batch_size.append(config.max_batch_size)
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    complete_instance_groups(config, name)


def check_identity(config: Any, name: str, backend_directory: str = "") -> None:
    """Checks of a completed configuration what must be known before any process is started for it: whose it is, and what runs it.

    Args:
        backend_directory: where Python-based backends are; "" for nowhere.

    Raises:
        ConfigError: with Triton's text where it has one.
    """
    if set(name) & _FORBIDDEN_IN_NAME:
        raise ConfigError(f"Invalid stub name: contains invalid characters: '{name}'")
    if config.name != name:
        raise ConfigError(f"the model's directory is named '{name}', but its configuration says name: '{config.name}'")
    try:
        check_ensemble_identity(config, name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if is_ensemble(config):
        return
    if config.platform and config.backend:
        raise ConfigError(f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}")
    if config.backend != PYTHON and not python_based_backend(backend_directory, config.backend):
        raise ConfigError(
            f"unable to find backend library for backend '{config.backend or config.platform}' of model '{name}': stublet serves"
            ' backend: "python", and Python-based backends in --backend-directory'
        )
    file = os.path.normpath(config.default_model_filename)
    if os.path.isabs(file) or file.split(os.sep)[0] == os.pardir:
        raise ConfigError(f"'default_model_filename' of model '{name}' must be below its version directories, not '{file}'")


def python_based_backend(backend_directory: str, backend: str) -> str:
    """The directory of a Python-based backend, which has a ``model.py``; "" when there is none of that name (spec 2.1)."""
    if not backend_directory or not backend or backend in (os.curdir, os.pardir) or set(backend) & {os.sep, "\0"}:
        return ""
    directory = os.path.join(os.path.abspath(backend_directory), backend)
    return directory if os.path.isfile(os.path.join(directory, MODEL_FILE_NAME)) else ""


def check(config: Any, name: str) -> None:
    """Checks a configuration that is complete in every respect for what this server can serve; ``check_identity`` has the rest.

    Raises:
        ConfigError: with Triton's text where it has one.
    """
    if config.max_batch_size < 0:
        raise ConfigError(f"'max_batch_size' must be non-negative value for {name}")
    _check_tensors(config.input, "input", config.max_batch_size, name)
    _check_tensors(config.output, "output", config.max_batch_size, name)
    _check_parameters(config)
    try:
        check_labels(config, name)
        check_ensemble(config, name)
        check_bounds(config, name)
        check_batching(config, name)
        check_sequencing(config, name)
        check_states(config, name)
        check_instance_groups(config, name)
        check_threads(config, name)
        check_batch_io(config, name)
        check_response_cache(config, name)
        check_warmup(config, name)
        check_supervision(config, name)
        check_sandbox(config, name)
        instance_limit(config, MemoryOptions())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_parameters(config: Any) -> None:
    """Those that are for the server; all others are the model's."""
    name = _FORCE_CPU
    if name in config.parameters and config.parameters[name].string_value not in ("yes", "no"):
        raise ConfigError(f"Incorrect value for {name}: {config.parameters[name].string_value}'")


def _check_tensors(tensors: Any, what: str, max_batch_size: int, model: str) -> None:
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
        try:
            check_reshape(tensor, what, max_batch_size, model)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def tensor_specs(config: Any, tensors: Any) -> List[TensorSpec]:
    """The inputs or outputs of a checked configuration."""
    batch = (-1,) if config.max_batch_size > 0 else ()
    return [
        TensorSpec(
            t.name,
            BY_CONFIG_NAME[messages.DataType.Name(t.data_type)],
            batch + tuple(t.dims),
            bool(getattr(t, "optional", False)),
            model_shape(config, t),
        )
        for t in tensors
    ]


def chosen_versions(config: Any, available: List[int]) -> List[int]:
    """The versions that the version policy of a completed configuration serves, ascending.

    Raises:
        ConfigError: there is none, in Triton's words.
    """
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    versions = sorted(available)
    if kind == "specific":
        named = set(policy.specific.versions)
        for version in sorted(named.difference(versions)):
            text = "version %d is specified for model '%s', but the version directory is not present"
            logger.error(text, version, config.name, extra=about(facts(config.name)))
        versions = sorted(named.intersection(versions))
    elif kind == "latest":
        versions = versions[max(len(versions) - policy.latest.num_versions, 0) :]
    if not versions:
        raise ConfigError(f"at least one version must be available under the version policy of model '{config.name}'")
    return versions


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


def environment_path(config: Any, model_dir: str) -> str:
    """What ``EXECUTION_ENV_PATH`` names, ``$$TRITON_MODEL_DIRECTORY`` replaced; "" when the model names no environment (spec 2.13)."""
    value: str = config.parameters["EXECUTION_ENV_PATH"].string_value if "EXECUTION_ENV_PATH" in config.parameters else ""
    return os.path.abspath(value.replace("$$TRITON_MODEL_DIRECTORY", model_dir)) if value else ""


def takes_host_inputs_only(config: Any) -> bool:
    """Whether inputs that are on a GPU are to be copied to host memory, from the parameter ``FORCE_CPU_ONLY_INPUT_TENSORS`` of a checked
    configuration (spec 4.1)."""
    return _parameter(config, _FORCE_CPU) != "no"


def max_concurrent(config: Any) -> int:
    """How many executions of an instance may overlap, from the parameter ``max_concurrent``; it matters to ``async def execute`` only.

    Raises:
        ConfigError: not a number above 0.
    """
    text = _parameter(config, "max_concurrent") or "1"
    if not re.fullmatch("[0-9]{1,9}", text) or not 0 < int(text) <= _MOST_CONCURRENT:
        raise ConfigError(
            f"parameter 'max_concurrent' of model '{config.name}' must be a number from 1 to {_MOST_CONCURRENT}, not '{text}'"
        )
    return int(text)


def cancel_coroutines(config: Any) -> bool:
    """Whether a coroutine of ``async def execute`` is cancelled when nobody wants its answer, from the parameter ``cancel_coroutines``.

    Raises:
        ConfigError: neither "yes" nor "no".
    """
    return _yes_or_no(config, "cancel_coroutines")


def concatenates(config: Any) -> bool:
    """Whether the inputs of a batch are to lie next to one another, from the parameter ``concatenate_batch``; they do not where there is no
    batch dimension.

    Raises:
        ConfigError: neither "yes" nor "no".
    """
    return _yes_or_no(config, "concatenate_batch") and config.max_batch_size > 0


def _yes_or_no(config: Any, key: str) -> bool:
    text = _parameter(config, key) or "no"
    if text not in ("yes", "no"):
        raise ConfigError(f"parameter '{key}' of model '{config.name}' must be \"yes\" or \"no\", not '{text}'")
    return text == "yes"


def _parameter(config: Any, key: str) -> str:
    return config.parameters[key].string_value if key in config.parameters else ""
