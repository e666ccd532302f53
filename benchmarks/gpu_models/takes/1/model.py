import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "DATA")
            on_device = not tensor.is_cpu()
            if on_device:
                tensor.__dlpack__(stream=1)  # as a library does that takes it
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("ON_DEVICE", np.array([on_device]))]))
        return responses
