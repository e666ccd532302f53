"""Where a stub was, and how it came to grief: who is told what, for each of them. Whatever it is, the answer comes, another model is served
meanwhile, and the instance is there again afterwards.

The ends of server, fork server and auto-complete processes are in ``test_endings`` and ``test_deaths``, those of clients in ``test_cancellation``
and in the chaos suite.
"""

from __future__ import annotations

import re
import shutil
import venv
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple

import numpy as np
import pytest
from grpc_client import Client, script
from grpc_stream import Stream, told
from http_wire import Answer, infer, request, tensor
from scripted import scripted
from server_process import ServerProcess, serving, until

HANG_SECONDS, EXECUTE_SECONDS, INITIALIZE_SECONDS = 0.5, 1.0, 1.5

GARBAGE = """
import gc
from stublet.stub.process import Stub
(stub,) = [thing for thing in gc.get_objects() if isinstance(thing, Stub)]
stub._outbox._up.push(b"\\xc1" * 100)
stub._outbox._up.ring()
time.sleep(600)
"""

WAYS = {
    "SIGSEGV": "ctypes.string_at(0)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    # Whoever sends it to itself may go on for a moment.
    "SIGSTOP": "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(600)",
    "exit": "os._exit(3)",
    "exception": "raise ValueError('unlucky')",
    "memory": "bytearray(1 << 60)",
    "abort": "sys.stderr.write('std::bad_alloc\\n'); sys.stderr.flush(); os.abort()",
    # Without the signals, which would end the sleep.
    "hang": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); ctypes.PyDLL(None).sleep(600)",
    "descriptors": "os.closerange(3, 4096); time.sleep(600)",
    "garbage": GARBAGE,
}
"""Python that a stub runs. ``abort`` is what a native library does that finds no memory, ``hang`` keeps the interpreter's lock."""

IMPORTS = "import ctypes, os, signal, sys, time\n"

HELLO = f"""
{IMPORTS}
command = open("/proc/self/cmdline").read().split(chr(0))
if "--control" in command:
    control = int(command[command.index("--control") + 1])
    {{code}}
"""
"""Runs in the interpreter of a stub before the first line of ours."""


class Place(NamedTuple):
    """``hooks``: parameters of the model, made of the code. ``go``: has the stub get there, and says what was answered."""

    go: Callable[[Site, str, str], str]
    decoupled: bool = False


class Site:
    """The server, and its clients."""

    def __init__(self, server: ServerProcess, client: Client) -> None:
        self.server = server
        self.client = client

    def ask(self, message: bytes) -> str:
        """The status and the error of what is answered, or the first output."""
        with self.server.wire() as wire:
            answer: Answer = wire.ask(message)
        if answer.status != 200:
            return f"{answer.status}: {answer.error}"
        return f"200: {answer.json()['outputs'][0]['data'][0]}" if answer.body else "200"

    def control(self, model: str, what: str) -> str:
        return self.ask(request("POST", f"/v2/repository/models/{model}/{what}"))

    def run(self, model: str, code: str) -> str:
        return self.ask(infer(model, {"inputs": [tensor("CODE", "BYTES", [1], [code])], "outputs": [{"name": "RESULT"}]}))

    def stream(self, model: str, code: str) -> str:
        """What comes of a request over a stream, until its end or the first error."""
        with Stream(self.client) as stream:
            stream.ask(script(model, code, parameters={"triton_enable_empty_final_response": True}))
            texts: List[str] = []
            while True:
                ((_, text, final),) = told(stream.take())
                texts.append(text or "end")
                if final or text.startswith("error"):
                    return ", ".join(texts)


def _load(site: Site, model: str, code: str) -> str:
    return site.control(model, "load")


def _unload(site: Site, model: str, code: str) -> str:
    return f"{_load(site, model, code)}, {site.control(model, 'unload')}"


def _execute(site: Site, model: str, code: str) -> str:
    return site.run(model, code)


def _idle(site: Site, model: str, code: str) -> str:
    return site.run(model, f"def later():\n    time.sleep(0.2)\n{indented(code)}\nin_thread(later)\nresult = 'idle'")


