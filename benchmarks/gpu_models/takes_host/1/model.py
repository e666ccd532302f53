import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self._device = f"cuda:{args['model_instance_device_id']}"

    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "DATA")
            on_device = not tensor.is_cpu()
            tensor.to(self._device)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("ON_DEVICE", np.array([on_device]))]))
        return responses
