"""``model_warmup`` as a configuration has it: what is refused at load, and the bytes that it means (spec 5.5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from stublet.parent import model_config
from stublet.parent.model_config import ConfigError
from stublet.parent.warmup.samples import sample_data
from stublet.shm.dtype import BY_CONFIG_NAME

MODEL = 'backend: "python" max_batch_size: {} input {{ name: "A" data_type: TYPE_FP32 dims: [-1] }} model_warmup {{ name: "s" {} }}'


def config_of(section: str, max_batch_size: int = 0) -> Any:
    config = model_config.parse(MODEL.format(max_batch_size, section), "config.pbtxt")
    model_config.complete(config, "m")
    return config


def tensor(text: str) -> Any:
    return config_of(f'inputs {{ key: "A" value {{ {text} }} }}').model_warmup[0].inputs["A"]


@pytest.mark.parametrize(
    "section, complaint",
    [
        ('batch_size: 1 inputs { key: "B" value { zero_data: true } }', "warmup sample 's' has input 'B', which model 'm' does not have"),
        (
            'batch_size: 1 inputs { key: "A" value { data_type: TYPE_FP32 dims: [2, -1] zero_data: true } }',
            "warmup setting expects all variable-size dimensions are specified for input 'A'",
        ),
        (
            'batch_size: 1 inputs { key: "A" value { data_type: TYPE_FP32 dims: 1 } }',
            "warmup setting expects input 'A' to have input_data_type set",
        ),
        ("batch_size: 2", "failed to run warmup sample 's': batch size 2 for 'm', max allowed is 0"),
        *[
            (
                f'batch_size: 1 inputs {{ key: "A" value {{ data_type: TYPE_FP32 dims: 1 input_data_file: "{file}" }} }}',
                f"'input_data_file' of warmup sample 's' of model 'm' must be below 'warmup' in its directory, not '{shown}'",
            )
            for file, shown in (("../config.pbtxt", "../config.pbtxt"), ("a/../../x", "../x"), ("/etc/passwd", "/etc/passwd"))
        ],
    ],
)
def test_what_cannot_be(section: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        model_config.check(config_of(section), "m")
    assert str(raised.value) == complaint


def test_a_batch_that_is_too_large() -> None:
    model_config.check(config_of("batch_size: 4", 4), "m")
    with pytest.raises(ConfigError, match="batch size 5 for 'm', max allowed is 4"):
        model_config.check(config_of("batch_size: 5", 4), "m")


FLOATS = ("TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_BF16")
INTEGERS = ("TYPE_INT8", "TYPE_UINT8", "TYPE_INT32", "TYPE_UINT64", "TYPE_INT64")


def values(name: str, data: bytes) -> np.ndarray:
    if name == "TYPE_BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, BY_CONFIG_NAME[name].numpy)


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS, "TYPE_BOOL"])
def test_zeros_and_numbers_of_every_type(name: str) -> None:
    dtype = BY_CONFIG_NAME[name]
    assert sample_data(tensor(f"data_type: {name} dims: [2, 3] zero_data: true"), dtype, "") == bytes(6 * dtype.itemsize)
    found = values(name, sample_data(tensor(f"data_type: {name} dims: [100, 3] random_data: true"), dtype, ""))
    assert found.shape == (300,) and (name == "TYPE_BOOL" or len(set(found.tolist())) > 50)
    if name in FLOATS or name == "TYPE_BOOL":
        assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("kind", ["zero_data", "random_data"])
def test_strings_are_empty(kind: str) -> None:
    assert sample_data(tensor(f"data_type: TYPE_STRING dims: [2] {kind}: true"), BY_CONFIG_NAME["TYPE_STRING"], "") == bytes(8)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., bytes]:
    """Reads ``size`` numbers, or strings, from a file with that content."""

    def read(content: bytes, size: int, name: str = "TYPE_FP32") -> bytes:
        (tmp_path / "warmup/deeper").mkdir(parents=True)
        (tmp_path / "warmup/deeper/data").write_bytes(content)
        text = f'data_type: {name} dims: [{size}] input_data_file: "deeper/data"'
        return sample_data(tensor(text), BY_CONFIG_NAME[name], str(tmp_path))

    return read


def test_a_file(read: Callable[..., bytes]) -> None:
    assert read(b"12345678", 2) == b"12345678"


def test_a_file_that_is_too_long_is_read_as_far_as_it_is_needed(read: Callable[..., bytes]) -> None:
    assert read(b"12345678", 1) == b"1234"


def test_a_file_that_is_too_short(read: Callable[..., bytes]) -> None:
    with pytest.raises(ValueError, match="warmup setting expects 12 bytes, but the data provided from deeper/data only has 8 bytes"):
        read(b"12345678", 3)


def test_a_file_of_strings_is_read_whole(read: Callable[..., bytes]) -> None:
    assert read(b"\1\0\0\0a\0\0\0\0", 2, "TYPE_STRING") == b"\1\0\0\0a\0\0\0\0"