def _call(site: Site, model: str, code: str) -> str:
    return site.run(
        model,
        f"def later():\n    time.sleep(0.2)\n{indented(code)}\nin_thread(later)\nresult = said(call('callee', 'time.sleep(0.6)').exec())",
    )


def _await(site: Site, model: str, code: str) -> str:
    return site.run(model, f"await asyncio.sleep(0.01)\n{code}")


def _send(site: Site, model: str, code: str) -> str:
    return site.stream(model, f"sender.send(response('first'))\n{code}")


def _go_on(site: Site, model: str, code: str) -> str:
    # The sender goes with the thread.
    later = repr(f"time.sleep(0.2)\n{code}")
    return site.stream(model, f"sender.send(response('first'))\nin_thread(exec, {later}, dict(globals(), request=None))")


def indented(code: str) -> str:
    return "\n".join("    " + line for line in code.splitlines())


PLACES = {
    "start": Place(_load),
    "import": Place(_load),
    "initialize": Place(_load),
    "finalize": Place(_unload),
    "execute": Place(_execute),
    "idle": Place(_idle),
    "calling": Place(_call),
    "coroutine": Place(_await),
    "sending": Place(_send, decoupled=True),
    "after execute": Place(_go_on, decoupled=True),
}


def name_of(place: str, way: str) -> str:
    return f"{place}_{way}".replace(" ", "_")


def write(repository: Path, place: str, way: str, environment: Path) -> None:
    """The model of a cell."""
    hooks = {place: WAYS[way]} if place in ("initialize", "finalize") else {}
    limits = {"hang_timeout": HANG_SECONDS, "execute_timeout": EXECUTE_SECONDS, "initialize_timeout": INITIALIZE_SECONDS}
    hooks |= {key: str(value) for key, value in limits.items()}
    if place == "start":
        own = environment.with_name(name_of(place, way))
        shutil.copytree(environment, own, symlinks=True)
        (site_packages,) = own.glob("lib/python*/site-packages")
        (site_packages / "sitecustomize.py").write_text(HELLO.replace("{code}", indented(START.get(way, WAYS[way])).lstrip()))
        hooks["EXECUTION_ENV_PATH"] = str(own)
    directory = scripted(repository, name_of(place, way), decoupled=PLACES[place].decoupled, **hooks)
    if place == "import":
        (directory / "1" / "model.py").write_text(IMPORTS + WAYS[way])


