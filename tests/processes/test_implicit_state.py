"""Implicit state: what a model says at the end of one request of a sequence is what it is told with the next one (spec 5.4)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterator, List

import numpy as np
import pytest
from scripted import room
from sequence_models import write_accumulate
from server_process import until
from stublet.parent import InternalError, InvalidArgument, Server

LARGE = 1 << 18
"""Elements: 1 MiB, which is lent and not copied."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("state")
    write_accumulate(root, "small", 2)
    write_accumulate(root, "large", LARGE, "oldest { max_candidate_sequences: 3 }")
    write_accumulate(root, "plain", 2, batch=0)
    more = 'output { name: "NEW_STATE" data_type: TYPE_FP32 dims: [2] }'
    write_accumulate(root, "shown", 2, more=more)
    first = 'initial_state { name: "first" data_type: TYPE_FP32 dims: [2] data_file: "first" }'
    directory = write_accumulate(root, "filed", -1, state=first)
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "first").write_bytes(np.array([40, 50], np.float32).tobytes())
    write_accumulate(root, "brief", LARGE, "max_sequence_idle_microseconds: 1000")
    with Server(root, options=room()) as server:
        yield server


class Sequence:
    """Requests of one sequence to a model."""

    def __init__(self, server: Server, model: str, sequence: Any = 7) -> None:
        self._server, self._model, self._id = server, model, sequence

    def add(self, value: float, start: bool = False, end: bool = False, **more: Any) -> Any:
        rows = [[value]] if self._model != "plain" else [value]
        parameters = {"sequence_id": self._id, "sequence_start": start, "sequence_end": end}
        return self._server.infer(self._model, {"IN": np.array(rows, np.float32)}, parameters=parameters, **more)

    def total(self, value: float, start: bool = False, end: bool = False) -> float:
        return float(self.add(value, start, end)["OUT"].flat[0])

    def sums(self, *values: float) -> List[float]:
        """The whole of a sequence."""
        last = len(values) - 1
        return [self.total(value, i == 0, i == last) for i, value in enumerate(values)]


def outputs_in_use(server: Server, model: str) -> int:
    """How many blocks of the stub's arena the server holds for states."""
    sequences = server.core.find(model)._sequences
    return sum(state is not None for memory in sequences._memories.values() for state in memory.states)


@pytest.mark.parametrize("model", ["small", "large", "plain"])
def test_a_state_is_handed_on(server: Server, model: str) -> None:
    assert Sequence(server, model).sums(1, 2, 3, 4) == [1, 3, 6, 10]
    assert Sequence(server, model).sums(5, 6) == [5, 11], "the next sequence begins with zeros"
    assert outputs_in_use(server, model) == 0


@pytest.mark.parametrize("model", ["small", "large"])
def test_sequences_have_states_of_their_own(server: Server, model: str) -> None:
    a, b = Sequence(server, model, 1), Sequence(server, model, "1")
    assert [a.total(1, start=True), b.total(10, start=True), a.total(2), b.total(20)] == [1, 10, 3, 30]
    assert outputs_in_use(server, model) == 2
    assert [a.total(3, end=True), b.total(30, end=True)] == [6, 60]
    assert outputs_in_use(server, model) == 0


def test_a_sequence_that_begins_anew(server: Server) -> None:
    one = Sequence(server, "small")
    assert [one.total(1, start=True), one.total(2), one.total(5, start=True), one.total(1, end=True)] == [1, 3, 5, 6]


def test_a_response_without_the_state_leaves_it(server: Server) -> None:
    assert Sequence(server, "large").sums(1, 0, 0, 2) == [1, 1, 1, 3]


def test_a_failure_leaves_the_state(server: Server) -> None:
    one = Sequence(server, "large")
    one.total(1, start=True)
    with pytest.raises(InternalError, match="negative"):
        one.add(-1)
    assert one.total(1, end=True) == 2


def test_what_is_no_state_is_an_error(server: Server) -> None:
    one = Sequence(server, "small")
    one.total(1, start=True)
    with pytest.raises(InternalError, match="state output 'NEW_STATE' has data type FP64, but its configuration says FP32"):
        one.add(99)
    assert one.total(1, end=True) == 2


