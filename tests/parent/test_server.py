"""The server inside a program: ``stublet.parent.Server``."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import ml_dtypes
import numpy as np
import pytest
from model_repository import MODELS, copy_model, obey, write_model
from server_process import alive, descendants, memory_bytes, until
from stublet.parent import (
    AlreadyExists,
    Cancelled,
    InternalError,
    InvalidArgument,
    NotFound,
    Server,
    ServerError,
    Unavailable,
    UnknownError,
    Unsupported,
)
from stublet.parent.instance import LoadFailed
from stublet.parent.options import ServerOptions
from stublet.parent.repository import RepositoryError
from stublet.shm.control import PING

FOUR = np.arange(4, dtype=np.float32)


def code(text: str) -> Dict[str, np.ndarray]:
    return {"CODE": np.array([text], object)}


@pytest.fixture
def obedient(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, with the models ``obey``, in two instances, and ``vector``."""
    obey(tmp_path, instances=2)
    copy_model(tmp_path, "vector")
    with Server(tmp_path) as server:
        yield server


Ask = Callable[..., Any]


@pytest.fixture(params=["infer", "infer_async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Either way to ask; both do the same."""
    if request.param == "infer":
        return lambda server, *args, **kwargs: server.infer(*args, **kwargs)
    return lambda server, *args, **kwargs: asyncio.run(server.infer_async(*args, **kwargs))


def test_infer(embedded: Server, ask: Ask) -> None:
    result = ask(embedded, "add_sub", {"INPUT0": FOUR, "INPUT1": FOUR})
    assert list(result) == ["OUTPUT0", "OUTPUT1"]
    np.testing.assert_array_equal(result["OUTPUT0"], FOUR + FOUR)
    np.testing.assert_array_equal(result["OUTPUT1"], FOUR - FOUR)
    assert (result.model_name, result.model_version, result.parameters) == ("add_sub", 1, {})


def test_requested_outputs_and_version(embedded: Server, ask: Ask) -> None:
    result = ask(embedded, "add_sub", {"INPUT0": FOUR, "INPUT1": FOUR}, outputs=["OUTPUT1"], version=1)
    assert list(result) == ["OUTPUT1"]


def test_what_a_model_is_told(embedded: Server, ask: Ask) -> None:
    given = {"INPUT0": np.zeros(1, np.int32)}
    result = ask(embedded, "echo", given, request_id="é", parameters={"a": 1, "b": "x", "c": True, "d": 0.5})
    assert result.parameters == {"answered": True, "text": "déjà", "number": 7}
    told = result["REQUEST"][0]
    assert b'"parameters": {"a": 1, "b": "x", "c": true, "d": 0.5}' in told
    assert b'"id": "\\u00e9"' in told


ARRAYS = {
    "BOOL": np.array([True, False]),
    **{f"INT{8 * n}": np.array([-1, 0, 1], f"i{n}") for n in (1, 2, 4, 8)},
    **{f"UINT{8 * n}": np.array([0, 1, 2 ** (8 * n) - 1], f"u{n}") for n in (1, 2, 4, 8)},
    "FP16": np.array([0.5, np.inf], np.float16),
    "FP32": np.array([0.5, np.nan], np.float32),
    "FP64": np.array([0.1, -0.0]),
    "BYTES": np.array([b"\xff\0", "é".encode(), b""], object),
    "BF16": np.array([0.5, -2.0], ml_dtypes.bfloat16).view(np.uint16),
}


@pytest.mark.parametrize("datatype", ARRAYS)
@pytest.mark.parametrize("times", [0, 1, 10_000])
def test_every_type(embedded: Server, ask: Ask, datatype: str, times: int) -> None:
    array = np.tile(ARRAYS[datatype], times)
    found = ask(embedded, "every_type", {f"IN_{datatype}": array})[f"OUT_{datatype}"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@pytest.mark.parametrize("array", [np.array(["a", "é"], object), np.array([b"a", "é".encode()]), np.array([1, "é"], object)], ids=repr)
def test_what_else_is_taken_for_strings(embedded: Server, array: np.ndarray) -> None:
    found = embedded.infer("identity_bytes", {"INPUT0": array})["OUTPUT0"]
    assert list(found) == [item if isinstance(item, bytes) else str(item).encode() for item in array.tolist()]


@pytest.mark.parametrize(
    "array",
    [np.arange(12, dtype=np.float32).reshape(3, 4).T, np.arange(24, dtype=np.float32).reshape(6, 4)[::2], np.zeros((0, 5), np.float32)],
)
def test_arrays_of_any_layout(embedded: Server, array: np.ndarray) -> None:
    np.testing.assert_array_equal(embedded.infer("matrix", {"INPUT0": array})["OUTPUT0"], array)


def test_results_can_be_written_to(embedded: Server) -> None:
    for size in (4, 10_000):
        found = embedded.infer("vector", {"INPUT0": np.zeros(size, np.float32)})["OUTPUT0"]
        found += 1
        assert found.sum() == size


@pytest.mark.parametrize(
    "model, inputs, more, kind, text",
    [
        ("nope", {}, {}, NotFound, "Request for unknown model: 'nope' is not found"),
        ("vector", {"INPUT0": FOUR}, {"version": 3}, NotFound, "Request for unknown model: 'vector' version 3 is not found"),
        ("vector", {"INPUT0": FOUR.astype(np.int32)}, {}, InvalidArgument,
         "inference input 'INPUT0' data-type is 'INT32', but model 'vector' expects 'FP32'"),
        ("vector", {"INPUT0": [1.0]}, {}, InvalidArgument, "input 'INPUT0' of model 'vector' must be a numpy array, not list"),
        ("vector", {"INPUT0": FOUR.astype(">f4")}, {}, InvalidArgument,
         "input 'INPUT0' of model 'vector' has dtype >f4, which the protocol does not have"),
        ("vector", {"INPUT0": FOUR.astype(complex)}, {}, InvalidArgument,
         "input 'INPUT0' of model 'vector' has dtype complex128, which the protocol does not have"),
        ("vector", {"INPUT0": FOUR}, {"outputs": ["NOPE"]}, InvalidArgument, "unexpected inference output 'NOPE' for model 'vector'"),
        ("decoupled", {"INPUT0": FOUR[:1]}, {}, Unsupported, "model 'decoupled' is decoupled and may answer more than once: use infer_stream or infer_stream_async"),
    ],
    ids=["model", "version", "dtype", "list", "byte order", "complex", "output", "decoupled"],
)  # fmt: skip
def test_errors(embedded: Server, ask: Ask, model: str, inputs: Any, more: Dict[str, Any], kind: type, text: str) -> None:
    with pytest.raises(ServerError) as caught:
        ask(embedded, model, inputs, **more)
    assert (type(caught.value), str(caught.value)) == (kind, text)


KINDS = {
    "UNKNOWN": UnknownError, "INTERNAL": InternalError, "NOT_FOUND": NotFound, "INVALID_ARG": InvalidArgument, "UNAVAILABLE": Unavailable,
    "UNSUPPORTED": Unsupported, "ALREADY_EXISTS": AlreadyExists, "CANCELLED": Cancelled,
}  # fmt: skip


def test_errors_of_models(obedient: Server) -> None:
    for name, kind in KINDS.items():
        with pytest.raises(ServerError, match=r"^so$") as caught:
            obedient.infer(
                "obey", code(f"returned = [pb_utils.InferenceResponse(error=pb_utils.TritonError('so', pb_utils.TritonError.{name}))]")
            )
        assert type(caught.value) is kind
    with pytest.raises(InternalError, match=r"^Failed to process the request\(s\) for model 'obey_0_[01]', message: ValueError: no"):
        obedient.infer("obey", code("raise ValueError('no')"))


def test_deaths(obedient: Server) -> None:
    for _ in range(3):
        with pytest.raises(Unavailable, match="it ended with exit code 3 while serving"):
            obedient.infer("obey", code("os._exit(3)"))
        assert obedient.infer("vector", {"INPUT0": FOUR})["OUTPUT0"].shape == (4,)
        until(obedient.ready, what="the restart")
        assert obedient.infer("obey", code("result = 'served'"))["RESULT"][0] == b"served"


def test_the_status_table(embedded: Server) -> None:
    assert embedded.ready()
    rows = {row.model: row for row in embedded.status()}
    assert set(rows) == set(os.listdir(MODELS))
    assert all(row.state == "READY" and alive(int(row.pid)) for row in rows.values())


def test_views_of_large_outputs_stay_valid(obedient: Server) -> None:
    size = 1 << 18
    kept = [obedient.infer("vector", {"INPUT0": np.full(size, number, np.float32)})["OUTPUT0"] for number in range(8)]
    for number in range(100):
        obedient.infer("vector", {"INPUT0": np.full(size, -number, np.float32)})
    for number, array in enumerate(kept):
        assert (array == number).all()
    part = kept[3][10:20]
    del kept, array
    gc.collect()
    for number in range(20):
        obedient.infer("vector", {"INPUT0": np.full(size, -number, np.float32)})
    assert (part == 3).all()


def test_views_outlive_the_server(tmp_path: Path) -> None:
    copy_model(tmp_path, "vector")
    with Server(tmp_path) as server:
        kept = server.infer("vector", {"INPUT0": np.full(100_000, 7, np.float32)})["OUTPUT0"]
    assert (kept == 7).all()
    kept[:] = 8
    del kept


def test_what_is_dropped_is_used_again(obedient: Server) -> None:
    array = np.zeros(2 << 20, np.float32)
    for _ in range(5):
        obedient.infer("vector", {"INPUT0": array})
    gc.collect()
    before = held()
    for _ in range(40):
        obedient.infer("vector", {"INPUT0": array})
    assert held() < before + 3 * array.nbytes


def held() -> int:
    return sum(memory_bytes(pid) for pid in (os.getpid(), *descendants(os.getpid())))


def test_threads(embedded: Server) -> None:
    def work(number: int) -> bool:
        for size in (1, 5, 20_000):
            array = np.full(size, number, np.float32)
            if not (embedded.infer("vector", {"INPUT0": array})["OUTPUT0"] == number).all():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def test_many_at_once_in_one_loop(embedded: Server) -> None:
    async def work() -> None:
        arrays = [np.full(number % 7 + 1, number, np.float32) for number in range(300)]
        results = await asyncio.gather(*(embedded.infer_async("vector", {"INPUT0": array}) for array in arrays))
        for array, result in zip(arrays, results):
            np.testing.assert_array_equal(result["OUTPUT0"], array)

    asyncio.run(work())


def test_time_out(obedient: Server, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with pytest.raises(TimeoutError, match=r"^no answer within 0.1 seconds$"):
        obedient.infer("obey", code(f"while not os.path.exists({str(gate)!r}): time.sleep(0.002)"), timeout=0.1)
    gate.touch()
    assert obedient.infer("obey", code("result = 'next'"))["RESULT"][0] == b"next"


def test_what_comes_too_late_is_given_back(obedient: Server) -> None:
    late = code(f"time.sleep(0.02); result = 'x' * {4 << 20}")

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(obedient.infer_async("obey", late), 0.005)

    def leave_both_ways() -> None:
        with pytest.raises(TimeoutError):
            obedient.infer("obey", late, timeout=0.005)
        asyncio.run(leave())
        for _ in range(2):
            obedient.infer("obey", code("pass"))

    for _ in range(5):
        leave_both_ways()
    before = held()
    for _ in range(20):
        leave_both_ways()
    until(lambda: held() < before + (40 << 20), 5)


def test_a_loop_that_ended_before_its_answer_came(obedient: Server) -> None:
    """The answer is for nobody; the other requests get theirs."""

    async def start_and_leave() -> None:
        task = asyncio.ensure_future(obedient.infer_async("obey", code("time.sleep(0.1)")))
        await asyncio.sleep(0)
        task.cancel()

    for _ in range(4):
        asyncio.run(start_and_leave())
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: obedient.infer("obey", code("pass"), timeout=20), range(20)))) == 20


def test_within_a_program_with_a_loop(tmp_path: Path) -> None:
    copy_model(tmp_path, "vector")

    async def work() -> None:
        async with Server(tmp_path) as server:
            result = await server.infer_async("vector", {"INPUT0": FOUR})
            np.testing.assert_array_equal(result["OUTPUT0"], FOUR)
        with Server(tmp_path) as server:
            result = await server.infer_async("vector", {"INPUT0": FOUR})
            np.testing.assert_array_equal(result["OUTPUT0"], FOUR)
            np.testing.assert_array_equal(server.infer("vector", {"INPUT0": FOUR})["OUTPUT0"], FOUR)
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(work())


def test_two_servers_at_once(tmp_path: Path) -> None:
    copy_model(tmp_path, "vector")
    with Server(tmp_path) as one, Server([tmp_path]) as two:
        for server in (one, two, one):
            np.testing.assert_array_equal(server.infer("vector", {"INPUT0": FOUR})["OUTPUT0"], FOUR)


def test_one_server_twice(tmp_path: Path) -> None:
    copy_model(tmp_path, "vector")
    server = Server(tmp_path)
    for _ in range(2):
        with server:
            np.testing.assert_array_equal(server.infer("vector", {"INPUT0": FOUR})["OUTPUT0"], FOUR)


def test_outside_of_with(tmp_path: Path) -> None:
    copy_model(tmp_path, "vector")
    server = Server(tmp_path)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^the server is not running; use it in a with statement$"):
            server.infer("vector", {"INPUT0": FOUR})
        with server:
            pass


def test_what_runs_at_the_end_is_finished(tmp_path: Path) -> None:
    obey(tmp_path)
    results: List[Any] = []
    with Server(tmp_path) as server:
        run = f"open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(0.3); result = 'finished'"
        thread = threading.Thread(target=lambda: results.append(server.infer("obey", code(run))["RESULT"][0]))
        thread.start()
        until((tmp_path / "begun").exists)
    thread.join()
    assert results == [b"finished"]


def test_what_hangs_at_the_end_is_told(tmp_path: Path) -> None:
    obey(tmp_path)
    errors: List[str] = []

    def ask() -> None:
        with pytest.raises(Unavailable) as caught:
            server.infer("obey", code(f"open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(600)"))
        errors.append(str(caught.value))

    with Server(tmp_path, options=ServerOptions(exit_timeout_secs=0.5)) as server:
        thread = threading.Thread(target=ask)
        thread.start()
        until((tmp_path / "begun").exists)
        started = time.monotonic()
    assert time.monotonic() - started < 3
    thread.join()
    assert errors


def test_a_model_that_does_not_load(tmp_path: Path) -> None:
    copy_model(tmp_path, "vector")
    write_model(tmp_path, "broken", "raise ValueError('broken by design')\n")
    with (
        pytest.raises(LoadFailed, match="failed to load 'broken': version 1 is at UNAVAILABLE state: ValueError: broken by design"),
        Server(tmp_path),
    ):
        pass
    with Server(tmp_path, exit_on_error=False) as server:
        assert not server.ready()
        with pytest.raises(NotFound, match=r"^Request for unknown model: 'broken' has no available versions$"):
            server.infer("broken", {"INPUT0": FOUR})
        np.testing.assert_array_equal(server.infer("vector", {"INPUT0": FOUR})["OUTPUT0"], FOUR)


def test_no_such_repository() -> None:
    with pytest.raises(RepositoryError, match=r"^the model repository '/no/such/place' is not a directory$"), Server("/no/such/place"):
        pass


def test_no_timer_is_left_of_what_has_been_started(obedient: Server) -> None:
    timers = [repr(thing) for thing in gc.get_objects() if type(thing).__name__ == "TimerHandle"]
    assert any("Watcher" in timer for timer in timers)
    assert not [timer for timer in timers if "give_up" in timer]


def test_what_is_said_to_an_instance_that_has_just_ended_is_dropped(obedient: Server) -> None:
    """Others may be about to tell it of their memory when its end is noticed."""
    (instance,) = obedient.core.find("vector").instances
    os.kill(int(instance.pid or 0), signal.SIGKILL)
    until(instance.ended.done)
    instance.process.tell((PING,))
