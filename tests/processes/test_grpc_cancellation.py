"""Calls and streams that are cancelled, or run out of time, and clients that vanish or read slowly (spec 6.7)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from grpc_client import FOUR, SECONDS, Client, add, failure, said, script
from grpc_stream import Stream, waits
from server_process import ServerProcess, until
from stublet.parent.backlog import MOST_BYTES


def test_cancel_cancels_what_is_outstanding(grpc_client: Client, tmp_path: Path) -> None:
    with Stream(grpc_client) as stream:
        for model in ("free", "single"):
            stream.ask(script(model, waits(tmp_path, model)))
        until(lambda: all((tmp_path / f"{model} began").exists() for model in ("free", "single")), what="both executions")
        stream.call.cancel()
        assert failure(stream.take) == "CANCELLED: Locally cancelled by application!"
    until(lambda: all((tmp_path / f"{model} cancelled").exists() for model in ("free", "single")), what="both cancellations")


def test_a_unary_call_that_is_cancelled(grpc_client: Client, tmp_path: Path) -> None:
    call = grpc_client.stub.ModelInfer.future(script("single", waits(tmp_path, "one")), timeout=SECONDS)
    until((tmp_path / "one began").exists, what="the execution")
    call.cancel()
    until((tmp_path / "one cancelled").exists, what="the cancellation")
    assert call.code() is grpc.StatusCode.CANCELLED


def test_one_that_waits_is_cancelled_too(grpc_server: ServerProcess, grpc_client: Client, tmp_path: Path) -> None:
    """It was never executed, and never is."""
    mark, ran = tmp_path / "mark", tmp_path / "ran"
    began = f"open({str(tmp_path / 'began')!r}, 'w').close()\n"
    first = grpc_client.stub.ModelInfer.future(script("single", began + f"until(lambda: os.path.exists({str(mark)!r}))"), timeout=SECONDS)
    until((tmp_path / "began").exists, what="the execution of the first one")
    second = grpc_client.stub.ModelInfer.future(script("single", f"open({str(ran)!r}, 'w').close()"), timeout=SECONDS)
    until(lambda: pending(grpc_server) == 1, what="the second one's waiting")
    second.cancel()
    until(lambda: pending(grpc_server) == 0, what="the second one's cancellation")
    mark.touch()
    first.result()
    grpc_client.infer(script("single", ""))
    assert not ran.exists()


def pending(server: ServerProcess) -> int:
    """How many requests wait to be executed by ``single``."""
    text = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith("nv_inference_pending_request_count{") and '"single"' in line]
    return int(float(line.split()[-1]))


def test_a_deadline_cancels(grpc_client: Client, tmp_path: Path) -> None:
    assert failure(grpc_client.infer, script("single", waits(tmp_path, "one")), timeout=0.3).startswith("DEADLINE_EXCEEDED: ")
    until((tmp_path / "one cancelled").exists, what="the cancellation")


def test_the_deadline_of_a_stream_cancels(grpc_client: Client, tmp_path: Path) -> None:
    with Stream(grpc_client, timeout=0.5) as stream:
        stream.ask(script("free", waits(tmp_path, "one")))
        assert said(*stream.take()) == "begun"
        assert failure(stream.take).startswith("DEADLINE_EXCEEDED: ")
    until((tmp_path / "one cancelled").exists, what="the cancellation")


VANISHING = """
import sys, numpy as np
sys.path[:0] = {path!r}
from grpc_client import Client, add, script
client = Client({address!r})
requests = {requests}
if {unary}:
    client.stub.ModelInfer(requests[0])
else:
    def never_ends():
        yield from requests
        import threading; threading.Event().wait()
    for response in client.stub.ModelStreamInfer(never_ends()):
        print("answer", flush=True)
        if not {reads}:
            import threading; threading.Event().wait()
