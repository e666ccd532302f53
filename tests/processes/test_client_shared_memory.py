"""Tensors in system shared memory of clients, with the client library that users have (spec 6.11)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pytest
import tritonclient.http as http
from http_wire import Wire
from model_repository import MODELS
from scripted import scripted
from server_process import ServerProcess, alive, descendants, serving, until
from shared_memory import ClientFile, client_file
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from .conftest import Serve

SIZE = 1 << 20
X, Y = np.arange(4, dtype=np.float32), np.full(4, 10, np.float32)

LOST = "shared memory region 'r' no longer has the bytes of "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("models")
    for name in ("add_sub", "vector", "identity_bytes", "identity_batch"):
        shutil.copytree(MODELS / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    scripted(root, "plain", instances=2)
    with serving(tmp_path_factory.mktemp("server"), root, "--allow-client-shm=true") as server:
        yield server


@pytest.fixture
def client(hub: None, server: ServerProcess) -> Iterator[http.InferenceServerClient]:
    """Its server has the same processes afterwards, none of which has anything left of the test's files."""
    stubs = server.stubs()
    client = http.InferenceServerClient(server.address)
    yield client
    client.unregister_system_shared_memory()
    client.close()
    assert stubs and all(map(alive, stubs.values()))
    until(lambda: not remains(server), what="the end of the last mapping and descriptor of a client's file")


def remains(server: ServerProcess) -> List[str]:
    """Which of the server's processes have mappings or descriptors of tests' files. A file that another test process uses is not one."""
    found = []
    for pid in (server.pid, *descendants(server.pid)):
        if "/dev/shm/client-" in Path(f"/proc/{pid}/maps").read_text():
            found.append(f"{pid}: a mapping")
        found += [f"{pid}: a descriptor" for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink() and "client-" in os.readlink(fd)]
    return found


@pytest.fixture
def file() -> Iterator[ClientFile]:
    with client_file(SIZE) as file:
        yield file


def given(name: str, data: np.ndarray, place: Optional[Tuple[str, int]] = None, size: Optional[int] = None) -> http.InferInput:
    """An input, in a region or else in the request."""
    one = http.InferInput(name, list(data.shape), "FP32")
    if place is None:
        one.set_data_from_numpy(data)
    else:
        one.set_shared_memory(place[0], data.nbytes if size is None else size, place[1])
    return one


def wanted(name: str, region: str, size: int, offset: int = 0) -> http.InferRequestedOutput:
    """An output in a region."""
    one = http.InferRequestedOutput(name)
    one.set_shared_memory(region, size, offset)
    return one


# ---- what is asked for is what comes ----


