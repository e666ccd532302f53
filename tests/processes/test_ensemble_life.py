"""Ensembles whose models come, go, change and die (spec 5.4, 5.6)."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, List

import httpx
import numpy as np
import pytest
from controlled import Controlled, controlled
from ensembles import IO, PLUS_ONE, chain, count, ensemble, plus_one
from http_wire import tensor
from server_process import serving, until
from stublet.parent import InvalidArgument, Server, ServerError, Unavailable
from stublet.parent.arrays import to_request
from stublet.parent.options import ServerOptions
from stublet.parent.request import Request, drop

GATE = 'parameters {{ key: "gate" value: {{ string_value: "{}" }} }}'


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Controlled]:
    with controlled(tmp_path / "models") as models:
        plus_one(models.root, "one", GATE.format(tmp_path / "one"))
        plus_one(models.root, "two", GATE.format(tmp_path / "two"))
        ensemble(models.root, "chain", chain("one", "two"))
        yield models


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask(models: Controlled, name: str = "chain", value: float = 1, timeout: float = 30) -> List[float]:
    result: List[float] = models.server.infer(name, {"X": np.array([value], np.float32)}, timeout=timeout)["Y"].tolist()
    return result


def states(models: Controlled) -> Any:
    rows = models.call(models.core.repository_index)
    return {row["name"]: (row.get("state", ""), row.get("reason", "")) for row in rows}


class Gate:
    """The model waits before it answers."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self._path = tmp_path / name

    def __enter__(self) -> Gate:
        self._path.touch()
        return self

    def reached(self) -> None:
        until(Path(f"{self._path}.begun").exists, what="the execution of the step")

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def test_loading_brings_the_models_with_it_and_unloading_takes_them_away(models: Controlled) -> None:
    models.load("chain")
    assert ask(models) == [3]
    assert {name: state for name, (state, _) in states(models).items()} == dict.fromkeys(("chain", "one", "two"), "READY")
    models.begin(models.core.unload_model("chain", unload_dependents=True)).result(30)
    assert {name: state for name, (state, _) in states(models).items()} == dict.fromkeys(("chain", "one", "two"), "UNAVAILABLE")


def test_models_that_were_asked_for_or_are_needed_stay(models: Controlled) -> None:
    ensemble(models.root, "other", chain("two"))
    models.load("one")
    for name in ("chain", "other"):
        models.load(name)
    models.begin(models.core.unload_model("chain", unload_dependents=True)).result(30)
    assert [name for name, (state, _) in states(models).items() if state == "READY"] == ["one", "other", "two"]
    models.begin(models.core.unload_model("other", unload_dependents=False)).result(30)
    assert [name for name, (state, _) in states(models).items() if state == "READY"] == ["one", "two"]


def test_without_one_of_its_models_it_is_not_ready_and_says_so(models: Controlled) -> None:
    models.load("chain")
    models.unload("two")
    why = "ensemble chain contains models that are not available or ambiguous: two"
    assert not models.ready("chain") and not models.core.ready
    assert states(models)["chain"] == ("UNAVAILABLE", why)
    with pytest.raises(Unavailable, match=why):
        ask(models)
    models.load("two")
    assert models.ready("chain") and models.core.ready and ask(models) == [3]


def test_a_model_that_is_loaded_again_serves_from_then_on(models: Controlled) -> None:
    models.load("chain")
    write_again(models, "two", PLUS_ONE.replace("x + 1", "x + 100"))
    models.load("two")
    assert ask(models) == [102]


def test_a_model_that_does_not_fit_any_more(models: Controlled) -> None:
    models.load("chain")
    write_again(models, "two", PLUS_ONE, IO.replace('"IN"', '"INPUT"'))
    models.load("two")
    with pytest.raises(Unavailable, match="in ensemble chain, input INPUT in model two is not mapped to any ensemble tensors"):
        ask(models)
    assert not models.ready("chain")


def test_a_model_that_has_become_decoupled(models: Controlled) -> None:
    models.load("chain")
    write_again(models, "two", PLUS_ONE, IO + "model_transaction_policy { decoupled: true }")
    models.load("two")
    with pytest.raises(Unavailable, match="load it again"):
        ask(models)
    (models.root / "chain" / "1" / "changed").touch()
    models.load("chain")
    assert models.core.find("chain").decoupled and models.ready("chain")


def write_again(models: Controlled, name: str, code: str, config: str = IO) -> None:
    (models.root / name / "1" / "model.py").write_text(code)
    (models.root / name / "config.pbtxt").write_text(f'backend: "python"\n{config}')


