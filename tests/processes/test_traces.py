"""Traces of real requests, by each way that a request can take, in a file and at a collector of OpenTelemetry (spec 6.10)."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import httpx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_client import Client, failure, script
from http_wire import tensor
from model_repository import ECHO_CONFIG, copy_model, obey, write_model
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from server_process import ServerProcess, run_serve, serving, until
from tritonclient.utils import InferenceServerException

ON = ["--trace-config", "rate=1", "--trace-config", "level=TIMESTAMPS"]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
EXECUTED = [
    "REQUEST_START", "QUEUE_START", "INFER_RESPONSE_COMPLETE", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END",
]  # fmt: skip
CALLS = """
call = pb_utils.InferenceRequest(
    model_name="obey", requested_output_names=[], trace=request.trace(),
    inputs=[pb_utils.Tensor("CODE", np.array(["result = str(request.trace().get_context())"], dtype=object))],
)
answer = call.exec()
result = str(request.trace().get_context()) + " " + answer.output_tensors()[0].as_numpy()[0].decode()
"""

REPEAT = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for element in request.inputs()[0].as_numpy():
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", element.reshape(1))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def told(code: str) -> Dict[str, Any]:
    return {"id": "r1", "inputs": [tensor("CODE", "BYTES", [1], [code])]}


class Traced:
    """What a file tells of one request."""

    def __init__(self, entries: Sequence[Dict[str, Any]]) -> None:
        self.events = [stamp["name"] for entry in entries for stamp in entry.get("timestamps", ())]
        times = {stamp["name"]: stamp["ns"] for entry in entries for stamp in entry.get("timestamps", ())}
        self.times = times
        (self.about,) = [entry for entry in entries if "model_name" in entry] or [{}]
        self.tensors = [(entry["activity"], entry["tensor"]) for entry in entries if "tensor" in entry]


def read(path: Path) -> List[Traced]:
    """What the file tells; nothing if it is just being written."""
    entries: Dict[int, List[Dict[str, Any]]] = {}
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        document = []
    for entry in document:
        entries.setdefault(entry["id"], []).append(entry)
    return [Traced(entries[number]) for number in sorted(entries)]


class Served:
    """A server that writes a file, and the traces of what is asked of it."""

    def __init__(self, server: ServerProcess, path: Path) -> None:
        self.server = server
        self._path = path
        self._seen = 0

    def next(self, count: int = 1) -> List[Traced]:
        traces = until(lambda: len(found := read(self._path)) >= self._seen + count and found, what=f"{count} traces")
        new = traces[self._seen :]
        self._seen = len(traces)
        assert len(new) == count
        return new


@pytest.fixture(scope="module")
def module_served(grpc_core: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("traces")
    obey(root / "models", instances=2)
    copy_model(root / "models", "add_sub")
    write_model(root / "models", "repeat", REPEAT, ECHO_CONFIG + "model_transaction_policy { decoupled: true }")
    path = root / "trace.json"
    with serving(root, root / "models", "--grpc-port", "0", *ON, "--trace-config", f"triton,file={path}", tracebacks=True) as server:
        yield Served(server, path)


@pytest.fixture
def served(module_served: Served) -> Iterator[Served]:
    yield module_served
    with httpx.Client(base_url=f"http://{module_served.server.address}/v2") as client:
        assert client.post("trace/setting", json={"trace_level": None, "trace_rate": None, "trace_count": None}).status_code == 200


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.server.address}/v2", timeout=20) as client:
        yield client


@pytest.fixture
def grpc_client(served: Served) -> Iterator[Client]:
    with Client(served.server.grpc_address) as client:
        yield client


@pytest.mark.parametrize("headers", [{"accept-encoding": "identity"}, {"accept-encoding": "gzip"}])
def test_over_http(served: Served, client: httpx.Client, headers: Dict[str, str]) -> None:
    assert client.post("models/obey/infer", json=told("pass"), headers=headers).status_code == 200
    (trace,) = served.next()
    assert trace.events == ["HTTP_RECV_START", "HTTP_RECV_END", *EXECUTED, "HTTP_SEND_START", "HTTP_SEND_END"]
    assert trace.about == {"id": trace.about["id"], "model_name": "obey", "model_version": 1, "request_id": "r1"}
    in_order = [
        "HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "COMPUTE_START", "COMPUTE_OUTPUT_START", "COMPUTE_END", "HTTP_SEND_START",
        "HTTP_SEND_END",
    ]  # fmt: skip
    assert sorted(in_order, key=lambda name: trace.times[name]) == in_order


def test_the_short_way_over_http(served: Served) -> None:
    with served.server.wire() as wire:
        body = json.dumps(told("pass")).encode()
        answer = wire.ask(b"POST /v2/models/obey/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert answer.status == 200
    assert served.next()[0].events == ["HTTP_RECV_START", "HTTP_RECV_END", *EXECUTED, "HTTP_SEND_START", "HTTP_SEND_END"]


def test_over_grpc(served: Served, grpc_client: Client) -> None:
    grpc_client.infer(script("obey", "pass"))
    assert served.next()[0].events == ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *EXECUTED, "GRPC_SEND_START", "GRPC_SEND_END"]


def test_in_a_stream(served: Served, grpc_client: Client) -> None:
    grpc_client.stream([script("obey", "pass"), script("obey", "pass")])
    for trace in served.next(2):
        assert trace.events == ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *EXECUTED, "GRPC_SEND_START", "GRPC_SEND_END"]


def test_each_response_of_a_decoupled_model(served: Served, client: httpx.Client) -> None:
    count = 3
    with client.stream("POST", "models/repeat/generate_stream", json={"INPUT0": [1, 2, 3]}) as answer:
        assert answer.status_code == 200, answer.read()
        assert len([line for line in answer.iter_lines() if line.startswith("data:")]) == count
    (trace,) = served.next()
    assert trace.events.count("INFER_RESPONSE_COMPLETE") == trace.events.count("HTTP_SEND_END") == count
    assert trace.events.count("REQUEST_END") == 1


def test_generate(served: Served, client: httpx.Client) -> None:
    assert client.post("models/obey/generate", json={"CODE": "pass"}).status_code == 200
    assert served.next()[0].events == ["HTTP_RECV_START", "HTTP_RECV_END", *EXECUTED, "HTTP_SEND_START", "HTTP_SEND_END"]


def test_requests_of_models(served: Served, client: httpx.Client) -> None:
    answer = client.post("models/obey/infer", json=told(CALLS)).json()
    assert answer["outputs"][0]["data"] == ["None None"], "there is no context in a file"
    outer, inner = served.next(2)
    assert inner.events == EXECUTED and inner.about["parent_id"] == outer.about["id"] and "parent_id" not in outer.about
    assert outer.times["COMPUTE_START"] <= inner.times["REQUEST_START"] <= inner.times["REQUEST_END"] <= outer.times["COMPUTE_END"]


def test_a_request_that_a_model_makes_without_a_trace(served: Served, client: httpx.Client) -> None:
    assert client.post("models/obey/infer", json=told(CALLS.replace("trace=request.trace(),", ""))).status_code == 200
    served.next(1)


def test_in_a_process_that_the_model_forked(served: Served, client: httpx.Client) -> None:
    code = f"""
