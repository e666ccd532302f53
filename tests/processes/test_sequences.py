"""Sequences to real models: what they are told, over both protocols and from other models, and what becomes of sequences (spec 5.4, 6.5)."""

from __future__ import annotations

import json
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple, Union

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from controlled import controlled
from scripted import Scripted, room, scripted
from sequence_models import told_config, write_told
from server_process import ServerProcess, alive, serving, until
from stublet.parent import Cancelled, InvalidArgument, Server, ServerError, Unavailable, Unsupported

NO_START = "inference request for sequence {} to model '{}' must specify the START flag on the first request of the sequence"
IDLE = "max_sequence_idle_microseconds: 30000000"


class Told:
    """What a model answered. ``rows``: of the batch that it was executed with."""

    def __init__(self, sum: int, told: bytes) -> None:
        self.sum = sum
        self.pid, self.rows = json.loads(told)


class Asked:
    """Requests to a model of the embedded server."""

    def __init__(self, server: Server, model: str, gate: Path) -> None:
        self.server, self.model, self.gate = server, model, gate
        self._batching = server.core.find(model).max_batch_size > 0

    def ask(self, value: int, sequence: Union[int, str], start: bool = False, end: bool = False, **parameters: Any) -> Told:
        shape = (1, 1) if self._batching else (1,)
        told = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end, **parameters}
        result = self.server.infer(self.model, {"IN": np.full(shape, value, np.int32)}, parameters=told)
        return Told(int(result["OUT"].flat[0]), result["TOLD"].flat[0])

    def fail(self, kind: type[ServerError], *arguments: Any, **more: Any) -> str:
        with pytest.raises(kind) as caught:
            self.ask(*arguments, **more)
        return str(caught.value)

    def pending(self) -> int:
        return self.server.core.find(self.model).pending()

    def send(self, pool: ThreadPoolExecutor, *arguments: Any, **more: Any) -> Future[Told]:
        """Asks in another thread, and returns when the request waits."""
        before = self.pending()
        answer = pool.submit(self.ask, *arguments, **more)
        until(lambda: self.pending() > before or answer.done(), what="the request's arrival")
        return answer

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is executed waits for the end of this."""
        self.gate.touch()
        try:
            yield
        finally:
            self.gate.unlink()

    def begin(self, pool: ThreadPoolExecutor, *arguments: Any, **more: Any) -> Future[Told]:
        """Asks in another thread, and returns when the request is executed."""
        begun = Path(f"{self.gate}.begun")
        begun.unlink(missing_ok=True)
        answer = pool.submit(self.ask, *arguments, **more)
        until(begun.exists, what="the execution")
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("sequences")
    write_told(root, "rows", IDLE, root / "gates" / "rows", 4)
    write_told(root, "oldest", f"{IDLE} oldest {{ max_candidate_sequences: 8 }}", root / "gates" / "oldest", 4, data_type="TYPE_STRING")
    write_told(root, "single", IDLE, root / "gates" / "single", data_type="TYPE_INT32")
    write_told(root, "narrow", IDLE, root / "gates" / "narrow", data_type="TYPE_STRING")
    scripted(root, "asks")
    (root / "gates").mkdir()
    with Server(root, options=room()) as server:
        yield server


@pytest.fixture
def get(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Asked]]:
    """The models by name."""

    def find(name: str) -> Asked:
        return Asked(server, name, Path(server.core.find(name).config.parameters["gate"].string_value))

    yield find
    for name in ("rows", "oldest", "single", "narrow"):
        assert not find(name).gate.exists()


def row(told: Told, number: int = -1) -> List[Any]:
    """READY, CORRID, START and END of a row."""
    return [told.rows[number][key][2][0] for key in ("READY", "CORRID", "START", "END")]


def test_what_a_model_is_told(get: Callable[[str], Asked]) -> None:
    rows = get("rows")
    first, middle, last = rows.ask(1, 5, start=True), rows.ask(2, 5), rows.ask(3, 5, end=True)
    assert [one.sum for one in (first, middle, last)] == [1, 3, 6]
    assert [row(one) for one in (first, middle, last)] == [[True, 5, 1, 0.0], [True, 5, 0, 0.0], [True, 5, 0, 1.0]]
    assert [one.rows[0]["flags"] for one in (first, middle, last)] == [1, 0, 2]
    assert {key: value[:2] for key, value in first.rows[0].items() if isinstance(value, list)} == {
        "IN": ["int32", [1, 1]], "START": ["int32", [1, 1]], "END": ["float32", [1, 1]], "READY": ["bool", [1, 1]],
        "CORRID": ["uint64", [1, 1]],
    }  # fmt: skip
    assert rows.ask(7, 5, start=True, end=True).sum == 7


def test_a_model_that_does_not_batch(get: Callable[[str], Asked]) -> None:
    told = get("single").ask(1, 5, start=True, end=True)
    assert told.rows[0]["CORRID"] == ["int32", [1], [5]] and told.rows[0]["START"] == ["int32", [1], [1]]


def test_ids_of_both_kinds(get: Callable[[str], Asked]) -> None:
    oldest = get("oldest")
    assert [oldest.ask(1, "abc", start=True).sum, oldest.ask(2, "abc", end=True).sum] == [1, 3]
    told = oldest.ask(1, 2**64 - 1, start=True, end=True)
    assert told.rows[0]["id"] == 2**64 - 1 and row(told)[1] == str(2**64 - 1)
    assert row(oldest.ask(1, "ö" * 128, start=True, end=True))[1] == "ö" * 128


@pytest.mark.parametrize(
    "model, sequence, kind, text",
    [
        ("rows", 3, InvalidArgument, NO_START.format(3, "rows")),
        ("rows", "abc", InvalidArgument, NO_START.format("abc", "rows")),
        ("rows", 0, InvalidArgument, "inference request to model 'rows' must specify a non-zero or non-empty correlation ID"),
        ("single", "", InvalidArgument, "inference request to model 'single' must specify a non-zero or non-empty correlation ID"),
        ("oldest", "x" * 129, Unsupported, "string correlation ID cannot be longer than 128 characters"),
    ],
)
def test_what_is_no_sequence(get: Callable[[str], Asked], model: str, sequence: Any, kind: type[ServerError], text: str) -> None:
    assert get(model).fail(kind, 1, sequence) == text


def test_an_id_that_does_not_fit(get: Callable[[str], Asked]) -> None:
    text = "must be a number that its control input 'CORRID' of type TYPE_INT32 can hold, not 'abc'"
    assert text in get("single").fail(InvalidArgument, 1, "abc", start=True)


def test_more_than_one_item(server: Server) -> None:
    with pytest.raises(InvalidArgument, match="'rows' must specify batch-size 1 due to requirements of sequence batcher"):
        server.infer("rows", {"IN": np.ones((2, 1), np.int32)}, parameters={"sequence_id": 1, "sequence_start": True})


@pytest.mark.parametrize(
    "key, value, expected",
    [("sequence_start", 1, "bool"), ("sequence_id", True, "unsigned integer or string"), ("timeout", -1, "unsigned integer")],
)
def test_parameters_that_have_a_meaning(server: Server, key: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidArgument, match=f"parameter '{key}' must be a {expected}, not {value!r}"):
        server.infer("rows", {"IN": np.ones((1, 1), np.int32)}, parameters={key: value})


def test_clients_do_not_send_control_inputs(server: Server) -> None:
    ones = np.ones((1, 1), np.int32)
    with pytest.raises(InvalidArgument, match="expected 1 inputs but got 2 inputs for model 'rows'"):
        server.infer("rows", {"IN": ones, "START": ones}, parameters={"sequence_id": 1, "sequence_start": True})


def test_rows_of_a_batch_are_places_of_sequences(get: Callable[[str], Asked]) -> None:
    rows = get("rows")
    assert [len(rows.ask(1, sequence, start=True).rows) for sequence in (1, 2, 3)] == [1, 2, 3]
    told = rows.ask(5, 3)
    assert told.sum == 6 and [one["READY"][2][0] for one in told.rows] == [False, False, True]
    assert [row(told, number) for number in (0, 1)] == [[False, 0, 0, 0.0]] * 2 and told.rows[0]["IN"][2] == [0]
    with ThreadPoolExecutor() as pool:
        with rows.held():
            first = rows.begin(pool, 1, 2)
            others = [rows.send(pool, 1, sequence, end=True) for sequence in (3, 1)]
        assert first.result().sum == 2
        assert [one["id"] for one in others[0].result().rows] == [1, 0, 3], "what is between them is no request"
        assert [one.result().sum for one in others] == [7, 2]
    assert rows.ask(1, 2, end=True).sum == 3


def test_statistics_count_requests_and_not_empty_rows(tmp_path: Path) -> None:
    write_told(tmp_path, "rows", IDLE, tmp_path / "gate", 4)
    with Server(tmp_path) as server:
        rows = Asked(server, "rows", tmp_path / "gate")
        rows.ask(1, 1, start=True)
        rows.ask(1, 2, start=True)
        (told,) = server.statistics("rows")
        assert (told["inference_count"], told["execution_count"]) == (2, 2)
        assert [one["batch_size"] for one in told["batch_stats"]] == [1]
        rows.fail(InvalidArgument, 1, 3)
        (told,) = server.statistics("rows")
        assert told["inference_stats"]["fail"]["count"] == 1 and told["inference_stats"]["success"]["count"] == 2


def test_sequences_are_executed_together_and_each_in_order(get: Callable[[str], Asked]) -> None:
    oldest = get("oldest")

    def run(sequence: int) -> List[int]:
        return [oldest.ask(value, sequence, start=value == 1, end=value == 20).sum for value in range(1, 21)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(1, 17))) == [[n * (n + 1) // 2 for n in range(1, 21)]] * 16


def test_one_that_finds_no_place_waits_for_it(get: Callable[[str], Asked]) -> None:
    single = get("single")
    single.ask(1, 1, start=True)
    with ThreadPoolExecutor() as pool:
        waits = single.send(pool, 10, 2, start=True)
        assert single.pending() == 1
        text = "timeout of the corresponding sequence has been expired"
        assert single.fail(Unavailable, 1, 3, start=True, timeout=2000) == text
        assert single.fail(InvalidArgument, 1, 3) == NO_START.format(3, "single")
        assert single.ask(1, 1, end=True).sum == 2
        assert waits.result().sum == 10
        assert single.ask(1, 2, end=True).sum == 11


def test_a_request_that_is_cancelled_takes_what_waits_behind_it_along(get: Callable[[str], Asked], server: Server) -> None:
    narrow = get("narrow")
    with ThreadPoolExecutor() as pool:
        with narrow.held():
            first = narrow.begin(pool, 1, "x", start=True)
            one = {"IN": np.ones(1, np.int32)}
            second = pool.submit(server.infer, "narrow", one, parameters={"sequence_id": "x"}, timeout=0.5)
            until(lambda: narrow.pending() == 1)
            third = narrow.send(pool, 3, "x")
            with pytest.raises(TimeoutError):
                second.result()
            with pytest.raises(Cancelled, match="a request of the same sequence was cancelled"):
                third.result()
        assert first.result().sum == 1
    assert narrow.fail(InvalidArgument, 1, "x") == NO_START.format("x", "narrow")


def test_sequences_of_another_model(server: Server) -> None:
    """Correlation id and flags go along with calls between models, and so does what is wrong with them."""
    asks = """
        def add(value, flags, sequence='call'):
            request = pb_utils.InferenceRequest(model_name='oldest', requested_output_names=['OUT'], correlation_id=sequence, flags=flags,
                inputs=[pb_utils.Tensor('IN', np.array([[value]], np.int32))])
            answer = request.exec()
            return answer.error().message() if answer.has_error() else answer.output_tensors()[0].as_numpy().flat[0]
        S, E = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
        result = [str(add(1, S)), str(add(2, 0)), str(add(3, E)), str(add(4, 0))]
    """
    error = f"Model oldest - Error when running inference: {NO_START.format('call', 'oldest')}"
    assert Scripted(server, "asks").say(asks) == str(["1", "3", "6", error])


# ---- instances ----


def test_an_instance_that_dies(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    write_told(tmp_path, "m", IDLE, gate, instances=2)
    with Server(tmp_path) as server, ThreadPoolExecutor() as pool:
        m = Asked(server, "m", gate)
        lost, stays = m.ask(1, 1, start=True), m.ask(10, 2, start=True)
        assert lost.pid != stays.pid, "they spread"
        with m.held():
            answers = [m.begin(pool, -1, 1), m.send(pool, 5, 1), m.begin(pool, 5, 2), m.send(pool, 7, 3, start=True)]
        for answer in answers[:2]:
            with pytest.raises(Unavailable, match=r"Stub process 'm_0_\d' is not healthy: it ended with exit code 3"):
                answer.result()
        assert answers[2].result().sum == 15 and m.ask(1, 2, end=True).sum == 16
        assert m.fail(InvalidArgument, 1, 1) == NO_START.format(1, "m")
        assert answers[3].result().sum == 7, "it waited for a place"


def test_instances_that_go_finish_their_sequences(tmp_path: Path) -> None:
    root, gate = tmp_path / "models", tmp_path / "gate"

    def configure(instances: int) -> None:
        config = told_config(IDLE, gate, 0, instances, "TYPE_UINT64")
        (root / "m" / "config.pbtxt").write_text(f'backend: "python"\n{config}')

    write_told(root, "m", IDLE, gate, instances=2)
    with controlled(root) as models, ThreadPoolExecutor() as pool:
        models.load("m")
        m = Asked(models.server, "m", gate)
        pids = models.pids("m")
        first, second = m.ask(1, 1, start=True), m.ask(10, 2, start=True)
        configure(1)
        load = pool.submit(models.load, "m")
        until(
            lambda: (
                len(models.core.find("m").config_dict["instance_group"]) == 1 and models.core.find("m").config.instance_group[0].count == 1
            )
        )
        going, (kept,) = (1, [2]) if first.pid == pids[1] else (2, [1])
        waits = m.send(pool, 7, 3, start=True)
        assert m.ask(5, going).sum == {1: 6, 2: 15}[going], "its sequence goes on"
        assert not waits.done() and alive(pids[1])
        m.ask(0, going, end=True)
        load.result()
        until(lambda: not alive(pids[1]))
        assert m.ask(1, kept, end=True).sum == {1: 2, 2: 11}[kept] and waits.result().sum == 7
        assert first.pid != second.pid


# ---- protocols ----


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("served")
    write_told(root / "models", "rows", IDLE, root / "gate", 4)
    write_told(root / "models", "oldest", f"{IDLE} oldest {{ max_candidate_sequences: 8 }}", root / "gate", 4, data_type="TYPE_STRING")
    with serving(root, root / "models", "--grpc-port", "0") as server:
        yield server


@pytest.mark.parametrize("library", [http, grpc], ids=["http", "grpc"])
def test_two_sequences_in_turn(served: ServerProcess, hub: None, grpc_core: None, library: Any) -> None:
    """As ``simple_http_sequence_sync_infer_client.py`` and its sibling do it, with ids of both kinds."""
    with library.InferenceServerClient(served.grpc_address if library is grpc else served.address) as client:
        for model, ids in (("rows", (1000, 1001)), ("oldest", ("a", "b"))):
            sums: List[List[int]] = [[], []]
            values = [11, 7, 5, 3, 2, 0, 1]
            for number, value in enumerate(values):
                for one, sign in ((0, 1), (1, -1)):
                    tensor = library.InferInput("IN", [1, 1], "INT32")
                    tensor.set_data_from_numpy(np.full((1, 1), sign * (value + 2), np.int32))
                    ends = {"sequence_start": number == 0, "sequence_end": number == len(values) - 1}
                    result = client.infer(model, [tensor], sequence_id=ids[one], **ends)
                    sums[one].append(int(result.as_numpy("OUT").flat[0]))
            expected = list(np.cumsum([value + 2 for value in values]))
            assert sums == [expected, [-total for total in expected]]
            with pytest.raises(Exception, match="must specify the START flag on the first request of the sequence"):
                client.infer(model, [tensor], sequence_id=ids[0])


def test_sequences_in_a_stream(served: ServerProcess, grpc_core: None) -> None:
    """As ``simple_grpc_sequence_stream_infer_client.py`` does it: everything is sent before anything is answered."""
    answers: queue.Queue[Tuple[Any, Any]] = queue.Queue()
    with grpc.InferenceServerClient(served.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for sequence in (1, 2):
            for value in range(1, 11):
                tensor = grpc.InferInput("IN", [1, 1], "INT32")
                tensor.set_data_from_numpy(np.full((1, 1), value * sequence, np.int32))
                ends = {"sequence_start": value == 1, "sequence_end": value == 10}
                client.async_stream_infer("rows", [tensor], request_id=f"{sequence}_{value}", sequence_id=sequence, **ends)
        sums = {}
        for _ in range(20):
            result, error = answers.get(timeout=30)
            assert error is None
            sums[result.get_response().id] = int(result.as_numpy("OUT").flat[0])
        client.stop_stream()
    assert sums == {f"{sequence}_{n}": sequence * n * (n + 1) // 2 for sequence in (1, 2) for n in range(1, 11)}


def test_metadata_does_not_name_what_is_added(served: ServerProcess, hub: None) -> None:
    with http.InferenceServerClient(served.address) as client:
        metadata = client.get_model_metadata("rows")
        assert [tensor["name"] for tensor in metadata["inputs"]] == ["IN"]
        assert client.get_model_config("rows")["sequence_batching"]["control_input"][0]["name"] == "START"
