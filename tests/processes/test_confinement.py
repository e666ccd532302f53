"""Names and paths from clients, and what they cannot reach: what is outside of the repository, on the disk or on the network.

Beside the repository lies a model that no name may lead to. It leaves a trace when it is loaded.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple
from urllib.parse import quote

import pytest
from grpc_client import Client, failure, pb, script, strings
from grpc_client import infer as grpc_infer
from http_wire import Answer, infer, request, tensor
from model_repository import obey
from scripted import scripted
from server_process import ServerProcess, run_serve, serving, until

MOST_TEXT = 5000
"""Characters of an error that gRPC's headers have room for in any case."""

TRAVERSAL = "model name must not contain path traversal characters"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("confined")


@pytest.fixture(scope="module")
def server(root: Path, grpc_core: None) -> Iterator[ServerProcess]:
    scripted(root / "models", "single")
    obey(root / "models", ".hidden", initialize=f"open({str(root / 'loaded')!r}, 'w')")
    obey(root / "outside", "secret", initialize=f"open({str(root / 'loaded')!r}, 'w')")
    (root / "outside" / "labels.txt").write_text("of nobody's business\n")
    arguments = ("--grpc-port", "0", "--allow-client-shm", "true", "--model-control-mode", "explicit", "--load-model", "single")
    before = sorted(os.listdir(root / "models"))
    with serving(root, root / "models", *arguments, tracebacks=True) as server:
        yield server
        assert not (root / "loaded").exists()
        assert sorted(os.listdir(root / "models")) == before
        assert "internal error" not in server.log


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.grpc_address) as client:
        yield client


class Name(NamedTuple):
    """A name; ``refused``: where models are loaded. ``routed``: HTTP has such a path."""

    text: str
    refused: bool = True
    routed: bool = True


def names(outside: str) -> Dict[str, Name]:
    return {
        "the directory above": Name(".."),
        "the directory itself": Name("."),
        "above, and elsewhere": Name("../outside/secret", routed=False),
        "absolute": Name(outside, routed=False),
        "a path": Name("single/1", routed=False),
        "backslashes": Name("..\\outside\\secret"),
        "a zero byte": Name("single\0"),
        "hidden": Name(".hidden", refused=False),
        "encoded twice": Name("%2e%2e", refused=False),
        "a home": Name("~", refused=False),
        "a variable": Name("$HOME", refused=False),
        "an option": Name("--load-model", refused=False),
        "two lines": Name("a\nE0000 forged", refused=False),
        "as long as a file's can be": Name("x" * 255, refused=False),
        "longer": Name("x" * 256, refused=False),
        "very long": Name("x" * 20_000, refused=False),
        "a wildcard": Name("*", refused=False),
    }


NAMES = tuple(names(""))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, root: Path) -> Name:
    return names(str(root / "outside" / "secret"))[request.param]


def ask(server: ServerProcess, *asked: Any) -> Tuple[int, str]:
    with server.wire() as wire:
        answer: Answer = wire.ask(request(*asked))
    return answer.status, answer.json()["error"] if answer.body else ""


Expect = Callable[[Name], Tuple[int, str]]


def unknown(name: Name) -> Tuple[int, str]:
    return 404, f"Request for unknown model: '{name.text}' is not found"


def not_loaded(name: Name) -> Tuple[int, str]:
    return (400, TRAVERSAL) if name.refused else (404, f"failed to load '{name.text}', failed to poll from model repository")


HTTP: List[Tuple[str, str, Expect]] = [
    ("GET", "/v2/models/{}", unknown),
    ("GET", "/v2/models/{}/versions/1", unknown),
    ("GET", "/v2/models/{}/config", unknown),
    ("GET", "/v2/models/{}/ready", lambda _: (400, "Model version not ready")),
    ("GET", "/v2/models/{}/stats", lambda name: (400, f"requested model '{name.text}' is not available")),
    ("GET", "/v2/models/{}/trace/setting", lambda name: (400, f"Request for unknown model : {name.text}")),
    ("POST", "/v2/models/{}/infer", unknown),
    ("POST", "/v2/models/{}/generate", unknown),
    ("POST", "/v2/repository/models/{}/load", not_loaded),
    ("POST", "/v2/repository/models/{}/unload", lambda name: (400, TRAVERSAL) if name.refused else (200, "")),
]


