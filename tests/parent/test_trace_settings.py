"""Settings of traces: from the command line, from clients, and what they make of requests."""

from __future__ import annotations

from typing import Any, List, Sequence

import pytest
from stublet.parent.errors import InvalidArgument, ServerError, Unsupported
from stublet.parent.tracing.options import OPENTELEMETRY, TraceOptions
from stublet.parent.tracing.settings import TraceSettings, Wanted

ON: Any = {"level": ("TIMESTAMPS",), "rate": 1}
TRACED = Wanted(True, False)


def read(*settings: str) -> TraceOptions:
    options = TraceOptions()
    options.read(settings)
    return options


def sampled(settings: TraceSettings, requests: int, model: str = "m") -> List[int]:
    return [number for number in range(1, requests + 1) if settings.sample(model)]


def test_the_command_line() -> None:
    assert read() == TraceOptions()
    assert read("level=TIMESTAMPS", "rate=5", "count=10", "triton,file=/tmp/x", "triton,log-frequency=3") == TraceOptions(
        level=("TIMESTAMPS",), rate=5, count=10, file="/tmp/x", log_frequency=3
    )
    assert read("level=TIMESTAMPS", "level=TENSORS", "level=TENSORS").level == ("TIMESTAMPS", "TENSORS")
    assert read("mode=opentelemetry", "opentelemetry,url=http://h:1/v1/traces?a=b", "opentelemetry,resource=a=b=c") == TraceOptions(
        OPENTELEMETRY, url="http://h:1/v1/traces?a=b", resource=("a=b=c",)
    )
    assert read("opentelemetry,bsp_schedule_delay=7").bsp_schedule_delay == 7


def test_later_ones_replace_earlier_ones() -> None:
    options = read("level=TENSORS", "rate=5")
    options.read(["level=TIMESTAMPS"])
    assert (options.level, options.rate) == (("TIMESTAMPS",), 5)


