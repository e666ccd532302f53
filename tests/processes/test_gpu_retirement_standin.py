"""Device memory that a process exports and does not use goes back, and not before everybody has closed it: over a stand-in for the driver, with
real processes. What a driver does with memory that is freed while it is open elsewhere is undefined; the stand-in counts it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from gpu_flows import LIMIT, SEGMENT
from scripted import Scripted
from server_process import until
from standin_models import gpu, told
from stublet.parent import Server, devices, instance_report, retired_memory
from stublet.parent.options import BackendOptions, MemoryOptions, ServerOptions

TESTS = Path(__file__).parents[1]
NEVER, SOON = 3600.0, 0.05
KEEP = "model.kept = getattr(model, 'kept', []) + [data]; model.gpu['values'](data)"
LET_GO = "model.kept = []; gc.collect()"
EXPORTS = "exports = host.caller._memory._exports\n"
COUNT_LOOKS = f"""
{EXPORTS}
shed, model.looks = exports.shed, []
exports.shed = lambda: model.looks.append(None) or shed()"""


class Pair:
    """A model that makes tensors, and one that takes them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.makes, self.takes = Scripted(server, "makes"), Scripted(server, "takes")

    def give(self, nbytes: int, then: str = "result = data.is_cpu()") -> str:
        """Sends a tensor of so many bytes to the other; what that says."""
        return self.makes.say(told(f"result = said(call('takes', {then!r}, on_gpu(np.ones({nbytes // 4}))).exec())"))

    def exported(self) -> int:
        """How many bytes are allocated and can be opened by others."""
        return int(
            self.makes.say(told(EXPORTS + "result = sum(s.size for s in exports._segments.values() if hasattr(s, 'uuid') and s.base)"))
        )

    def reported(self) -> int:
        report = {
            model["name"]: model["instances"][0] for model in instance_report.collect(self.server.core)["models"] if model["instances"]
        }
        found: int = report["makes"]["gpu_exported_bytes"]
        return found

    def allocations(self) -> int:
        return int(self.makes.say(told("gc.collect(); result = len(library.allocations)")))

    def opened(self) -> int:
        return int(self.takes.say(told("result = len(library.opened)")))

    def waiting(self) -> List[int]:
        """What is out of use and not free yet."""
        return list(self.server.core.device_memory.retired._retired)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], Pair]]:
    """Makes one; memory is idle after so many seconds."""
    monkeypatch.setattr(devices, "CHECK", (sys.executable, str(TESTS / "standin_check.py")))
    started: List[Server] = []

    def start(idle_seconds: float) -> Pair:
        for name in ("makes", "takes"):
            gpu(tmp_path, name)
        backend = BackendOptions(gpu_ipc_segment_byte_size=SEGMENT, gpu_ipc_limit_byte_size=LIMIT)
        options = ServerOptions(backend=backend, shared_memory=MemoryOptions(idle_secs=idle_seconds))
        started.append(Server(tmp_path, options=options))
        return Pair(started[0].__enter__())

    yield start
    for server in started:
        try:
            for name in ("makes", "takes"):
                assert Scripted(server, name).say(told("result = library.freed_while_open")) == "0"
        finally:
            server.__exit__(None, None, None)


def test_idle_memory_goes_back_and_is_made_anew_when_it_is_needed(pair: Callable[[float], Pair]) -> None:
    two = pair(SOON)
    for _ in range(2):
        assert two.give(SEGMENT, f"{KEEP}; result = data.is_cpu()") == "False"
        assert two.exported() == two.reported() == SEGMENT and two.opened() == 1
        two.takes.say(told(LET_GO))
        until(lambda: two.allocations() == two.opened() == 0)
        assert two.exported() == two.reported() == 0 and not two.waiting()


def test_a_segment_is_kept_while_something_of_it_is(pair: Callable[[float], Pair]) -> None:
    two = pair(SOON)
    two.give(SEGMENT, KEEP)
    two.give(1024, KEEP)
    until(lambda: two.exported() == 2 * SEGMENT)
    two.takes.say(told("model.kept.pop(0); gc.collect()"))
    until(lambda: two.allocations() == two.opened() == 1)
    two.makes.say(told(COUNT_LOOKS))
    until(lambda: int(two.makes.say(told("result = len(model.looks)"))) > 3)
    assert two.allocations() == two.opened() == 1
    assert two.takes.say(told("result = values(model.kept[0]).tolist() == [1.0] * 256")) == "True"
    two.takes.say(told(LET_GO))
    until(lambda: two.allocations() == two.opened() == 0)