def test_http(server: ServerProcess, name: Name) -> None:
    for method, path, expect in HTTP:
        expected = expect(name) if name.routed else (404, "Not Found")
        body = b"{}" if method == "POST" else b""
        assert ask(server, method, path.format(quote(name.text, safe="")), body) == expected, path


def test_grpc(client: Client, name: Name) -> None:
    stub = client.stub
    missing = f"NOT_FOUND: {unknown(name)[1]}"[:MOST_TEXT]
    assert failure(stub.ModelMetadata, pb.ModelMetadataRequest(name=name.text))[:MOST_TEXT] == missing
    assert failure(stub.ModelConfig, pb.ModelConfigRequest(name=name.text))[:MOST_TEXT] == missing
    assert failure(stub.ModelInfer, grpc_infer(name.text, {}))[:MOST_TEXT] == missing
    assert not stub.ModelReady(pb.ModelReadyRequest(name=name.text)).ready
    loaded = failure(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=name.text))
    unload = pb.RepositoryModelUnloadRequest(model_name=name.text)
    if name.refused:
        assert loaded == failure(stub.RepositoryModelUnload, unload) == f"INVALID_ARGUMENT: {TRAVERSAL}"
    else:
        assert loaded[:MOST_TEXT] == f"NOT_FOUND: {not_loaded(name)[1]}"[:MOST_TEXT]
        stub.RepositoryModelUnload(unload)


def test_models(client: Client, name: Name) -> None:
    """What a model asks for is another's wish, too."""
    code = f"""
def attempt(function):
    try:
        return function()
    except pb_utils.TritonModelException as error:
        return str(error)
result = json.dumps([
    attempt(lambda: said(call({name.text!r}).exec())), attempt(lambda: pb_utils.load_model({name.text!r})),
    attempt(lambda: pb_utils.unload_model({name.text!r})), attempt(lambda: pb_utils.is_model_ready({name.text!r}))])
"""
    (said,) = strings(client.infer(script("single", "import json\n" + code)).raw_output_contents[0])
    called, loaded, unloaded, ready = json.loads(said)
    missing = unknown(name)[1]
    assert called.endswith(f"Error when running inference: {missing}")
    assert loaded.endswith(not_loaded(name)[1])
    assert unloaded is None if not name.refused else unloaded.endswith(TRAVERSAL)
    assert ready.endswith(missing)


@pytest.mark.parametrize("text", ["../outside/secret", "..", ".hidden"])
def test_the_command_line(root: Path, server: ServerProcess, text: str) -> None:
    ended = run_serve(str(root / "models"), "--http-port", "0", "--model-control-mode", "explicit", "--load-model", text)
    assert ended.returncode == 1
    why = "failed to poll from model repository" if text == ".hidden" else TRAVERSAL
    assert f"error: failed to load '{text}': {why}" in ended.stderr


def load(server: ServerProcess, model: str, config: Any, files: Any = ()) -> Tuple[int, str]:
    parameters = {"config": json.dumps(config), **{key: base64.b64encode(content).decode() for key, content in dict(files).items()}}
    return ask(server, "POST", f"/v2/repository/models/{model}/load", json.dumps({"parameters": parameters}).encode())


TENSOR = {"name": "DATA", "data_type": "TYPE_FP32", "dims": [1]}
CONFIG: Dict[str, Any] = {"backend": "python", "input": [TENSOR], "output": [TENSOR]}
PATHS = ("../x", "/../x", "1/../../x", "1/..", "", "1/", "1//model.py", "./x", "1/a\0", "a/" * 3000 + "x")


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_files_of_a_load(server: ServerProcess, path: str) -> None:
    expected = f"failed to load 'made', the path of 'file:{path}' must lead to a file in the model's directory"
    assert load(server, "made", CONFIG, {f"file:{path}": b"content"}) == (400, expected)