@pytest.mark.parametrize("again", [True, False], ids=["loaded again", "unloaded"])
def test_a_model_is_changed_while_a_request_is_on_its_way(
    models: Controlled, pool: ThreadPoolExecutor, tmp_path: Path, again: bool
) -> None:
    models.load("chain")
    with Gate(tmp_path, "one") as gate:
        answer = pool.submit(ask, models)
        gate.reached()
        if again:
            write_again(models, "two", PLUS_ONE.replace("x + 1", "x + 100"))
            models.load("two")
        else:
            models.unload("two")
    if again:
        assert answer.result(30) in ([102], [3])
    else:
        with pytest.raises(Unavailable, match="in ensemble 'chain', model 'two' was changed or unloaded meanwhile"):
            answer.result(30)


def test_unloading_waits_for_what_is_under_way(models: Controlled, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    models.load("chain")
    with Gate(tmp_path, "one") as gate:
        answer = pool.submit(ask, models)
        gate.reached()
        unloaded = models.begin(models.core.unload_model("chain", unload_dependents=True))
        until(lambda: not models.core.models.get("chain"), what="the end of new requests")
        with pytest.raises(ServerError, match="'chain' is not found"):
            ask(models)
    assert answer.result(30) == [3]
    unloaded.result(30)
    until(lambda: [name for name, (state, _) in states(models).items() if state == "READY"] == [], what="the end of its models")


def test_a_stub_that_dies_in_a_middle_step(models: Controlled, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    models.load("chain")
    ensemble(models.root, "other", chain("one"))
    models.load("other")
    with Gate(tmp_path, "two") as gate:
        answer = pool.submit(ask, models)
        gate.reached()
        os.kill(models.pids("two")[0], signal.SIGKILL)
        with pytest.raises(ServerError, match=r"in ensemble 'chain', .*'two_0_0'.*SIGKILL"):
            answer.result(30)
    assert ask(models, "other") == [2]
    assert ask(models) == [3]
    until(lambda: models.ready("chain"))


def test_a_stub_that_dies_for_good(models: Controlled) -> None:
    with (models.root / "two" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "restart_limit" value { string_value: "0" } }\n')
    models.load("chain")
    os.kill(models.pids("two")[0], signal.SIGKILL)
    until(lambda: not models.ready("chain"))
    with pytest.raises(Unavailable, match=r"'two': .*SIGKILL"):
        ask(models)


def test_every_request_is_answered_and_counted_whatever_happens(models: Controlled, pool: ThreadPoolExecutor) -> None:
    models.load("chain")
    chained = models.core.find("chain")

    def many(_: int) -> List[str]:
        outcomes = []
        for value in range(60):
            try:
                outcomes.append(str(ask(models, value=value) == [value + 2]))
            except ServerError as error:
                outcomes.append(type(error).__name__)
        return outcomes

    answers = [pool.submit(many, number) for number in range(4)]
    until(lambda: chained.statistics.count() or chained.statistics.successes > 30, what="some answers")
    os.kill(models.pids("two")[0], signal.SIGKILL)
    outcomes = [outcome for answer in answers for outcome in answer.result(60)]
    assert set(outcomes) <= {"True", "Unavailable"} and outcomes.count("True") > 30
    until(lambda: not chained.in_flight and not chained.memory().inputs_used, what="the return of every block")
    models.load("two")
    assert ask(models) == [3]
    counted = models.core.statistics("chain")[0]["inference_stats"]
    assert (counted["success"]["count"], counted["fail"]["count"]) == (outcomes.count("True") + 1, outcomes.count("Unavailable"))


def test_cancelling_reaches_the_step_and_nothing_follows(models: Controlled, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    models.load("chain")
    executed = models.core.find("two").statistics
    with Gate(tmp_path, "one") as gate:
        with pytest.raises(TimeoutError):
            ask(models, timeout=0.5)
        gate.reached()
    until(lambda: not models.core.find("chain").in_flight, what="the end of the step")
    assert ask(models) == [3]
    executed.count()
    assert executed.executions == 1
    statistics = models.core.statistics("chain")[0]["inference_stats"]
    assert (statistics["success"]["count"], statistics["fail"]["count"]) == (1, 1)


def test_an_asynchronous_caller_that_gives_up(models: Controlled, tmp_path: Path) -> None:
    models.load("chain")
    with Gate(tmp_path, "one") as gate:
        asked: Future[Any] = models.begin(models.server.infer_async("chain", {"X": np.ones(1, np.float32)}))
        gate.reached()
        asked.cancel()
        until(lambda: models.core.statistics("chain")[0]["inference_stats"]["fail"]["count"] == 1, what="the cancellation")
    assert ask(models) == [3]


def test_a_deadline_that_passes_in_a_middle_step(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    root = tmp_path / "models"
    plus_one(root, "one", "max_batch_size: 4")
    batching = "max_batch_size: 2 dynamic_batching { default_queue_policy { allow_timeout_override: true } }"
    plus_one(root, "slow", f"{batching} {GATE.format(tmp_path / 'gate')}")
    ensemble(root, "chain", chain("one", "slow"), extra="max_batch_size: 1")
    with serving(tmp_path, root) as server, Gate(tmp_path, "gate") as gate:
        url = f"http://{server.address}/v2/models/chain/infer"
        body = {"inputs": [tensor("X", "FP32", [1, 1], [1])]}
        patient = [pool.submit(httpx.post, url, json=body, timeout=30)]
        gate.reached()
        hasty = httpx.post(url, json={**body, "id": "hasty", "parameters": {"timeout": 30_000}}, timeout=30)
        assert (hasty.status_code, hasty.json()["error"]) == (503, "in ensemble 'chain', [request id: hasty] Request timeout expired")
        gate.__exit__()
        assert [answer.result().status_code for answer in patient] == [200]


def test_all_at_once_at_the_start(tmp_path: Path) -> None:
    ensemble(tmp_path, "a_first", [("b_second", {"X": "X"}, {"Y": "Y"})])
    ensemble(tmp_path, "b_second", chain("z_last", "z_last"))
    plus_one(tmp_path, "z_last")
    ensemble(tmp_path, "broken", chain("nothing"))
    with Server(tmp_path, exit_on_error=False, options=ServerOptions()) as server:
        assert server.infer("a_first", {"X": np.ones(1, np.float32)}, timeout=20)["Y"].tolist() == [3]
        assert "not available or ambiguous: nothing" in server.core.failures["broken"]
        assert set(server.core.failures) == {"broken"}


def test_it_loads_when_its_model_comes(models: Controlled) -> None:
    ensemble(models.root, "early", chain("late"))
    with pytest.raises(InvalidArgument, match="not available or ambiguous: late"):
        models.load("early")
    plus_one(models.root, "late")
    models.load("late")
    until(lambda: models.ready("early"), what="the ensemble")
    assert ask(models, "early") == [2]


def test_a_step_names_its_version(models: Controlled) -> None:
    directory = plus_one(models.root, "many", "version_policy { all {} }")
    (directory / "2").mkdir()
    (directory / "2" / "model.py").write_text(PLUS_ONE.replace("x + 1", "x + 2"))
    for name, version in (("newest", -1), ("oldest", 1)):
        config = ensemble(models.root, name, chain("many")) / "config.pbtxt"
        config.write_text(config.read_text().replace("model_version: -1", f"model_version: {version}"))
        models.load(name)
    assert (ask(models, "newest"), ask(models, "oldest")) == ([3], [2])


def test_a_client_that_takes_its_time_holds_the_steps(tmp_path: Path) -> None:
    count(tmp_path, "count")
    plus_one(tmp_path, "one")
    ensemble(tmp_path, "counted", chain("count", "one"))
    ensemble(tmp_path, "narrow", chain("count", "one"), section="max_inflight_requests: 2")
    with Server(tmp_path) as server:
        for name in ("counted", "narrow"):
            stream = server.infer_stream(name, {"X": np.array([2000], np.float32)}, timeout=20)
            found = [float(answer["Y"][0]) for answer in stream if "Y" in answer]
            assert sorted(found) == list(range(1, 2001))
            with server.infer_stream(name, {"X": np.array([2000], np.float32)}, timeout=20) as stream:
                next(stream)
            until(lambda name=name: not server.core.find(name).in_flight, what="the end of what nobody wants")  # type: ignore[misc]


def test_a_request_that_is_held_goes_on_when_it_may(tmp_path: Path) -> None:
    count(tmp_path, "count")
    plus_one(tmp_path, "one")
    ensemble(tmp_path, "counted", chain("count", "one"))
    with Server(tmp_path) as server:
        model = server.core.find("counted")
        found: List[Any] = []
        held: List[Request] = []

        def settle(outcome: Any, final: bool) -> None:
            drop(outcome)
            found.append(final)
            if len(found) == 1:
                model.hold(held[0], True)

        held.append(to_request(model, {"X": np.array([20_000], np.float32)}, (), "", None, settle))
        model.submit(held[0])
        (instance,) = server.core.find("count").instances
        until(lambda: any(instance.channel._words.held), what="the hold of the step")
        for _ in range(20):
            server.infer("one", {"IN": np.ones(1, np.float32)}, timeout=20)
        assert len(found) < 20_000
        model.hold(held[0], False)
        until(lambda: found[-1], what="the rest of the responses")
        assert len(found) in (20_000, 20_001)


def test_an_ensemble_of_other_tensors_does_not_mix_them_up(models: Controlled, pool: ThreadPoolExecutor) -> None:
    models.load("chain")
    sizes = [1, 100, 20_000, 300_000]
    answers = [
        (value, size, pool.submit(models.server.infer, "chain", {"X": np.full(size, value, np.float32)}, timeout=60))
        for value in range(12)
        for size in sizes
    ]
    for value, size, answer in answers:
        found = answer.result()["Y"]
        assert found.shape == (size,) and (found == value + 2).all()
