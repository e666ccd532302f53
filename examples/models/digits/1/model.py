"""A scikit-learn classifier: trained in `initialize`, asked once for all the requests of a batch in `execute`.

The model also shows how to read settings of its own, the `parameters` of config.pbtxt.
"""

from __future__ import annotations

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        # One thread for the linear algebra: on matrices as small as these, several spend their time waiting for each other,
        # and much of it when the machine is busy. It is more instances that make use of more cores.
        threadpool_limits(1)
        parameters = json.loads(args["model_config"])["parameters"]
        images, digits = load_digits(return_X_y=True)
        images, _, digits, _ = train_test_split(
            images.astype(np.float32),
            digits,
            test_size=float(parameters["held_out_share"]["string_value"]),
            random_state=int(parameters["split_seed"]["string_value"]),
            stratify=digits,
        )
        self._classifier = MLPClassifier(hidden_layer_sizes=(64,), max_iter=400, random_state=0).fit(images, digits)
        pb_utils.Logger.log_info(f"{args['model_instance_name']}: trained on {len(images)} images")

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        # The server hands over the requests of a batch as they are. The classifier is faster when asked once for all
        # of their images, so they are joined here and the answers are split again.
        batches = [pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy() for request in requests]
        probabilities = self._classifier.predict_proba(np.concatenate(batches).reshape(-1, 64)).astype(np.float32)
        digits = self._classifier.classes_[probabilities.argmax(axis=1)].astype(np.int64).reshape(-1, 1)

        responses = []
        start = 0
        for batch in batches:
            own = slice(start, start + len(batch))
            outputs = [pb_utils.Tensor("DIGIT", digits[own]), pb_utils.Tensor("PROBABILITIES", probabilities[own])]
            responses.append(pb_utils.InferenceResponse(outputs))
            start = own.stop
        return responses
