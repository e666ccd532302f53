"""Options: what they become, and what wrong ones are told."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.options import BackendOptions, OptionError, ServerOptions


@pytest.mark.parametrize(
    "settings, expected",
    [
        ([], {}),
        ([("shm-default-byte-size", "2097152")], {"shm_default_byte_size": 2 << 20}),
        ([("shm-growth-byte-size", "1")], {"shm_growth_byte_size": 1}),
        ([("stub-timeout-seconds", "5"), ("stub-timeout-seconds", "7")], {"stub_timeout_seconds": 7}),
        ([("shm-region-prefix-name", "x"), ("thread-pool-size", "8"), ("shm_message_queue_size", "9")], {}),
        ([("default-max-batch-size", "4")], {}),
        ([("auto-complete-timeout-seconds", "7")], {"auto_complete_timeout_seconds": 7}),
    ],
)
def test_backend_options(settings: List[Tuple[str, str]], expected: Dict[str, Any]) -> None:
    defaults = {
        "shm_default_byte_size": 1 << 20, "shm_growth_byte_size": 1 << 20, "stub_timeout_seconds": 30, "auto_complete_timeout_seconds": 300,
    }  # fmt: skip
    options = BackendOptions.parse(settings)
    assert {name: getattr(options, name) for name in defaults} == {**defaults, **expected}


@pytest.mark.parametrize(
    "key, text, complaint",
    [
        ("shm-default-byte-size", "1048575", "shm-default-byte-size can't be smaller than 1 MiB"),
        ("shm-default-byte-size", "-1", "shm-default-byte-size can't be smaller than 1 MiB"),
        ("shm-growth-byte-size", "0", "shm-growth-byte-size can't be smaller than or equal to zero."),
        ("auto-complete-timeout-seconds", "0", "auto-complete-timeout-seconds can't be smaller than or equal to zero."),
        ("stub-timeout-seconds", "0", "stub-timeout-seconds can't be smaller than or equal to zero."),
        ("stub-timeout-seconds", "soon", "--backend-config=python,stub-timeout-seconds=soon: the value is not an integer (stol)"),
        ("stub-timeout-seconds", "", "--backend-config=python,stub-timeout-seconds=: the value is not an integer (stol)"),
        (
            "shm-size", "1",
            "--backend-config=python,shm-size=1: unknown key; known are auto-complete-timeout-seconds, gpu-ipc-limit-byte-size, gpu-ipc-segment-byte-size, shm-default-byte-size, "
            "shm-growth-byte-size, stub-timeout-seconds",
        ),
    ],
)  # fmt: skip
def test_wrong_backend_options(key: str, text: str, complaint: str) -> None:
    with pytest.raises(OptionError) as caught:
        BackendOptions.parse([(key, text)])
    assert str(caught.value) == complaint


@given(settings=st.lists(st.tuples(st.text(max_size=30), st.text(max_size=10)), max_size=3))
def test_any_setting_is_taken_or_an_option_error(settings: List[Tuple[str, str]]) -> None:
    try:
        BackendOptions.parse(settings)
    except OptionError as error:
        assert str(error)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model_control_mode": "explicit"},
        {"model_control_mode": "explicit", "load_models": ["a", "b"]},
        {"model_control_mode": "explicit", "load_models": ["*"]},
        {"model_control_mode": "explicit", "load_models": ["*", "*"]},
        {"backend_directory": "/"},
        {"model_control_mode": "poll", "repository_poll_secs": 0.5},
        {"model_config_name": "h100"},
    ],
)
def test_options_that_go_together(options: Dict[str, Any]) -> None:
    ServerOptions(**options).check()


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"model_control_mode": "auto"}, "--model-control-mode=auto: the modes are none, poll, explicit"),
        ({"model_control_mode": "poll", "repository_poll_secs": 0}, "--repository-poll-secs must be above 0"),
        ({"model_config_name": "../x"}, "--model-config-name: '../x' must be the name of a file in configs/, without .pbtxt"),
        (
            {"model_control_mode": "poll", "load_models": ["a"]},
            "Use of '--load-model' requires setting '--model-control-mode=explicit' as well.",
        ),
        ({"load_models": ["a"]}, "Use of '--load-model' requires setting '--model-control-mode=explicit' as well."),
        (
            {"model_control_mode": "explicit", "load_models": ["a", "*"]},
            "Wildcard model name '*' must be the ONLY startup model if specified at all.",
        ),
        ({"backend_directory": "/no/such/place"}, "--backend-directory: '/no/such/place' is not a directory"),
    ],
)
def test_options_that_do_not(options: Dict[str, Any], complaint: str) -> None:
    with pytest.raises(OptionError) as caught:
        ServerOptions(**options).check()
    assert str(caught.value) == complaint
