"""A program that asks a server through KServe's clients, and prints what it was told as JSON.

A process of its own, because KServe and tritonclient each bring the protocol's messages, and protobuf takes them once.

Usage: ``kserve_client.py HTTP_URL GRPC_ADDRESS``, of a server with the model ``simple`` and without a model ``nope``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Dict

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(model: str, binary: bool, **more: Any) -> InferRequest:
    """The numbers 0 to 15, and ones."""
    inputs = []
    for name, array in (("INPUT0", np.arange(16)), ("INPUT1", np.ones(16, int))):
        tensor = InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(array.reshape(1, 16).astype(np.int32), binary_data=binary)
        inputs.append(tensor)
    return InferRequest(model, inputs, **more)


def told(response: Any) -> Dict[str, Any]:
    return {output.name: output.as_numpy().tolist() for output in response.outputs}


async def over_rest(url: str) -> Dict[str, Any]:
    """Everything that the REST client can ask over v2, but for the server's health: it expects a body, which Triton's answer does not have."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    binary_output = request("simple", True, parameters={"binary_data_output": True})
    found = {
        "model ready": await client.is_model_ready(url, "simple"),
        "other model ready": await client.is_model_ready(url, "nope"),
        "JSON": told(await client.infer(url, request("simple", False), "simple")),
        "binary": told(await client.infer(url, request("simple", True), "simple")),
        "binary output": told(await client.infer(url, binary_output, "simple")),
        "id": (await client.infer(url, request("simple", True, request_id="7"), "simple")).id,
    }
    try:
        await client.infer(url, request("nope", True), "nope")
    except httpx.HTTPStatusError as error:
        found["error"] = str(error)
    await client.close()
    return found


async def over_grpc(address: str) -> Dict[str, Any]:
    """Everything that the gRPC client can ask."""
    async with InferenceGRPCClient(address) as client:
        found = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready("simple"),
            "other model ready": await client.is_model_ready("nope"),
            "typed": told(await client.infer(request("simple", False))),
            "raw": told(await client.infer(request("simple", True))),
            "id": (await client.infer(request("simple", True, request_id="7", parameters={"a": "b"}))).id,
        }
        try:
            await client.infer(request("nope", True))
        except grpc.RpcError as error:
            found["error"] = f"{error.code().name}: {error.details()}"
    return found


async def main(url: str, address: str) -> None:
    print(json.dumps({"rest": await over_rest(url), "grpc": await over_grpc(address)}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