def fill(two: Pair) -> None:
    """The exporter has all that it may export, in segments that are too small for the next tensor, and nothing lies in them."""
    for _ in range(LIMIT // SEGMENT):
        assert two.give(SEGMENT, f"{KEEP}; result = data.is_cpu()") == "False"
    assert two.exported() == LIMIT
    two.takes.say(told(LET_GO))
    until(lambda: two.makes.say(told("result = staged()")) == "0")


def test_a_large_tensor_finds_room_where_small_ones_were(pair: Callable[[float], Pair], caplog: pytest.LogCaptureFixture) -> None:
    two = pair(NEVER)
    fill(two)
    with caplog.at_level(logging.WARNING):
        assert two.give(SEGMENT + 4096) == "True", "nobody waits"
        until(lambda: two.give(SEGMENT + 4096) == "False")
    assert two.exported() == LIMIT, "two made room for one twice as large"
    assert "goes through host memory" not in caplog.text


def test_what_would_not_be_enough_is_not_given_up(pair: Callable[[float], Pair], caplog: pytest.LogCaptureFixture) -> None:
    two = pair(NEVER)
    for _ in range(LIMIT // SEGMENT):
        two.give(SEGMENT, KEEP)
    two.takes.say(told("model.kept.pop(); gc.collect()"))
    until(lambda: two.makes.say(told(f"result = staged() == {LIMIT - SEGMENT}")) == "True")
    with caplog.at_level(logging.WARNING):
        assert two.give(SEGMENT + 4096) == "True"
        until(lambda: "goes through host memory" in caplog.text)
    assert two.exported() == LIMIT and two.give(SEGMENT) == "False"


def test_tensors_and_looks_in_any_order(pair: Callable[[float], Pair]) -> None:
    """Segments come and go all the time, and nobody reads one that is gone: the stand-in would fail that."""
    two = pair(0.002)
    assert two.give(SEGMENT) == "False"
    code = f"""
{COUNT_LOOKS}
import random
order = random.Random(7)
made = lambda: calls('cuIpcGetMemHandle')
kept, until_made = [], made() + 40
for number in range(100_000):
    if made() >= until_made and number > 300:
        break
    size = order.choice([1, 1000, {SEGMENT // 4}, {SEGMENT // 2}])
    take = f"model.kept = ([data] + getattr(model, 'kept', []))[:{{order.randrange(3)}}]"
    answer = said(call('takes', f"globals().update(model.gpu); data.is_cpu() or bool(values(data)[-1] == {{number}}) or 1 / 0; {{take}}",
                       on_gpu(np.full(size, number))).exec())
    assert answer == '', answer
    if order.random() < 0.2:
        seen = len(model.looks)
        until(lambda: len(model.looks) > seen + 2 or not exports._by_segment)
result = made() >= until_made"""
    assert two.makes.say(told(code)) == "True"
    two.takes.say(told(LET_GO))
    until(lambda: two.allocations() == two.opened() == 0)


def stop(pid: int) -> None:
    """It answers nothing from now on."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "\nState:\tT" in Path(f"/proc/{pid}/status").read_text())


def retire(two: Pair) -> None:
    """The exporter takes a segment out of use that a process has open which answers nothing."""
    (pid,) = two.takes.pids
    stop(pid)
    two.makes.say(told(EXPORTS + "exports.shed(); exports._tell(exports.shed())"))
    until(lambda: len(two.waiting()) == 1)


def test_memory_is_not_freed_before_who_has_it_open_answers(
    pair: Callable[[float], Pair], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retired_memory, "_PATIENCE_SECONDS", 0.0)
    two = pair(NEVER)
    two.give(SEGMENT)
    until(lambda: two.makes.say(told("result = staged()")) == "0")
    (pid,) = two.takes.pids
    try:
        retire(two)
        with caplog.at_level(logging.WARNING):
            look(two)
        assert two.allocations() == 1 and two.reported() == SEGMENT, "it takes room still"
        assert two.makes.say(told(EXPORTS + f"result = sum(exports._by_device[0].retired.values()) == {SEGMENT}")) == "True"
        assert (
            f"device memory of instance 'makes_0_0' ({SEGMENT} bytes) cannot be freed, because it is still open in 'takes_0_0'"
            in caplog.text
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: two.allocations() == 0 and not two.waiting())
    assert two.opened() == two.reported() == 0
    assert two.makes.say(told(EXPORTS + "result = exports._by_device[0].retired")) == "{}"
    assert two.give(SEGMENT) == "False"


def look(two: Pair) -> None:
    core = two.server.core
    done: List[Any] = []
    core._loop.call_soon_threadsafe(lambda: done.append(core.device_memory.retired.look()))
    until(lambda: bool(done))


def test_who_could_not_close_it_is_asked_again(pair: Callable[[float], Pair]) -> None:
    two = pair(SOON)
    two.give(SEGMENT, f"{KEEP}; library = model.library; library.fails['cuIpcCloseMemHandle'] = 400; model.kept = []")
    until(lambda: int(two.takes.say(told("result = calls('cuIpcCloseMemHandle')"))) > 2)
    assert two.allocations() == two.opened() == 1 and len(two.waiting()) == 1
    two.takes.say(told("library.fails.clear()"))
    until(lambda: two.allocations() == two.opened() == 0 and not two.waiting())


def test_the_end_of_who_has_it_open_is_as_good_as_an_answer(pair: Callable[[float], Pair]) -> None:
    two = pair(NEVER)
    two.give(SEGMENT)
    until(lambda: two.makes.say(told("result = staged()")) == "0")
    (pid,) = two.takes.pids
    try:
        retire(two)
        assert two.allocations() == 1
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: two.allocations() == 0 and not two.waiting())
    until(lambda: two.takes.pids not in ([], [pid]))
    assert two.give(SEGMENT) == "False"


def test_the_end_of_the_exporter_ends_it_too(pair: Callable[[float], Pair]) -> None:
    two = pair(NEVER)
    two.give(SEGMENT)
    until(lambda: two.makes.say(told("result = staged()")) == "0")
    (importer,), (exporter,) = two.takes.pids, two.makes.pids
    try:
        retire(two)
        os.kill(exporter, signal.SIGKILL)
        until(lambda: not two.waiting())
    finally:
        os.kill(importer, signal.SIGCONT)
    until(lambda: two.opened() == 0)
    until(lambda: two.makes.pids not in ([], [exporter]))
    assert two.give(SEGMENT) == "False"
