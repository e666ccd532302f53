"""An instance that dies is replaced, and requests that wait for it are answered by the next one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import httpx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_client import Client, said, script
from mortal import DIE, Mortals, error_of, mortal, result_of
from scripted import scripted
from server_process import ServerProcess, serving, until

DYNAMIC = "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 1000 }"
TIMED = "max_batch_size: 1 dynamic_batching { default_queue_policy { default_timeout_microseconds: 300000 allow_timeout_override: true } }"
SEQUENCED = "max_batch_size: 1 sequence_batching { max_sequence_idle_microseconds: 60000000 direct {} }"
EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")
LIMITED = 'instance_group { count: 1 kind: KIND_CPU rate_limiter { resources { name: "R" count: 1 } } }'
ENSEMBLE = """
platform: "ensemble"
input { name: "CODE" data_type: TYPE_STRING dims: [1] } output { name: "RESULT" data_type: TYPE_STRING dims: [1] }
ensemble_scheduling { step { model_name: "step" model_version: -1
  input_map { key: "CODE" value: "CODE" } output_map { key: "RESULT" value: "RESULT" } } }
"""


def ensemble(root: Path) -> None:
    (root / "chain" / "1").mkdir(parents=True)
    (root / "chain" / "config.pbtxt").write_text(ENSEMBLE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restarts")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    """A model for each test that kills one: a death too many, and a restart waits for longer than requests do."""
    models = root / "models"
    held = wait_for_the_end_of(root / "held")
    for name in ("plain", "retried_not", "step", "callee", "caller", "observed"):
        mortal(models, name)
    mortal(models, "pair", instances=2)
    mortal(models, "dynamic", DYNAMIC)
    mortal(models, "timed", TIMED, initialize=held)
    mortal(models, "sequenced", SEQUENCED)
    mortal(models, "slow", initialize=held)
    mortal(models, "hopeless", initialize=held)
    mortal(models, "broken", initialize=f"assert not os.path.exists({str(root / 'broken')!r}), 'out of order'")
    mortal(models, "killed", initialize=f"if os.path.exists({str(root / 'broken')!r}): os._exit(5)")
    mortal(models, "unloaded", initialize=held)
    for name in ("abandoned", "reloaded"):
        mortal(models, name, initialize=f"assert not os.path.exists({str(root / 'broken')!r}), 'out of order'")
    mortal(models, "limited", LIMITED, instances=0)
    mortal(models, "twice", restart_limit="1")
    mortal(models, "never", restart_limit="0")
    scripted(models, "free", decoupled=True, retry_on_crash="yes")
    mortal(models, "retried", retry_on_crash="yes")
    mortal(models, "retried_batch", DYNAMIC, retry_on_crash="yes")
    ensemble(models)
    with serving(root, models, "--grpc-port", "0", "--rate-limit", "execution_count", *EXPLICIT, tracebacks=True) as server:
        yield server


def wait_for_the_end_of(file: Path) -> str:
    return f"while os.path.exists({str(file)!r}): time.sleep(0.001)"


@pytest.fixture
def held(root: Path) -> Iterator[Path]:
    """While this file is there, the models ``slow``, ``timed``, ``hopeless`` and ``unloaded`` do not load."""
    file = root / "held"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture
def broken(root: Path) -> Iterator[Path]:
    """While this file is there, the models ``broken``, ``killed``, ``abandoned`` and ``reloaded`` fail to load."""
    file = root / "broken"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture
def mortals(server: ServerProcess, tmp_path: Path) -> Iterator[Mortals]:
    with Mortals(server, tmp_path / "gate") as found:
        yield found


def test_an_instance_that_dies_is_replaced(mortals: Mortals) -> None:
    (before,) = mortals.pids("plain")
    answer = mortals.ask("plain", DIE)
    assert answer.status_code == 503
    for part in ("plain", "'plain_0_0'", f"pid {before}", "exit code 3"):
        assert part in error_of(answer)
    assert result_of(mortals.ask("plain", "result = model.instance")) == "plain_0_0"
    (after,) = until(lambda: mortals.pids("plain"))
    assert after != before and mortals.ready("plain")
    assert mortals.index("plain")["state"] == "READY"
    assert mortals.instances("plain")[0]["restarts"] == 1
    assert mortals.metric("stublet_instance_restarts_total", "plain_0_0") == 1
    assert mortals.metric("stublet_instance_up", "plain_0_0") == 1
    assert "instance 'plain_0_0' is started again at once (restart 1 of at most 10 within 300 s)" in mortals.server.log
    assert f"instance 'plain_0_0' serves again (pid {after})" in mortals.server.log


def queued_survive(mortals: Mortals, model: str, *batch: int, **parameters: Any) -> None:
    fatal = mortals.begin_fatal(model, *batch, **parameters)
    # So many that some of them were handed to the instance ahead of their time.
    waiting = mortals.begin_waiting(model, 20, "result = model.executed", *batch, **parameters)
    mortals.gate.unlink()
    assert "exit code 3" in error_of(fatal.result())
    assert [answer.result().status_code for answer in waiting] == [200] * 20


@pytest.mark.parametrize("model, batch", [("observed", ()), ("dynamic", (1,))])
def test_what_waits_is_answered_by_the_next_instance(mortals: Mortals, model: str, batch: Any) -> None:
    queued_survive(mortals, model, *batch)


def test_what_waits_goes_to_the_other_instance(mortals: Mortals) -> None:
    fatal = mortals.begin_fatal("pair")
    mortals.begin("pair", mortals.behind(""))
    waiting = mortals.begin_waiting("pair", 20)
    mortals.gate.unlink()
    assert fatal.result().status_code == 503
    assert [answer.result().status_code for answer in waiting] == [200] * 20
    assert mortals.ready("pair")
    until(lambda: len(mortals.pids("pair")) == 2)


def test_requests_wait_for_an_instance_that_is_being_started(mortals: Mortals, held: Path) -> None:
    mortals.kill("slow")
    waiting = mortals.begin_waiting("slow", 3, "result = model.executed")
    assert not mortals.ready("slow") and not mortals.ready()
    row = mortals.index("slow")
    assert row["state"] == "UNAVAILABLE"
    assert "instance 'slow_0_0' is being started again (restart 1 of at most 10 within 300 s): " in row["reason"]
    assert mortals.metric("stublet_instance_up", "slow_0_0") == 0
    (instance,) = mortals.instances("slow")
    assert (instance["state"], instance["restarts"]) == ("LOADING", 1)
    held.unlink()
    assert sorted(result_of(answer.result()) for answer in waiting) == ["1", "2", "3"]
    assert mortals.ready("slow")


def test_the_deadlines_of_the_queue_hold_while_nobody_serves(mortals: Mortals, held: Path) -> None:
    mortals.kill("timed")
    assert "Request timeout expired" in error_of(mortals.ask("timed", "", 1, timeout=50_000))
    assert not mortals.ready("timed")
    held.unlink()
    until(lambda: mortals.ready("timed"))
    assert mortals.ask("timed", "", 1).status_code == 200


def test_a_sequence_is_lost_with_its_instance(mortals: Mortals) -> None:
    assert mortals.ask("sequenced", "", 1, sequence_id=7, sequence_start=True).status_code == 200
    fatal = mortals.begin_fatal("sequenced", 1, sequence_id=7)
    (behind,) = mortals.begin_waiting("sequenced", 1, "", 1, sequence_id=7)
    (new,) = mortals.begin_waiting("sequenced", 1, "", 1, sequence_id=8, sequence_start=True, sequence_end=True)
    mortals.gate.unlink()
    assert "exit code 3" in error_of(fatal.result())
    assert "exit code 3" in error_of(behind.result())
    assert new.result().status_code == 200  # it had not begun
    text = "inference request for sequence 7 to model 'sequenced' must specify the START flag on the first request of the sequence"
    assert error_of(mortals.ask("sequenced", "", 1, sequence_id=7)) == text
    assert mortals.ask("sequenced", "", 1, sequence_id=7, sequence_start=True, sequence_end=True).status_code == 200


def test_an_ensemble_waits_for_its_step(mortals: Mortals) -> None:
    fatal = mortals.begin_fatal("chain")
    waiting = [mortals.begin("chain", "result = 'new'") for _ in range(5)]
    until(lambda: mortals.pending("step") == 5)
    mortals.gate.unlink()
    assert "in ensemble 'chain'" in error_of(fatal.result()) and "exit code 3" in error_of(fatal.result())
    assert mortals.ask("chain", "result = 'newer'").status_code == 200
    assert [result_of(answer.result()) for answer in waiting] == ["new"] * 5


CALL = """
inputs = [pb_utils.Tensor("CODE", np.array([{!r}], object))]
answer = pb_utils.InferenceRequest(model_name="callee", inputs=inputs, requested_output_names=["RESULT"]).exec()
result = answer.error().message() if answer.has_error() else pb_utils.get_output_tensor_by_name(answer, "RESULT").as_numpy()[0].decode()
"""


def test_a_call_of_a_model_waits_for_the_callee(mortals: Mortals) -> None:
    assert "exit code 3" in result_of(mortals.ask("caller", CALL.format(DIE)))
    assert result_of(mortals.ask("caller", CALL.format("result = 'back'"))) == "back"


def test_what_the_rate_limiter_holds_back_is_not_lost(mortals: Mortals) -> None:
    fatal = mortals.begin_fatal("limited")
    waiting = mortals.begin_waiting("limited", 5)
    mortals.gate.unlink()
    assert "exit code 3" in error_of(fatal.result())
    assert [answer.result().status_code for answer in waiting] == [200] * 5


# When it does not come back


@pytest.mark.parametrize("model, why", [("broken", "out of order"), ("killed", "exit code 5")])
def test_a_restart_that_fails_refuses_what_waits_for_it(mortals: Mortals, broken: Path, model: str, why: str) -> None:
    fatal = mortals.begin_fatal(model)
    waiting = mortals.begin_waiting(model, 5)
    mortals.gate.unlink()
    assert "exit code 3" in error_of(fatal.result())
    for answer in waiting:
        assert answer.result().status_code == 503
        assert f"model '{model}' is not available: instance '{model}_0_0' is " in error_of(answer.result())
    until(lambda: why in mortals.index(model).get("reason", ""))
    started = time.monotonic()
    answer = mortals.ask(model)
    assert answer.status_code == 503 and time.monotonic() - started < 2
    until(lambda: f"instance '{model}_0_0' is started again in" in mortals.index(model)["reason"])
    until(lambda: mortals.instances(model)[0]["restart_in_seconds"] is not None)
    broken.unlink()
    until(lambda: mortals.ready(model))
    assert mortals.ask(model).status_code == 200


def test_the_budget_is_spent(mortals: Mortals) -> None:
    assert mortals.ask("twice", DIE).status_code == 503
    assert mortals.ask("twice", "").status_code == 200
    assert mortals.ask("twice", DIE).status_code == 503
    answer = mortals.ask("twice", "")
    assert answer.status_code == 503
    why = "model 'twice' is not available: instance 'twice_0_0' has died 2 times within 300 s and is not started again until the model is loaded"
    assert error_of(answer).startswith(why)
    assert not mortals.ready("twice") and [instance["state"] for instance in mortals.instances("twice")] == ["FAILED"]
    assert mortals.index("twice")["reason"].startswith(why)


def test_a_model_that_wants_no_restart_has_none(mortals: Mortals) -> None:
    assert mortals.ask("never", DIE).status_code == 503
    assert "'never_0_0' is not started again, as 'restart_limit' says: " in error_of(mortals.ask("never", ""))
    assert "exit code 3" in error_of(mortals.ask("never", ""))


# The end of the model


def test_what_waits_for_a_restart_is_answered_before_the_model_is_unloaded(mortals: Mortals, held: Path) -> None:
    mortals.kill("unloaded")
    waiting = mortals.begin_waiting("unloaded", 3)
    unloaded = mortals.begin_unloading("unloaded")
    until(lambda: mortals.index("unloaded")["state"] == "UNLOADING")
    assert mortals.ask("unloaded").status_code == 404
    held.unlink()
    assert [answer.result().status_code for answer in waiting] == [200] * 3
    unloaded.result()
    assert mortals.index("unloaded") == {"name": "unloaded", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}


def test_a_model_is_unloaded_before_its_restart_is_due(mortals: Mortals, broken: Path) -> None:
    mortals.kill("abandoned")
    until(lambda: mortals.pids("abandoned", "RESTARTING"))
    mortals.unload("abandoned")
    broken.unlink()
    assert mortals.index("abandoned")["reason"] == "unloaded"


def test_a_model_is_loaded_again_before_its_restart_is_due(mortals: Mortals, broken: Path) -> None:
    mortals.kill("reloaded")
    until(lambda: mortals.pids("reloaded", "RESTARTING"))
    broken.unlink()
    mortals.load("reloaded")
    assert mortals.ready("reloaded") and mortals.ask("reloaded").status_code == 200
    until(lambda: [(instance["state"], instance["restarts"]) for instance in mortals.instances("reloaded")] == [("READY", 0)])


@pytest.mark.parametrize("initialize", ["time.sleep(60)", "raise RuntimeError('never')"], ids=["loading", "waiting"])
def test_the_server_ends_while_an_instance_is_to_be_replaced(serve: Any, repository: Path, tmp_path: Path, initialize: str) -> None:
    flag = tmp_path / "flag"
    mortal(repository, "m", initialize=f"if os.path.exists({str(flag)!r}): {initialize}")
    server = serve("--exit-timeout-secs", "1")
    with Mortals(server, tmp_path / "gate") as mortals:
        flag.touch()
        mortals.kill("m")
        state = "LOADING" if "sleep" in initialize else "RESTARTING"
        until(lambda: mortals.pids("m", state))
        waiting = mortals.begin_waiting("m", 2) if state == "LOADING" else []
        server.stop(tracebacks=True)
        for answer in waiting:
            assert isinstance(answer.exception(), httpx.HTTPError) or answer.result().status_code == 503


# Health


@pytest.mark.usefixtures("hub", "grpc_core")
def test_readiness_is_false_within_a_tenth_of_a_second(mortals: Mortals, held: Path) -> None:
    """And stays so until the next instance serves, whoever asks."""
    with (
        triton_http.InferenceServerClient(mortals.server.address) as http,
        triton_grpc.InferenceServerClient(mortals.server.grpc_address) as grpc,
    ):
        questions: List[Callable[[], bool]] = [
            lambda: bool(http.is_model_ready("hopeless")),
            lambda: bool(grpc.is_model_ready("hopeless")),
            lambda: bool(http.is_server_ready()),
            lambda: bool(grpc.is_server_ready()),
        ]
        times = []
        while not times or (min(times) >= 0.1 and len(times) < 5):  # somebody else may have had the processor
            until(lambda: questions[0]() and questions[1]())
            held.touch()
            (pid,) = mortals.pids("hopeless")
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            for question in questions:
                until(lambda ask=question: not ask(), 5)
            times.append(time.monotonic() - killed)
            assert http.is_server_live() and grpc.is_server_live()
            assert not any(question() for question in questions)
            held.unlink()
        assert min(times) < 0.1
        until(lambda: questions[0]() and questions[1]())


# Once more


def attempts(tmp_path: Path, code: str) -> str:
    """Code that counts how often it runs."""
    path = str(tmp_path / "attempts")
    return f"open({path!r}, 'a').write('x'); attempt = os.path.getsize({path!r})\n{code}"


@pytest.mark.parametrize("model, batch", [("retried", ()), ("retried_batch", (1,))])
def test_what_was_interrupted_is_executed_once_more_if_the_model_says_so(mortals: Mortals, model: str, batch: Any, tmp_path: Path) -> None:
    code = attempts(tmp_path, "code.flat[0] = b'spoilt'\nif attempt == 1: os._exit(3)\nresult = attempt")
    assert result_of(mortals.ask(model, code, *batch)) == "2"
    assert not mortals.instances(model)[0]["reason"]


def test_what_kills_twice_fails(mortals: Mortals, tmp_path: Path) -> None:
    until(lambda: mortals.ready("retried"))
    assert "exit code 3" in error_of(mortals.ask("retried", attempts(tmp_path, DIE)))
    assert (tmp_path / "attempts").read_text() == "xx"


@pytest.mark.usefixtures("grpc_core")
def test_a_stream_is_begun_again_unless_something_of_it_was_sent(mortals: Mortals, tmp_path: Path) -> None:
    with Client(mortals.server.grpc_address) as client:
        again = attempts(tmp_path, "if attempt == 1: os._exit(3)\nsender.send(response('again'), FINAL)")
        (answer,) = client.stream([script("free", again)])
        assert said(answer) == "again"
        begun, failed = client.stream([script("free", "sender.send(response('begun')); model.released.wait(0.3); os._exit(3)")])
        assert said(begun) == "begun" and "exit code 3" in failed.error_message


def test_nothing_is_executed_twice_unless_the_model_says_so(mortals: Mortals, tmp_path: Path) -> None:
    assert "exit code 3" in error_of(mortals.ask("retried_not", attempts(tmp_path, DIE)))
    assert result_of(mortals.ask("retried_not", "")) == ""
    assert (tmp_path / "attempts").read_text() == "x"