@pytest.mark.parametrize(
    "setting, complaint",
    [
        ("level", "'level' is not of the form <key>=<value>, or <mode>,<key>=<value>"),
        ("=5", "is not of the form"),
        ("jaeger,url=x", "the modes are triton and opentelemetry"),
        ("mode=jaeger", "the modes are triton and opentelemetry"),
        ("rte=5", "unknown key 'rte'; did you mean rate?"),
        ("file=x", "unknown key 'file'; known are mode, level, rate, count"),
        ("triton,url=x", "unknown key 'url'"),
        ("rate=x", "Unable to parse 'rate', got: x"),
        ("rate=-1", "Unable to parse 'rate'. Expecting value >= 0, got:-1"),
        ("count=-2", "Unable to parse 'count'. Expecting value >= -1, got:-2"),
        ("count=4294967296", "value is out of range [ 0, 4294967295 ]"),
        ("opentelemetry,bsp_schedule_delay=0", "Expecting value >= 1"),
        ("level=ALL", "Unable to parse 'trace_level', got: ALL; the levels are OFF, TIMESTAMPS and TENSORS"),
        ("opentelemetry,resource=x", "resource: 'x' is not of the form <key>=<value>"),
    ],
)
def test_command_lines_that_cannot_be(setting: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(setting)
    assert complaint in str(caught.value)


def test_nothing_is_traced_unless_asked_for() -> None:
    settings = TraceSettings(TraceOptions())
    assert not settings.active and sampled(settings, 5000) == []


def test_rate_and_count() -> None:
    assert sampled(TraceSettings(TraceOptions(level=("TENSORS",), rate=3)), 10) == [3, 6, 9]
    assert sampled(TraceSettings(TraceOptions(level=("TENSORS",), rate=3, count=2)), 20) == [3, 6]
    assert sampled(TraceSettings(TraceOptions(level=("TENSORS",), rate=1, count=0)), 5) == []
    assert sampled(TraceSettings(TraceOptions(level=("TENSORS",), rate=0)), 5) == []


def test_what_is_wanted() -> None:
    assert TraceSettings(TraceOptions(**ON)).sample("m") == TRACED
    assert TraceSettings(TraceOptions(level=("TENSORS",), rate=1, log_frequency=4)).sample("m") == Wanted(False, True, 4)
    assert TraceSettings(TraceOptions(level=("TENSORS", "TIMESTAMPS"), rate=1)).sample("m") == Wanted(True, True)


def test_those_that_are_forced_do_not_count() -> None:
    settings = TraceSettings(TraceOptions(level=("TIMESTAMPS",), rate=2, count=1))
    assert [settings.sample("m", forced=True) for _ in range(3)] == [TRACED] * 3
    assert sampled(settings, 6) == [2]
    assert settings.sample("m", forced=True) == TRACED
    assert TraceSettings(TraceOptions(rate=1)).sample("m", forced=True) is None


def test_the_settings_of_all_models() -> None:
    settings = TraceSettings(TraceOptions(file="/f"))
    assert settings.as_dict() == {
        "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "trace_mode": "triton", "trace_file": "/f", "log_frequency": "0",
    }  # fmt: skip
    settings.update({"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_mode": "opentelemetry", "what": "ever"})
    assert settings.active and sampled(settings, 4) == [2, 4]
    settings.update({"trace_rate": None})
    assert settings.as_dict()["trace_rate"] == "1000" and settings.as_dict()["trace_level"] == ["TIMESTAMPS"]
    settings.update({"trace_level": None})
    assert not settings.active


def test_the_settings_of_opentelemetry() -> None:
    options = read("mode=opentelemetry", "opentelemetry,resource=a=b", "opentelemetry,resource=c=d")
    shown = TraceSettings(options).as_dict()
    assert "trace_file" not in shown and "log_frequency" not in shown
    assert (shown["trace_mode"], shown["resource"], shown["bsp_max_queue_size"]) == ("opentelemetry", "a=b,c=d", "2048")


def test_a_model_has_settings_of_its_own() -> None:
    settings = TraceSettings(TraceOptions(**ON))
    settings.update({"trace_level": ["OFF"]}, "quiet")
    assert settings.sample("quiet") is None and settings.sample("m") == TRACED
    settings.update({"trace_rate": "7"})
    assert settings.as_dict("quiet")["trace_rate"] == "7", "what a model does not set is as for all"
    settings.update({"trace_level": ["OFF"]})
    settings.update({"trace_level": ["TENSORS"], "trace_rate": "1"}, "quiet")
    assert settings.active and settings.sample("quiet") == Wanted(False, True) and settings.sample("m") is None
    settings.update({"trace_level": None, "trace_rate": None}, "quiet")
    assert not settings.active and settings.as_dict("quiet") == settings.as_dict()


def test_a_change_begins_to_count_anew() -> None:
    settings = TraceSettings(TraceOptions(level=("TENSORS",), rate=1, count=1))
    assert sampled(settings, 3) == [1]
    settings.update({"trace_count": "2"})
    assert sampled(settings, 3) == [1, 2]
    settings.update({})
    assert sampled(settings, 3) == []


@pytest.mark.parametrize(
    "key, value, kind, complaint",
    [
        ("trace_file", "/x", Unsupported, "trace file location can not be updated through network protocol"),
        ("trace_level", ["OFF", "TENSORS"], InvalidArgument, "Expect only one trace level 'OFF' is specified"),
        ("trace_level", ["MAX"], InvalidArgument, "Unable to parse 'trace_level', got: MAX"),
        ("trace_level", [1], InvalidArgument, "attempt to access JSON non-string as string"),
        ("trace_level", 1, InvalidArgument, "attempt to access JSON non-array as array"),
        ("trace_rate", 5, InvalidArgument, "attempt to access JSON non-string as string"),
        ("trace_rate", "x", InvalidArgument, "Unable to parse 'trace_rate', got: x"),
        ("trace_count", "-2", InvalidArgument, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        ("log_frequency", "5000000000", InvalidArgument, "value is out of range [ 0, 4294967295 ], got: 5000000000"),
    ],
)
def test_settings_that_cannot_be(key: str, value: Any, kind: type[ServerError], complaint: str) -> None:
    settings = TraceSettings(TraceOptions(**ON))
    before = settings.as_dict()
    changes: dict[str, Any] = {"trace_count": "9", key: value}
    with pytest.raises(kind) as caught:
        settings.update(changes)
    assert complaint in str(caught.value)
    assert settings.as_dict() == before, "all or none"


@pytest.mark.parametrize("levels", [[], "OFF"])
def test_other_ways_to_say_off(levels: Sequence[str]) -> None:
    settings = TraceSettings(TraceOptions(**ON))
    settings.update({"trace_level": levels})
    assert settings.as_dict()["trace_level"] == ["OFF"] and not settings.active