"""

ENDLESS = "data = np.zeros(1 << 14, np.float32)\nuntil(lambda: request.is_cancelled() or sender.send(response('x', data)))\nopen({!r}, 'w').close()\nsender.send(flags=FINAL)"


@pytest.mark.parametrize("state", ["idle", "waiting", "reading", "not reading", "unary"])
def test_a_client_that_vanishes(grpc_server: ServerProcess, grpc_client: Client, tmp_path: Path, state: str) -> None:
    ended = tmp_path / "one cancelled"
    requests = {
        "idle": "[add()]",
        "waiting": f"[add(), script('free', {waits(tmp_path, 'one')!r})]",
        "reading": f"[script('free', {ENDLESS.format(str(ended))!r}, outputs=['RESULT', 'DATA'])]",
        "not reading": f"[script('free', {ENDLESS.format(str(ended))!r}, outputs=['RESULT', 'DATA'])]",
        "unary": f"[script('single', {waits(tmp_path, 'one')!r})]",
    }[state]
    code = VANISHING.format(
        path=[str(Path(__file__).parent.parent)],
        address=grpc_server.grpc_address,
        requests=requests,
        unary=state == "unary",
        reads=state in ("waiting", "reading"),
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        if state == "unary":
            until((tmp_path / "one began").exists, what="the execution")
        else:
            assert client.stdout is not None
            assert client.stdout.readline() == b"answer\n"
        if state == "waiting":
            until((tmp_path / "one began").exists, what="the execution")
    finally:
        os.kill(client.pid, signal.SIGKILL)
        client.communicate()
    if state != "idle":
        until(ended.exists, what="the cancellation")
    assert said(*grpc_client.stream([script("free", "sender.send(response('a'), FINAL)")])) == "a"


def test_a_slow_reader(grpc_server: ServerProcess, tmp_path: Path) -> None:
    """The model waits for it, so that neither its memory nor the server's grows; nobody else is kept waiting, and nothing is lost."""
    count, size = 300, 1 << 18  # 300 MiB in all
    mark = tmp_path / "sent"
    code = (
        f"for i in range({count}):\n    sender.send(response(i, np.full({size}, i)))\n    open({str(mark)!r}, 'a').write('.')\n"
        "sender.send(flags=FINAL)"
    )
    with Client(grpc_server.grpc_address) as client, Client(grpc_server.grpc_address) as other, Stream(client) as stream:
        before = private_bytes(grpc_server.pid)
        stream.ask(script("free", code, outputs=["RESULT", "DATA"]))
        stream.take()
        until(lambda: mark.exists() and mark.stat().st_size >= MOST_BYTES // (4 * size), what="what is sent ahead")
        for _ in range(20):
            assert other.infer(add()).raw_output_contents[0] == (FOUR + FOUR).tobytes()
        # What waits in the server, and what gRPC and the system have taken for the connection.
        assert mark.stat().st_size < 2 * MOST_BYTES // (4 * size)
        assert private_bytes(grpc_server.pid) - before < 30 << 20
        stream.half_close()
        rest = stream.rest()
        assert [said(one) for one in rest] == [str(i) for i in range(1, count)]
        assert np.frombuffer(rest[-1].infer_response.raw_output_contents[1], np.float32).tolist() == [count - 1] * size


def test_a_held_model_goes_on_when_its_client_leaves(grpc_server: ServerProcess, grpc_client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "cancelled"
    code = (
        "data = np.zeros(1 << 22, np.float32)\n"  # 16 MiB
        f"until(lambda: request.is_cancelled() or sender.send(response('x', data)))\nopen({str(mark)!r}, 'w').close()\nsender.send(flags=FINAL)"
    )
    with Client(grpc_server.grpc_address, max_receive_message_length=-1) as client:
        with Stream(client) as stream:
            stream.ask(script("free", code, outputs=["RESULT", "DATA"], id="much"))
            stream.take()
        until(mark.exists, what="the cancellation")
    assert said(*grpc_client.stream([script("free", "sender.send(response('a'), FINAL)")])) == "a"


def private_bytes(pid: int) -> int:
    """Memory of a process that is its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
