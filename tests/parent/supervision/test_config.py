"""The parameters of a model that say how its instances are supervised."""

from __future__ import annotations

from typing import Any

import pytest
from stublet.parent import model_config
from stublet.parent.byte_size import parse_size, size
from stublet.parent.model_config import ConfigError
from stublet.parent.supervision.config import Supervision, supervision_of
from stublet.parent.supervision.restarts import RestartPolicy

TENSORS = 'input { name: "A" data_type: TYPE_FP32 dims: [4] } output { name: "B" data_type: TYPE_FP32 dims: [4] }'


def configured(extra: str = "", **parameters: str) -> Any:
    text = TENSORS + extra
    for key, value in parameters.items():
        text += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
    config = model_config.parse(f'backend: "python" {text}', "config.pbtxt")
    model_config.complete(config, "m")
    return config


def test_what_there_is_without_any() -> None:
    assert supervision_of(configured()) == Supervision(RestartPolicy(10, 300.0), False, 0, 0, 0.0, 0)
    assert not supervision_of(configured()).recycles


def test_all_of_them() -> None:
    config = configured(
        restart_limit="3",
        restart_window_seconds="0.5",
        retry_on_crash="yes",
        max_requests="7",
        max_rss="1.5GiB",
        max_age="3600",
        spares="1",
    )
    model_config.check(config, "m")
    assert supervision_of(config) == Supervision(RestartPolicy(3, 0.5), True, 7, 3 << 29, 3600.0, 1)


@pytest.mark.parametrize("key, value", [("max_requests", "1"), ("max_rss", "1B"), ("max_age", "0.1")])
def test_each_of_these_makes_instances_grow_old(key: str, value: str) -> None:
    assert supervision_of(configured(**{key: value})).recycles


@pytest.mark.parametrize(
    "key, value, wanted",
    [
        ("restart_limit", "-1", "a number from 0 to 1000000000"),
        ("restart_limit", "9999999999", "a number from 0 to 1000000000"),
        ("restart_limit", "", "a number from 0 to 1000000000"),
        ("restart_window_seconds", "0", "a number of seconds above 0"),
        ("restart_window_seconds", "1e9", "a number of seconds above 0"),
        ("retry_on_crash", "true", '"yes" or "no"'),
        ("max_requests", "1.5", "a number from 0 to 1000000000"),
        ("max_rss", "2GB", 'a number of bytes, or one with a unit, as in "512MiB" or "2GiB"'),
        ("max_rss", "lots", 'a number of bytes, or one with a unit, as in "512MiB" or "2GiB"'),
        ("max_age", "1h", "a number of seconds above 0"),
        ("spares", "65", "a number from 0 to 64"),
        ("spares", "٣", "a number from 0 to 64"),
    ],
)
def test_what_they_must_be(key: str, value: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config.check(configured(**{key: value}), "m")
    assert str(caught.value) == f"parameter '{key}' of model 'm' must be {wanted}, not '{value}'"


def test_sequences_cannot_be_executed_once_more() -> None:
    with pytest.raises(
        ConfigError, match="'retry_on_crash' of model 'm' cannot be \"yes\" with 'sequence_batching': what an instance knew"
    ):
        model_config.check(configured("sequence_batching { direct {} }", retry_on_crash="yes"), "m")
    model_config.check(configured("sequence_batching { direct {} }", retry_on_crash="no"), "m")


@pytest.mark.parametrize(
    "text, nbytes", [("0", 0), ("1000", 1000), ("12B", 12), ("1KiB", 1024), ("1.5MiB", 3 << 19), ("2GiB", 2 << 30), ("1TiB", 1 << 40)]
)
def test_sizes_are_read_as_they_are_written(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes
    assert parse_size(size(nbytes)) == nbytes


@pytest.mark.parametrize("text", ["", "B", "1.5", "1.5B", "-1", "1 GiB", "1gib", "1KB", "1iB", "0x10", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of bytes"):
        parse_size(text)