OUTSIDE = "../../outside/"
PLAIN = {"data_type": "TYPE_FP32", "dims": [1]}
WARMUP = {"name": "sample", "batch_size": 1, "inputs": {"DATA": {**PLAIN, "input_data_file": OUTSIDE + "data"}}}
STATE = {"input_name": "S", "output_name": "S", **PLAIN, "initial_state": [{"name": "i", **PLAIN, "data_file": OUTSIDE + "data"}]}


@pytest.mark.parametrize(
    "more, text",
    [
        ({"default_model_filename": OUTSIDE + "secret/1/model.py"}, "'default_model_filename' of model 'single' must be below"),
        (
            {"output": [{**TENSOR, "label_filename": OUTSIDE + "labels.txt"}]},
            "'label_filename' of output 'DATA' of model 'single' must be below",
        ),
        ({"output": [{**TENSOR, "label_filename": "/etc/passwd"}]}, "'label_filename' of output 'DATA' of model 'single' must be below"),
        ({"model_warmup": [WARMUP]}, "'input_data_file' of warmup sample 'sample' of model 'single' must be below 'warmup'"),
        ({"sequence_batching": {"state": [STATE]}}, "must be below the directory 'initial_state' of the model"),
        ({"backend": "../outside/secret"}, "unable to find backend library for backend '../outside/secret'"),
        ({"name": "../outside/secret"}, "the model's directory is named 'single', but its configuration says name: '../outside/secret'"),
    ],
)
def test_paths_in_a_configuration(server: ServerProcess, more: Dict[str, Any], text: str) -> None:
    status, error = load(server, "single", {**CONFIG, **more})
    assert status == 400 and text in error
    with server.wire() as wire:
        assert wire.ask(infer("single", {"inputs": [tensor("CODE", "BYTES", [1], ["pass"])]})).status == 200, "it serves as before"


@pytest.mark.parametrize(
    "path, setting, what",
    [
        ("/v2/trace/setting", "trace_file", "trace"),
        ("/v2/models/single/trace/setting", "trace_file", "trace"),
        ("/v2/logging", "log_file", "log"),
    ],
)
def test_where_the_server_writes(server: ServerProcess, root: Path, path: str, setting: str, what: str) -> None:
    """Is for the command line to say."""
    body = json.dumps({setting: str(root / "written")}).encode()
    assert ask(server, "POST", path, body) == (501, f"{what} file location can not be updated through network protocol")
    assert not (root / "written").exists()


@pytest.mark.parametrize(
    "key", ["/../../etc/passwd", "../../etc/passwd", "/etc/passwd", "/a/b", "..", "/..", ".", "/a\0b", "/" + "x" * 300]
)
def test_shared_memory_of_clients(server: ServerProcess, key: str) -> None:
    body = json.dumps({"key": key, "offset": 0, "byte_size": 8}).encode()
    status, error = ask(server, "POST", "/v2/systemsharedmemory/region/mine/register", body)
    assert (status, error) == (500, f"Unable to open shared memory region: '{key}'")


# The network


def listening(pid: int) -> List[Tuple[str, int]]:
    """Every address on which a process accepts TCP connections: a hexadecimal address as the kernel prints it, and a port."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(fd)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return sorted(found, key=lambda pair: pair[1])


LOOPBACK = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), 'little'):08X}"


def test_it_listens_here_only(server: ServerProcess) -> None:
    ports = sorted({server.port, server.grpc_port, server.metrics_port})
    found = listening(server.pid)
    assert sorted({port for _, port in found}) == ports
    assert {address for address, _ in found} <= {LOOPBACK, "0000000000000000FFFF00000100007F"}
    assert listening(server.fork_server()) == []
    assert [listening(pid) for pid in server.stubs().values()] == [[]]


def test_it_listens_where_it_is_asked_to(repository: Path, serve: Any) -> None:
    """Metrics where HTTP does, if nothing else is said."""
    obey(repository)
    server = serve("--http-address", "127.0.0.2", "--grpc-port", "0", "--grpc-address", "127.0.0.3", wait=False)
    until(lambda: "\nmetrics " in server.out)
    found = sorted(address[-8:] for address, _ in listening(server.pid))
    assert found == ["0200007F", "0200007F", "0300007F"]
    server.stop()