@pytest.mark.parametrize("output_by", ["region", "binary", "json"])
@pytest.mark.parametrize("input_by", ["region", "binary", "json", "one of each"])
def test_every_way_in_and_out(client: http.InferenceServerClient, file: ClientFile, input_by: str, output_by: str) -> None:
    file.put(X, 0)
    file.put(Y, 16)
    client.register_system_shared_memory("r", file.key, SIZE)
    inputs = [
        given("INPUT0", X, ("r", 0) if input_by in ("region", "one of each") else None),
        given("INPUT1", Y, ("r", 16) if input_by == "region" else None),
    ]
    if input_by == "json":
        for one, data in zip(inputs, (X, Y)):
            one.set_data_from_numpy(data, binary_data=False)
    if output_by == "region":
        outputs = [wanted("OUTPUT1", "r", 16, 512), wanted("OUTPUT0", "r", 100, 1024)]
    else:
        outputs = [http.InferRequestedOutput(name, binary_data=output_by == "binary") for name in ("OUTPUT1", "OUTPUT0")]
    for _ in range(2):  # the second time, what the request says is known
        result = client.infer("add_sub", inputs, outputs=outputs)
        response = result.get_response()
        assert [(one["name"], one["datatype"], one["shape"]) for one in response["outputs"]] == [
            ("OUTPUT1", "FP32", [4]),
            ("OUTPUT0", "FP32", [4]),
        ]
        if output_by == "region":
            assert all(set(one) == {"name", "datatype", "shape"} for one in response["outputs"])
            found = [file.array(4, np.float32, 1024), file.array(4, np.float32, 512)]
            file.put(bytes(1024), 512)
        else:
            found = [result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1")]
        assert [array.tolist() for array in found] == [(X + Y).tolist(), (X - Y).tolist()]


def test_some_outputs_in_a_region_and_some_in_the_response(client: http.InferenceServerClient, file: ClientFile) -> None:
    client.register_system_shared_memory("r", file.key, SIZE)
    outputs = [http.InferRequestedOutput("OUTPUT1"), wanted("OUTPUT0", "r", 16)]
    result = client.infer("add_sub", [given("INPUT0", X), given("INPUT1", Y)], outputs=outputs)
    assert result.as_numpy("OUTPUT1").tolist() == (X - Y).tolist()
    assert file.array(4, np.float32).tolist() == (X + Y).tolist()


def test_several_regions_and_offsets(client: http.InferenceServerClient, file: ClientFile) -> None:
    with client_file(SIZE) as other:
        client.register_system_shared_memory("head", file.key, 4096)
        client.register_system_shared_memory("tail", file.key, SIZE - 5000, offset=5000)
        client.register_system_shared_memory("other", other.key, 64, offset=12)
        assert [row["name"] for row in client.get_system_shared_memory_status()] == ["head", "tail", "other"]
        file.put(X, 40)
        file.put(Y, 5000 + 8)
        client.infer(
            "add_sub",
            [given("INPUT0", X, ("head", 40)), given("INPUT1", Y, ("tail", 8))],
            outputs=[wanted("OUTPUT0", "other", 16, 48), wanted("OUTPUT1", "tail", 16, SIZE - 5016)],
        )
        assert other.array(4, np.float32, 12 + 48).tolist() == (X + Y).tolist()
        assert file.array(4, np.float32, SIZE - 16).tolist() == (X - Y).tolist()
        client.unregister_system_shared_memory()


def test_strings(client: http.InferenceServerClient, file: ClientFile) -> None:
    strings = np.array([b"", b"abc", "grün".encode(), b"\0" * 1000], object)
    wire = serialize_byte_tensor(strings).item()
    file.put(wire, 100)
    client.register_system_shared_memory("r", file.key, SIZE)
    one = http.InferInput("INPUT0", [4], "BYTES")
    one.set_shared_memory("r", len(wire), 100)
    client.infer("identity_bytes", [one], outputs=[wanted("OUTPUT0", "r", 5000, 10_000)])
    assert deserialize_bytes_tensor(file.bytes_at(10_000, len(wire))).tolist() == strings.tolist()
    one.set_shared_memory("r", len(wire) - 1, 100)
    with pytest.raises(InferenceServerException, match=r"\[400\] incomplete string data for inference input 'INPUT0', expecting string"):
        client.infer("identity_bytes", [one])


def test_a_large_tensor_in_place(client: http.InferenceServerClient, file: ClientFile) -> None:
    data = np.random.default_rng(0).random(4 << 20, np.float32)
    file.resize(data.nbytes)
    file.put(data)
    client.register_system_shared_memory("r", file.key, data.nbytes)
    for _ in range(3):
        client.infer("vector", [given("INPUT0", data, ("r", 0))], outputs=[wanted("OUTPUT0", "r", data.nbytes)])
        assert np.array_equal(file.array(data.shape, np.float32), data)
    result = client.infer("vector", [given("INPUT0", data, ("r", 0))])
    assert np.array_equal(result.as_numpy("OUTPUT0"), data)


def test_what_a_model_writes_to_its_input_is_not_the_clients(client: http.InferenceServerClient, file: ClientFile) -> None:
    data = np.arange(50_000, dtype=np.float32)
    file.put(data, 64)
    client.register_system_shared_memory("r", file.key, SIZE)
    code = http.InferInput("CODE", [1], "BYTES")
    code.set_data_from_numpy(np.array(["data.as_numpy()[:] += 1\noutput = data.as_numpy()"], object))
    result = client.infer("plain", [code, given("DATA", data, ("r", 64))])
    assert np.array_equal(result.as_numpy("DATA"), data + 1)
    assert np.array_equal(file.array(data.shape, np.float32, 64), data)


def test_other_models_get_a_tensor_of_a_region_and_what_they_answer_goes_to_one(
    client: http.InferenceServerClient, file: ClientFile
) -> None:
    data = np.arange(50_000, dtype=np.float32)
    file.put(data)
    client.register_system_shared_memory("r", file.key, SIZE)
    code = http.InferInput("CODE", [1], "BYTES")
    code.set_data_from_numpy(np.array(["output = array(call('plain', 'output = data.as_numpy() * 2', data).exec())"], object))
    client.infer("plain", [code, given("DATA", data, ("r", 0))], outputs=[wanted("DATA", "r", data.nbytes, SIZE // 2)])
    assert np.array_equal(file.array(data.shape, np.float32, SIZE // 2), data * 2)


# ---- what is wrong ----

REGION, OFFSET, BYTES = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
NOT_UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
MISMATCH = "input byte size mismatch for input 'INPUT0' for model 'identity_batch'. Expected 16, got "
MOST = 2**64 - 1


def bad(what: str, parameters: Dict[str, Any], status: int, text: str) -> Any:
    return pytest.param(parameters, status, text, id=what)


BAD_INPUTS = [
    bad("unknown region", {REGION: "nope", BYTES: 16}, 404, "Unable to find shared memory region: 'nope'"),
    bad("region no string", {REGION: 5, BYTES: 16}, 400, f"Unable to parse '{REGION}': attempt to access JSON non-string as string"),
    bad("no size", {REGION: "r"}, 400, "Invalid offset + byte size for shared memory region: 'r'"),
    bad("too few bytes", {REGION: "r", BYTES: 15}, 400, MISMATCH + "15"),
    bad("too many bytes", {REGION: "r", BYTES: 32}, 400, MISMATCH + "32"),
    bad("size no number", {REGION: "r", BYTES: "x"}, 400, f"Unable to parse 'shared_memory_byte_size': {NOT_UNSIGNED}"),
    bad("size too large a number", {REGION: "r", BYTES: 2**64}, 400, f"Unable to parse 'shared_memory_byte_size': {NOT_UNSIGNED}"),
    bad("offset no number", {REGION: "r", OFFSET: "x", BYTES: 16}, 400, f"Unable to parse 'shared_memory_offset': {NOT_UNSIGNED}"),
    bad("negative offset", {REGION: "r", OFFSET: -1, BYTES: 16}, 400, f"Unable to parse 'shared_memory_offset': {NOT_UNSIGNED}"),
    bad("offset at the end", {REGION: "r", OFFSET: 4096, BYTES: 16}, 400, "Invalid offset for shared memory region: 'r'"),
    bad("over the end", {REGION: "r", OFFSET: 4090, BYTES: 16}, 400, "Invalid offset + byte size for shared memory region: 'r'"),
    bad(
        "overflow", {REGION: "r", OFFSET: 8, BYTES: MOST}, 400,
        f"Integer overflow detected: byte_size ({MOST}) + offset (8) exceeds maximum value ({MOST}) for region 'r'",
    ),
]  # fmt: skip

BAD_OUTPUTS = [
    bad("unknown region", {REGION: "nope", BYTES: 16}, 404, "Unable to find shared memory region: 'nope'"),
    bad(
        "too small", {REGION: "r", BYTES: 15}, 500,
        "shared memory size specified with the request for output 'OUTPUT0' (15 bytes) should be at least 16 bytes to hold the results",
    ),
    bad("no size", {REGION: "r"}, 400, "Invalid offset + byte size for shared memory region: 'r'"),
    bad("over the end", {REGION: "r", OFFSET: 4081, BYTES: 16}, 400, "Invalid offset + byte size for shared memory region: 'r'"),
    bad("classes", {REGION: "r", BYTES: 16, "classification": 1}, 400, "Output can't set both 'shared_memory_region' and 'classification'"),
    bad("binary", {REGION: "r", BYTES: 16, "binary_data": True}, 400, "Output can't set both 'shared_memory_region' and 'binary_data'"),
]  # fmt: skip


def post(wire: Wire, path: str, document: Dict[str, Any]) -> Tuple[int, Any]:
    body = json.dumps(document).encode()
    wire.send(b"POST %s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body)
    answer = wire.answer()
    return answer.status, answer.json()


def infer(wire: Wire, where: Dict[str, Any], output: Optional[Dict[str, Any]] = None) -> Tuple[int, Any]:
    """With an input there, or in the request, and an output there."""
    one: Dict[str, Any] = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32"}
    one.update({"parameters": where} if where else {"data": [1, 2, 3, 4]})
    document: Dict[str, Any] = {"inputs": [one]}
    if output is not None:
        document["outputs"] = [{"name": "OUTPUT0", "parameters": output}]
    return post(wire, "/v2/models/identity_batch/infer", document)


GOOD = {REGION: "r", OFFSET: 4080, BYTES: 16}


@pytest.fixture
def wire(client: http.InferenceServerClient, server: ServerProcess, file: ClientFile) -> Iterator[Wire]:
    """A connection, and a region "r" of 4096 bytes."""
    client.register_system_shared_memory("r", file.key, 4096, offset=8192)
    with server.wire() as wire:
        yield wire
        assert infer(wire, GOOD)[0] == 200, "the connection goes on"


@pytest.mark.parametrize("parameters, status, text", BAD_INPUTS)
def test_an_input_that_is_not_there(wire: Wire, parameters: Dict[str, Any], status: int, text: str) -> None:
    assert infer(wire, parameters) == (status, {"error": text})


@pytest.mark.parametrize("parameters, status, text", BAD_OUTPUTS)
def test_an_output_that_has_no_place(wire: Wire, parameters: Dict[str, Any], status: int, text: str) -> None:
    assert infer(wire, {}, parameters) == (status, {"error": text})


@pytest.mark.parametrize("output", [{**GOOD, "binary_data": False}, {**GOOD, "classification": 0}])
def test_what_is_switched_off_contradicts_nothing(wire: Wire, file: ClientFile, output: Dict[str, Any]) -> None:
    assert infer(wire, {}, output)[0] == 200
    assert file.array(4, np.float32, 8192 + 4080).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("source", [{"data": [1, 2, 3, 4]}, {"binary": 16}])
def test_an_input_with_two_sources(wire: Wire, source: Dict[str, Any]) -> None:
    parameters = {**GOOD, **({"binary_data_size": 16} if "binary" in source else {})}
    one = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "parameters": parameters}
    one.update({key: value for key, value in source.items() if key == "data"})
    status, answer = post(wire, "/v2/models/identity_batch/infer", {"inputs": [one]})
    assert status == 400 and answer["error"].startswith("Input must set only one of the following fields: 'data', 'binary_data_size'")
    first = "binary_data_size" if "binary" in source else "data"
    assert answer["error"].endswith(f"But set '{first}' 'shared_memory_region'")


def test_a_region_that_was_unregistered_since_the_same_request_came(
    wire: Wire, client: http.InferenceServerClient, file: ClientFile
) -> None:
    for _ in range(2):
        assert infer(wire, GOOD, GOOD)[0] == 200
        client.unregister_system_shared_memory("r")
        assert infer(wire, GOOD, GOOD) == (404, {"error": "Unable to find shared memory region: 'r'"})
        client.register_system_shared_memory("r", file.key, 4096)


def test_without_permission_there_is_none(hub: None, serve: Serve, repository: Path, file: ClientFile) -> None:
    shutil.copytree(MODELS / "identity_batch", repository / "identity_batch")
    server = serve()
    client = http.InferenceServerClient(server.address)
    text = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    for attempt in (
        lambda: client.register_system_shared_memory("r", file.key, SIZE),
        client.unregister_system_shared_memory,
        lambda: client.register_cuda_shared_memory("r", b"QUFB" * 16, 0, 8),
        client.unregister_cuda_shared_memory,
    ):
        with pytest.raises(InferenceServerException, match="Client shared memory is disabled") as raised:
            attempt()
        assert (raised.value.message(), raised.value.status()) == (text, "501")
    assert (client.get_system_shared_memory_status(), client.get_cuda_shared_memory_status()) == ([], [])
    client.close()
    with server.wire() as wire:
        assert infer(wire, GOOD) == (404, {"error": "Unable to find shared memory region: 'r'"})
    server.stop()


# ---- regions that come and go ----


def registered(client: http.InferenceServerClient) -> List[str]:
    return [row["name"] for row in client.get_system_shared_memory_status()]


def test_a_region_that_is_unregistered_while_it_is_used(
    client: http.InferenceServerClient, server: ServerProcess, file: ClientFile, tmp_path: Path
) -> None:
    data = np.arange(1000, dtype=np.float32)
    file.put(data)
    for name in ("r", "idle"):
        client.register_system_shared_memory(name, file.key, SIZE)
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    code = f"open({str(begun)!r}, 'w').close()\nuntil(lambda: os.path.exists({str(go_on)!r}))\noutput = data.as_numpy()"
    document = {
        "inputs": [
            {"name": "CODE", "shape": [1], "datatype": "BYTES", "data": [code]},
            {"name": "DATA", "shape": [1000], "datatype": "FP32", "parameters": {REGION: "r", BYTES: 4000}},
        ],
        "outputs": [{"name": "DATA", "parameters": {REGION: "r", OFFSET: 4000, BYTES: 4000}}],
    }
    answers: List[Tuple[int, Any]] = []

    def ask() -> None:
        with server.wire() as wire:
            answers.append(post(wire, "/v2/models/plain/infer", document))

    asking = threading.Thread(target=ask)
    asking.start()
    until(begun.exists)
    client.unregister_system_shared_memory()
    assert registered(client) == ["r"]
    with pytest.raises(InferenceServerException, match="shared memory region 'r' already in manager"):
        client.register_system_shared_memory("r", file.key, SIZE)
    go_on.touch()
    asking.join()
    assert answers[0][0] == 200 and np.array_equal(file.array(1000, np.float32, 4000), data)
    assert registered(client) == []
    client.register_system_shared_memory("r", file.key, SIZE)


def test_a_region_whose_name_is_removed_goes_on(client: http.InferenceServerClient, file: ClientFile) -> None:
    file.put(X)
    client.register_system_shared_memory("r", file.key, SIZE)
    file.unlink()
    client.infer("vector", [given("INPUT0", X, ("r", 0))], outputs=[wanted("OUTPUT0", "r", 16, 64)])
    assert file.array(4, np.float32, 64).tolist() == X.tolist()
    with pytest.raises(InferenceServerException, match="Unable to open shared memory region"):
        client.register_system_shared_memory("again", file.key, SIZE)


@pytest.mark.parametrize("used", [False, True], ids=["never used", "used before"])
def test_a_region_that_is_cut_short(client: http.InferenceServerClient, file: ClientFile, used: bool) -> None:
    client.register_system_shared_memory("r", file.key, SIZE)
    inputs, outputs = [given("INPUT0", X, ("r", SIZE // 2))], [wanted("OUTPUT0", "r", 16, SIZE // 2)]
    for left in (0, SIZE // 4, SIZE // 2, SIZE // 2 + 15):
        if used:
            client.infer("vector", inputs, outputs=outputs)
        file.resize(left)
        with pytest.raises(InferenceServerException) as raised:
            client.infer("vector", inputs)
        assert raised.value.status() == "400" and raised.value.message().startswith(LOST + "input 'INPUT0'")
        with pytest.raises(InferenceServerException) as raised:
            client.infer("vector", [given("INPUT0", X)], outputs=outputs)
        assert raised.value.status() == "400" and raised.value.message().startswith(LOST + "output 'OUTPUT0'")
        assert os.fstat(file.fd).st_size == left
        file.resize(SIZE)
        file.put(Y, SIZE // 2)
        client.infer("vector", inputs, outputs=[wanted("OUTPUT0", "r", 16)])
        assert file.array(4, np.float32).tolist() == Y.tolist()


def test_a_region_that_is_cut_short_again_and_again(client: http.InferenceServerClient, server: ServerProcess, file: ClientFile) -> None:
    """The server has the same processes afterwards, as after every test."""
    client.register_system_shared_memory("r", file.key, SIZE)
    # Now and then there is time for a whole inference in between.
    code = f"""
import os, random, time
while True:
    os.ftruncate({file.fd}, 0)
    os.ftruncate({file.fd}, {SIZE})
    time.sleep(random.choice([0, 0.001, 0.005, 0.02]))
"""
    data = np.zeros(SIZE // 8, np.float32)
    inputs, outputs = [given("INPUT0", data, ("r", 0))], [wanted("OUTPUT0", "r", SIZE // 2, SIZE // 2)]
    outcomes: List[str] = []

    def enough() -> bool:
        try:
            client.infer("vector", inputs, outputs=outputs)
            outcomes.append("fine")
        except InferenceServerException as error:
            assert error.status() == "400" and error.message().startswith(LOST), error
            outcomes.append(error.message()[len(LOST) :].split()[0])
        return min(map(outcomes.count, ("fine", "input", "output"))) >= 3

    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[file.fd]) as cutter:
        try:
            until(enough, seconds=90, what="three of each outcome")
        finally:
            cutter.kill()


CLIENT = """
    import os, sys
    import numpy as np
    import tritonclient.http as http
    import tritonclient.utils.shared_memory as shm

    key = sys.argv[2]
    data = np.arange(250_000, dtype=np.float32)
    region = shm.create_shared_memory_region("r", key, 2 * data.nbytes)
    shm.set_shared_memory_region(region, [data])
    client = http.InferenceServerClient(sys.argv[1])
    client.register_system_shared_memory("r", key, 2 * data.nbytes)
    one = http.InferInput("INPUT0", list(data.shape), "FP32")
    one.set_shared_memory("r", data.nbytes)
    output = http.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory("r", data.nbytes, offset=data.nbytes)
    while True:
        result = client.infer("vector", [one], outputs=[output])
        (about,) = result.get_response()["outputs"]
        found = shm.get_contents_as_numpy(region, np.float32, about["shape"], offset=data.nbytes)
        assert np.array_equal(found, data)
        print("served", flush=True)
"""


def test_a_client_that_is_killed(client: http.InferenceServerClient, server: ServerProcess, file: ClientFile) -> None:
    key = file.key[1:] + "-killed"
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), server.address, key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "served\n"
        process.send_signal(signal.SIGKILL)
    try:
        assert registered(client) == ["r"], "it belongs to the server's users, not to a connection"
        data = np.arange(250_000, dtype=np.float32)
        result = client.infer("vector", [given("INPUT0", data, ("r", 0))])
        assert np.array_equal(result.as_numpy("OUTPUT0"), data)
    finally:
        if os.path.exists("/dev/shm/" + key):  # Python's resource tracker outlives the client, and may have been faster
            os.unlink("/dev/shm/" + key)