import multiprocessing
def body():
    scope = {{"pb_utils": pb_utils, "np": np, "request": request}}
    exec({CALLS!r}, scope)
    os._exit(0 if scope["result"] == "None None" else 1)
child = multiprocessing.get_context("fork").Process(target=body)
child.start()
child.join(20)
result = str(child.exitcode)
"""
    assert client.post("models/obey/infer", json=told(code)).json()["outputs"][0]["data"] == ["0"]
    outer, inner = served.next(2)
    assert inner.about["parent_id"] == outer.about["id"]


def test_tensors(served: Served, client: httpx.Client) -> None:
    client.post("models/add_sub/trace/setting", json={"trace_level": ["TENSORS"]})
    inputs = [tensor(name, "FP32", [4], [1, 2, 3, 4]) for name in ("INPUT0", "INPUT1")]
    assert client.post("models/add_sub/infer", json={"inputs": inputs}).status_code == 200
    (trace,) = served.next()
    client.post("models/add_sub/trace/setting", json={"trace_level": None})
    data = {"name": "INPUT0", "data": "1,2,3,4", "shape": "4", "dtype": "FP32"}
    assert trace.events == []
    assert trace.tensors == [
        ("TENSOR_QUEUE_INPUT", data),
        ("TENSOR_QUEUE_INPUT", {**data, "name": "INPUT1"}),
        ("TENSOR_BACKEND_OUTPUT", {**data, "name": "OUTPUT0", "data": "2,4,6,8"}),
        ("TENSOR_BACKEND_OUTPUT", {**data, "name": "OUTPUT1", "data": "0,0,0,0"}),
    ]


def test_requests_that_fail(served: Served, client: httpx.Client, grpc_client: Client) -> None:
    assert client.post("models/obey/infer", json=told("1 / 0")).status_code == 500
    assert "REQUEST_END" in served.next()[0].events
    assert client.post("models/obey/infer", json={"inputs": []}).status_code == 400
    assert served.next()[0].events[0] == "HTTP_RECV_START"
    failure(grpc_client.infer, script("obey", "1 / 0"))
    assert served.next()[0].events[-1] == "GRPC_SEND_END"


def test_a_client_that_leaves(served: Served, client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("models/obey/infer", json=told("while not request.is_cancelled(): time.sleep(0.01)"), timeout=1)
    (trace,) = served.next()
    assert trace.events[:2] == ["HTTP_RECV_START", "HTTP_RECV_END"] and "REQUEST_END" in trace.events


def test_settings_over_http(served: Served, client: httpx.Client, hub: None) -> None:
    with triton_http.InferenceServerClient(served.server.address) as library:
        before = library.get_trace_settings()
        assert before["trace_level"] == ["TIMESTAMPS"] and before["trace_mode"] == "triton" and before["trace_file"].endswith("trace.json")
        changed = library.update_trace_settings(settings={"trace_rate": "2", "trace_count": "1", "log_frequency": "0"})
        assert (changed["trace_rate"], changed["trace_count"]) == ("2", "1")
        for _ in range(4):
            client.post("models/obey/infer", json=told("pass"))
        served.next(1)
        own = library.update_trace_settings("add_sub", {"trace_level": ["TENSORS"]})
        assert own["trace_level"] == ["TENSORS"] and own["trace_rate"] == "2"
        assert library.get_trace_settings()["trace_level"] == ["TIMESTAMPS"]
        assert library.update_trace_settings("add_sub", {"trace_level": None})["trace_level"] == ["TIMESTAMPS"]
        library.update_trace_settings(settings={"trace_rate": None, "trace_count": None})
        assert library.get_trace_settings() == before
        with pytest.raises(InferenceServerException, match="Request for unknown model : nope"):
            library.get_trace_settings("nope")
    assert client.get("models/add_sub/versions/1/trace/setting").json() == before


@pytest.mark.parametrize(
    "path, body, status, text",
    [
        ("trace/setting", {"trace_file": "/x"}, 501, "trace file location can not be updated through network protocol"),
        ("trace/setting", {"trace_rate": "x"}, 400, "Unable to parse 'trace_rate', got: x"),
        ("trace/setting", {"trace_count": "-2"}, 400, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        ("trace/setting", {"trace_level": ["OFF", "TENSORS"]}, 400, "Expect only one trace level 'OFF' is specified"),
        ("trace/setting", {"trace_rate": 5}, 400, "attempt to access JSON non-string as string"),
        ("trace/setting", [], 400, "attempt to get members for non-object"),
        ("models/nope/trace/setting", {"trace_rate": "5"}, 400, "Request for unknown model : nope"),
    ],
)
def test_settings_that_cannot_be(client: httpx.Client, path: str, body: Any, status: int, text: str) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, text)


def test_settings_over_grpc(served: Served) -> None:
    with triton_grpc.InferenceServerClient(served.server.grpc_address) as library:
        before = library.get_trace_settings(as_json=True)["settings"]
        assert before["trace_level"] == {"value": ["TIMESTAMPS"]} and before["trace_rate"] == {"value": ["1"]}
        changed = library.update_trace_settings("add_sub", {"trace_level": ["TENSORS", "TIMESTAMPS"], "trace_rate": "7"}, as_json=True)
        assert changed["settings"]["trace_level"]["value"] == ["TENSORS", "TIMESTAMPS"]
        back = library.update_trace_settings("add_sub", {"trace_level": None, "trace_rate": None}, as_json=True)["settings"]
        assert back == before
        for changes, text in [
            ({"trace_rate": ["1", "2"]}, "expect only 1 value for 'trace_rate'"),
            ({"trace_file": "/x"}, "trace file location can not be updated through network protocol"),
        ]:
            with pytest.raises(InferenceServerException, match=text):
                library.update_trace_settings(settings=changes)
        with pytest.raises(InferenceServerException, match="Request for unknown model : nope"):
            library.get_trace_settings("nope")


class Collector:
    """Takes what an exporter sends. ``spans`` by name, and ``resource``."""

    def __init__(self) -> None:
        self.spans: List[Any] = []
        self.resource: Dict[str, str] = {}
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def opentelemetry(collector: Collector, *more: str) -> List[str]:
    settings = [
        "mode=opentelemetry",
        f"opentelemetry,url={collector.url}",
        "opentelemetry,bsp_schedule_delay=50",
        "level=TIMESTAMPS",
        *more,
    ]
    return [word for setting in settings for word in ("--trace-config", setting)]


def attributes(span: Any) -> Dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_spans_nest_in_those_of_the_client(tmp_path: Path, collector: Collector) -> None:
    obey(tmp_path / "models", instances=2)
    settings = opentelemetry(collector, "rate=1", "opentelemetry,resource=service.name=mine")
    with serving(tmp_path, tmp_path / "models", *settings) as server, httpx.Client(base_url=f"http://{server.address}/v2") as client:
        headers = {"traceparent": TRACEPARENT, "tracestate": "a=b"}
        answer = client.post("models/obey/infer", json=told(CALLS), headers=headers)
        (contexts,) = answer.json()["outputs"][0]["data"]
        spans = until(lambda: len(collector.spans) >= 5 and collector.spans, what="the spans")
    _, trace_id, parent, _ = TRACEPARENT.split("-")
    assert {(span.trace_id.hex(), span.trace_state) for span in spans} == {(trace_id, "a=b")}
    by_id = {span.span_id.hex(): span for span in spans}
    (request,) = [span for span in spans if span.name == "InferRequest"]
    (outer,) = [span for span in spans if span.parent_span_id == request.span_id]
    (inner,) = [span for span in spans if span.name == "obey" and span is not outer]
    computes = [span for span in spans if span.name == "compute"]
    assert request.parent_span_id.hex() == parent and outer.name == "obey" and inner.parent_span_id == outer.span_id
    assert {by_id[span.parent_span_id.hex()].name for span in computes} == {"obey"} and len(computes) == 2
    told_contexts = [json.loads(text) for text in contexts.split(" ")]
    assert told_contexts == [{"traceparent": f"00-{trace_id}-{span.span_id.hex()}-01", "tracestate": "a=b"} for span in (outer, inner)], (
        "what the model makes of it itself nests there"
    )
    assert attributes(outer) == {
        "triton.model_name": "obey", "triton.model_version": 1, "triton.trace_id": 1, "triton.trace_parent_id": 0, "triton.request_id": "r1",
    }  # fmt: skip
    assert attributes(inner)["triton.trace_parent_id"] == 1
    assert [event.name for event in request.events] == [
        "HTTP_RECV_START", "HTTP_RECV_END", "INFER_RESPONSE_COMPLETE", "HTTP_SEND_START", "HTTP_SEND_END",
    ]  # fmt: skip
    assert [event.name for event in computes[0].events] == ["COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert request.start_time_unix_nano <= outer.start_time_unix_nano <= inner.start_time_unix_nano
    assert collector.resource["service.name"] == "mine"


def test_a_sampled_client_is_traced_whatever_the_rate(grpc_core: None, tmp_path: Path, collector: Collector) -> None:
    obey(tmp_path / "models")
    settings = ["--grpc-port", "0", *opentelemetry(collector, "rate=1000000")]
    with serving(tmp_path, tmp_path / "models", *settings, tracebacks=True) as server:
        with Client(server.grpc_address) as client:
            for flags in ("00", "01"):
                client.infer(script("obey", "pass"), metadata=[("traceparent", TRACEPARENT[:-2] + flags)])
            client.infer(script("obey", "pass"))
            failed = failure(client.infer, script("obey", "1 / 0"), metadata=[("traceparent", TRACEPARENT)])
            assert "division by zero" in failed
        with httpx.Client(base_url=f"http://{server.address}/v2") as http_client:
            assert http_client.get("trace/setting").json()["url"] == collector.url
    # The server has ended, and has sent what it had.
    requests = [span for span in collector.spans if span.name == "InferRequest"]
    assert len(requests) == 2 and {span.parent_span_id.hex() for span in requests} == {TRACEPARENT.split("-")[2]}
    assert sorted(span.status.code for span in requests) == [0, 2] and "division by zero" in max(span.status.message for span in requests)
    assert collector.resource["service.name"] == "triton-inference-server"


def test_a_collector_that_is_not_there(tmp_path: Path) -> None:
    obey(tmp_path / "models")
    settings = ["mode=opentelemetry", "opentelemetry,url=http://127.0.0.1:9/v1/traces", "rate=1", "level=TIMESTAMPS"]
    flags = [word for setting in settings for word in ("--trace-config", setting)]
    with serving(tmp_path, tmp_path / "models", *flags, tracebacks=True) as server, httpx.Client() as client:
        assert client.post(f"http://{server.address}/v2/models/obey/infer", json=told("pass")).status_code == 200


def test_wrong_options(tmp_path: Path) -> None:
    answer = run_serve(str(tmp_path), "--trace-config", "rte=5")
    assert answer.returncode == 2 and "--trace-config: unknown key 'rte'; did you mean rate?" in answer.stderr


def test_former_options(tmp_path: Path) -> None:
    obey(tmp_path / "models")
    path = tmp_path / "trace"
    former = ["--trace-file", str(path), "--trace-level", "TIMESTAMPS", "--trace-rate", "5", "--trace-log-frequency", "1"]
    with serving(tmp_path, tmp_path / "models", *former, "--trace-config", "rate=1") as server, httpx.Client() as client:
        for _ in range(2):
            assert client.post(f"http://{server.address}/v2/models/obey/infer", json=told("pass")).status_code == 200
    assert [len(read(Path(f"{path}.{index}"))) for index in range(2)] == [1, 1]


def test_requests_of_models_go_to_the_same_files(tmp_path: Path) -> None:
    obey(tmp_path / "models", instances=2)
    path = tmp_path / "trace"
    with serving(
        tmp_path, tmp_path / "models", *ON, *[w for s in (f"file={path}", "log-frequency=4") for w in ("--trace-config", f"triton,{s}")]
    ) as server:
        with httpx.Client() as client:
            assert client.post(f"http://{server.address}/v2/models/obey/infer", json=told(CALLS)).status_code == 200
    assert len(read(Path(f"{path}.0"))) == 2 and not path.exists()
