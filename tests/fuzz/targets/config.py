"""Configurations of models: a file, or JSON that came with a request to load one."""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from stublet.parent import model_config, repository
from stublet.parent.memory_limits import LIMIT_PARAMETER
from stublet.parent.model import Model
from stublet.parent.model_config import ConfigError
from stublet.parent.placement.instance_groups import instance_specs
from stublet.parent.repository import ModelFiles
from stublet.parent.sandbox import config as sandbox

from ..offered import Offered, offered
from ..target import Check, Target

TOKENS = [
    b"{", b"}", b"[", b"]", b":", b'"', b"'", b"#", b"\\377", b"\\ud800", b"-1", b"0", b"99999999999", b"nan", b"-inf", b"TYPE_FP32", b"TYPE_STRING",
    *[field.name.encode() for field in model_config.messages.ModelConfig.DESCRIPTOR.fields],
    b"name", b"data_type", b"dims", b"reshape", b"shape", b"optional", b"count", b"kind", b"KIND_CPU", b"KIND_MODEL", b"KIND_GPU", b"gpus",
    b"key", b"value", b"string_value", b"preferred_batch_size", b"max_queue_delay_microseconds", b"priority_levels", b"direct", b"oldest",
    b"latest", b"num_versions", b"specific", b"versions", b"target_name", b"source_input", b"zero_data", b"random_data", b"input_data_file",
    b"batch_size", b"inputs", b"max_concurrent", b"concatenate_batch", b"cancel_coroutines", b"restart_limit", b"restart_window_seconds",
    b"retry_on_crash", b"max_requests", b"max_rss", b"max_age", b"spares", b"execute_timeout", b"initialize_timeout", b"hang_timeout",
    LIMIT_PARAMETER.encode(), *[name.encode() for name in sandbox.NAMES], b"yes", b"no", b"512MiB", b"1.5", b"0.01", b"root", b"0:0", b"1e9",
]  # fmt: skip


def _complete(server: Offered, read: Callable[[ModelFiles], Any], files: ModelFiles) -> None:
    """From a text to a model that could be loaded, or a ConfigError."""
    try:
        config = read(files)
        # Written and read, it is the same: that is what other servers and clients are shown, and what may be sent back.
        shown = json.dumps(model_config.as_dict(config))
        assert json.dumps(model_config.as_dict(model_config.parse_json(shown))) == shown
        model_config.complete(config, files.name)
        model_config.check_identity(config, files.name)
        model_config.chosen_versions(config, files.versions)
        model_config.environment_path(config, files.path)
        model_config.check(config, files.name)
        if model_config.is_ensemble(config):
            return

        async def make() -> Model:
            return Model(server.core, files, 1, config)

        model = asyncio.run(make())
        assert len(instance_specs(config)) >= 1
        for segment in model.segments:
            segment.close()
    except ConfigError as error:
        assert str(error)


@contextmanager
def _opened(read: Callable[[Path, bytes], Callable[[ModelFiles], Any]]) -> Iterator[Check]:
    with offered() as server, tempfile.TemporaryDirectory() as directory:
        files = ModelFiles("m", directory, [1, 3])
        yield lambda data: _complete(server, read(Path(directory), data), files)


def config_text() -> Any:
    """``config.pbtxt``."""

    def written(directory: Path, data: bytes) -> Callable[[ModelFiles], Any]:
        (directory / model_config.FILE_NAME).write_bytes(data)
        return repository.read_config

    return _opened(written)


def config_json() -> Any:
    """The configuration of a request to load a model, which is text when it comes here."""
    return _opened(lambda _, data: lambda _files: model_config.parse_json(data.decode("utf-8", "replace")))


TARGETS = [
    Target("config_text", config_text, TOKENS, mutations=600),
    Target("config_json", config_json, TOKENS, mutations=600),
]