def test_clients_neither_see_nor_send_states(server: Server) -> None:
    model = server.core.find("small")
    assert [spec.name for spec in model.inputs] == ["IN"] and [spec.name for spec in model.outputs] == ["OUT"]
    assert list(Sequence(server, "small").add(1, True, True)) == ["OUT"]
    with pytest.raises(InvalidArgument, match="unexpected inference output 'NEW_STATE' for model 'small'"):
        Sequence(server, "small").add(1, True, True, outputs=["NEW_STATE"])
    with pytest.raises(InvalidArgument, match="unexpected inference input 'STATE' for model 'small'"):
        server.infer("small", {"STATE": np.zeros((1, 2), np.float32)}, parameters={"sequence_id": 1, "sequence_start": True})


def test_a_state_that_is_an_output_too(server: Server) -> None:
    one = Sequence(server, "shown")
    first = one.add(1, start=True)
    assert sorted(first) == ["NEW_STATE", "OUT"] and first["NEW_STATE"].tolist() == [[1, 1]]
    assert list(one.add(2, outputs=["OUT"])) == ["OUT"]
    assert one.add(3, end=True, outputs=["NEW_STATE"])["NEW_STATE"].tolist() == [[6, 6]]


def test_what_a_sequence_begins_with(server: Server) -> None:
    assert Sequence(server, "filed").sums(1, 2) == [41, 43]
    assert Sequence(server, "filed").sums(1, 2) == [41, 43]


def test_the_state_of_a_sequence_that_is_idle_goes(server: Server) -> None:
    Sequence(server, "brief").total(1, start=True)
    until(lambda: outputs_in_use(server, "brief") == 0)
    with pytest.raises(InvalidArgument, match="must specify the START flag on the first request of the sequence"):
        Sequence(server, "brief").add(1)


def test_a_large_state_is_not_copied_and_its_memory_comes_round(server: Server) -> None:
    one = Sequence(server, "large")
    one.total(1, start=True)
    (instance,) = server.core.find("large").instances
    for _ in range(3):
        one.total(1)
    before = len(instance.channel.loans.outputs)
    for _ in range(50):
        one.total(1)
    assert len(instance.channel.loans.outputs) == before, "the blocks of states come back"
    (memory,) = server.core.find("large")._sequences._memories.values()
    (state,) = memory.states
    assert state is not None and state.loan.segment.id in instance.channel.loans.outputs, "it lies where the stub put it"
    assert one.total(1, end=True) == 55


def test_a_state_does_not_survive_its_instance(tmp_path: Path) -> None:
    write_accumulate(tmp_path, "small", 2, more="instance_group { count: 2 kind: KIND_CPU }")
    with Server(tmp_path) as server:
        a, b = Sequence(server, "small", 1), Sequence(server, "small", 2)
        assert [a.total(1, start=True), b.total(10, start=True)] == [1, 10]
        seats = server.core.find("small")._sequences.scheduler._sequences[1].seats
        assert seats is not None
        os.kill(seats.instance.pid, 9)
        until(lambda: outputs_in_use(server, "small") == 1)
        with pytest.raises(InvalidArgument, match="sequence 1 to model 'small' must specify the START flag"):
            a.add(1)
        assert [b.total(1), a.total(7, start=True), a.total(1, end=True), b.total(1, end=True)] == [11, 7, 8, 12]


def test_an_initial_state_that_is_not_there(tmp_path: Path) -> None:
    first = 'initial_state { name: "first" data_type: TYPE_FP32 dims: [2] data_file: "first" }'
    directory = write_accumulate(tmp_path, "m", 2, state=first)
    with pytest.raises(Exception, match=r"failed to open text file for read .*/m/initial_state/first: No such file or directory"):
        Server(tmp_path).__enter__()
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "first").write_bytes(b"123")
    with pytest.raises(Exception, match="has 3 bytes, but shape and data type say 8"):
        Server(tmp_path).__enter__()
