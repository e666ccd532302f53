"""A model with metrics of its own, which the server shows to Prometheus at http://127.0.0.1:8002/metrics.

Instances that make the same metric, of the same name and labels, add to the same one. It is there as long as the family
and the metric are referenced, so both are kept in `self`; they go when the model does.
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._texts = pb_utils.MetricFamily("example_texts", "Texts that were received", pb_utils.MetricFamily.COUNTER)
        self._good = self._texts.Metric(labels={**labels, "outcome": "counted"})
        self._bad = self._texts.Metric(labels={**labels, "outcome": "refused"})
        self._longest = pb_utils.MetricFamily("example_longest_text", "Words of the longest text", pb_utils.MetricFamily.GAUGE)
        self._longest_words = self._longest.Metric(labels=labels)
        self._words = pb_utils.MetricFamily("example_words", "Words of a text", pb_utils.MetricFamily.HISTOGRAM)
        self._words_of_a_text = self._words.Metric(labels=labels, buckets=[1, 10, 100])

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[0]
        words = len(text.split())
        if not words:
            self._bad.increment(1)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no words", pb_utils.TritonError.INVALID_ARG))
        self._good.increment(1)
        self._words_of_a_text.observe(words)
        if words > self._longest_words.value():
            self._longest_words.set(words)
        return pb_utils.InferenceResponse([pb_utils.Tensor("WORDS", np.array([words], np.int32))])
