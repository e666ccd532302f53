"""The client library that users have, as it is."""

from __future__ import annotations

from typing import Any, Iterator

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as http
from server_process import ServerProcess
from tritonclient.utils import InferenceServerException
from typed_arrays import ARRAYS


@pytest.fixture
def client(hub: None, server: ServerProcess) -> Iterator[http.InferenceServerClient]:
    client = http.InferenceServerClient(server.address, concurrency=4)
    yield client
    client.close()


def given(name: str, datatype: str, array: np.ndarray, binary: bool) -> http.InferInput:
    tensor = http.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


@pytest.mark.parametrize("binary_out", [False, True], ids=["JSON out", "binary out"])
@pytest.mark.parametrize("binary_in", [False, True], ids=["JSON in", "binary in"])
@pytest.mark.parametrize("case", ARRAYS)
def test_round_trip(client: http.InferenceServerClient, case: str, binary_in: bool, binary_out: bool) -> None:
    datatype, array = ARRAYS[case]
    outputs = [http.InferRequestedOutput(f"OUT_{datatype}", binary_data=binary_out)]
    result = client.infer("every_type", [given(f"IN_{datatype}", datatype, array, binary_in)], outputs=outputs, request_id="7")
    found = result.as_numpy(f"OUT_{datatype}")
    if datatype == "BYTES" and not binary_out:
        found = np.array([item.encode() for item in found], object)
    np.testing.assert_array_equal(found, array)
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("datatype, dtype", [("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_sixteen_bit_floats(client: http.InferenceServerClient, datatype: str, dtype: Any) -> None:
    array = np.array([0.5, -2.0, np.inf], dtype)
    result = client.infer("every_type", [given(f"IN_{datatype}", datatype, array, True)])
    np.testing.assert_array_equal(result.as_numpy(f"OUT_{datatype}"), array)


def test_several_types_at_once(client: http.InferenceServerClient) -> None:
    inputs = [given(f"IN_{d}", d, a, binary) for (d, a), binary in zip([ARRAYS[c] for c in ("INT8", "BYTES", "FP64")], (True, False, True))]
    result = client.infer("every_type", inputs)
    for datatype in ("INT8", "BYTES", "FP64"):
        np.testing.assert_array_equal(result.as_numpy(f"OUT_{datatype}"), ARRAYS[datatype][1])


@pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
@pytest.mark.parametrize("received", [None, "gzip", "deflate"])
def test_compression(client: http.InferenceServerClient, sent: Any, received: Any) -> None:
    array = np.arange(50_000, dtype=np.float32)
    result = client.infer(
        "vector", [given("INPUT0", "FP32", array, True)], request_compression_algorithm=sent, response_compression_algorithm=received
    )
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_async_infer_keeps_answers_apart(client: http.InferenceServerClient) -> None:
    arrays = [np.full(n, n, np.float32) for n in range(1, 60)]
    pending = [client.async_infer("vector", [given("INPUT0", "FP32", array, True)]) for array in arrays]
    for array, one in zip(arrays, pending):
        np.testing.assert_array_equal(one.get_result().as_numpy("OUTPUT0"), array)


def test_parameters(client: http.InferenceServerClient) -> None:
    result = client.infer("echo", [given("INPUT0", "INT32", np.array([1], np.int32), True)], parameters={"a": 1, "b": "x", "c": True})
    assert result.get_response()["parameters"] == {"answered": True, "text": "déjà", "number": 7}
    assert b'"parameters": {"a": 1, "b": "x", "c": true}' in result.as_numpy("REQUEST")[0]


def test_errors_have_their_text_and_status(client: http.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nope", [given("INPUT0", "FP32", np.zeros(4, np.float32), True)])
    assert (caught.value.status(), caught.value.message()) == ("404", "Request for unknown model: 'nope' is not found")