START = {"garbage": "import socket; socket.socket(fileno=control).send(b'garbage'); time.sleep(600)"}
"""Where there is no ring yet."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, grpc_core: None) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("matrix")
    environment = root / "environment"
    venv.create(environment, symlinks=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))
    for place in PLACES:
        for way in WAYS:
            write(root / "models", place, way, environment)
    for name in ("callee", "bystander"):
        scripted(root / "models", name)
    options = (
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--load-model=callee",
        "--load-model=bystander",
        "--grpc-port",
        "0",
    )
    with serving(root, root / "models", *options, tracebacks=True) as server, Client(server.grpc_address) as client:
        client.infer(script("bystander", ""))  # grpc connects with the first call
        yield Site(server, client)


LATE_INITIALIZE = f"initialize took longer than its 'initialize_timeout' of {INITIALIZE_SECONDS:g} s"
LATE_EXECUTE = f"execute took longer than its 'execute_timeout' of {EXECUTE_SECONDS:g} s"
GARBAGE_SENT = "it was ended for a protocol error: not a message: ExtraData: unpack(b) received extra data."
CLOSED = "it was ended for a protocol error: it closed its control socket"
SILENT = f"it was hung: it executed nothing and did not answer for {HANG_SECONDS:g} s; something in it holds the interpreter"

ENDS = {
    "SIGSEGV": "it ended with SIGSEGV",
    "SIGKILL": "it ended with SIGKILL",
    "SIGSTOP": f"it was hung: it was stopped (SIGSTOP) for {HANG_SECONDS:g} s",
    "exit": "it ended with exit code 3",
    "abort": "it ran out of memory: it ended itself (SIGABRT)",
    "garbage": "it was ended for a protocol error: not a message: FormatError: ",
}
"""What is said of the end of the stub, wherever it was."""

_LOADING = {"hang": LATE_INITIALIZE, "descriptors": LATE_INITIALIZE, "garbage": LATE_INITIALIZE}
_EXECUTING = {"hang": LATE_EXECUTE, "descriptors": LATE_EXECUTE}
_WAITING = {"hang": SILENT, "descriptors": SILENT}
ENDS_HERE: Dict[str, Dict[str, str]] = {
    "start": {**_LOADING, "garbage": GARBAGE_SENT},
    "import": _LOADING,
    "initialize": _LOADING,
    "execute": _EXECUTING,
    "coroutine": _EXECUTING,
    "calling": _EXECUTING,
    "sending": _EXECUTING,
    "after execute": _WAITING,
    "idle": _WAITING,
}
"""The same where it depends on that."""

OR_ENDS = {
    ("coroutine", "descriptors"): "it ended with exit code 1",  # its event loop noticed before the server did
    ("after execute", "descriptors"): CLOSED,
    ("idle", "descriptors"): CLOSED,
}
"""Where there is a race."""

UNLUCKY = {"exception": "ValueError: unlucky", "memory": "MemoryError"}
"""What nobody dies of."""

NEVER_ENDED = "the model dropped the request and its response sender without TRITONSERVER_RESPONSE_COMPLETE_FINAL"


def ends_of(place: str, way: str) -> List[str]:
    """What may be said of the end of the stub."""
    return [{**ENDS, **ENDS_HERE[place]}[way], *filter(None, [OR_ENDS.get((place, way))])]


def told_of(end: str, place: str, model: str) -> str:
    """What a client is told whose request was interrupted."""
    # One that takes too long is told of before it has ended.
    doing = " while loading the model" if PLACES[place].go is _load else "" if end == LATE_EXECUTE else " while serving"
    text = f"Stub process '{model}_0_0' is not healthy: {end}{doing} (pid PID, model '{model}')"
    return answered(place, model, 504 if end == LATE_EXECUTE else 503, text)


def answered(place: str, model: str, status: int, text: str) -> str:
    """An error as a client gets it who asks for that."""
    if PLACES[place].go is _load:
        return f"400: load failed for model '{model}': version 1 is at UNAVAILABLE state: {text}"
    return f"first, error: {text}" if PLACES[place].decoupled else f"{status}: {text}"


def expected(place: str, way: str, model: str) -> List[str]:
    """What the client may be told."""
    if place == "finalize":
        return ["200, 200"]
    if place == "idle":
        return ["200: idle"]
    if way not in UNLUCKY:
        return [told_of(end, place, model) for end in ends_of(place, way)]
    if place in ("start", "calling"):
        return ["200" if place == "start" else "200: "]
    if place in ("import", "initialize"):
        return [answered(place, model, 400, UNLUCKY[way])]
    failed = f"Failed to process the request(s) for model '{model}_0_0', message: {UNLUCKY[way]}"
    return [answered(place, model, 500, NEVER_ENDED if place == "after execute" else failed)]


def pids(site: Site, model: str) -> List[int]:
    """Of the instances that serve."""
    with site.server.wire() as wire:
        models = wire.ask(request("GET", "/v2/stublet/instances")).json()["models"]
    return [one["pid"] for found in models if found["name"] == model for one in found["instances"] if one["state"] == "READY"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", PLACES)
def test_cell(site: Site, place: str, way: str) -> None:
    model, go = name_of(place, way), PLACES[place].go
    serves = go not in (_load, _unload)
    if serves:
        assert site.control(model, "load") == "200"
    before = pids(site, model)
    said = re.sub(r"pid \d+", "pid PID", go(site, model, WAYS[way])).split("; last lines of its stderr")[0].rstrip(";")
    assert said in expected(place, way, model)
    assert site.run("bystander", "result = 'here'") == "200: here"
    if not serves:
        assert (pids(site, model) != []) == (said == "200")
    elif way in UNLUCKY:
        assert pids(site, model) == before
    else:
        until(lambda: pids(site, model) not in ([], before), what="another instance")
        assert any(f"'{model}_0_0' is not healthy: {end} while serving" in site.server.log for end in ends_of(place, way))
