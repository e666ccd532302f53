from time import perf_counter_ns

import numpy as np
import triton_python_backend_utils as pb_utils
from stublet.stub.cuda.devices import devices
from stublet.stub.cuda.memory import DeviceMemory


class TritonPythonModel:
    def initialize(self, args):
        self._device = int(args["model_instance_device_id"])
        self._tensor = None

    def execute(self, requests):
        responses = []
        for request in requests:
            what, nbytes, count = (pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0] for name in ("WHAT", "NBYTES", "COUNT"))
            measure = {b"copy": self._copy, b"copies": self._copies}.get(what)
            took, on_device = measure(int(nbytes), int(count)) if measure else self._hand_over(what.decode(), int(nbytes), int(count))
            outputs = [pb_utils.Tensor("NANOSECONDS", np.array(took, np.int64)), pb_utils.Tensor("ON_DEVICE", np.array([on_device]))]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses

    def _hand_over(self, model, nbytes, count):
        """From the call to its answer, which says where the tensor came in."""
        if self._tensor is None or np.prod(self._tensor.shape()) != nbytes:
            self._tensor = None
            values = np.random.default_rng(seed=0).integers(0, 256, nbytes, np.uint8)
            self._tensor = pb_utils.Tensor("DATA", values).to(f"cuda:{self._device}")
        took = []
        for _ in range(count):
            began = perf_counter_ns()
            call = pb_utils.InferenceRequest(model_name=model, inputs=[self._tensor], requested_output_names=["ON_DEVICE"])
            answer = call.exec()
            took.append(perf_counter_ns() - began)
            if answer.has_error():
                raise pb_utils.TritonModelException(answer.error().message())
            on_device = pb_utils.get_output_tensor_by_name(answer, "ON_DEVICE").as_numpy()[0]
        return took, on_device

    def _copy(self, nbytes, count):
        """Copies as a tensor is staged: each is waited for."""
        found, device, source, target = self._memories(nbytes)
        took = []
        for _ in range(count):
            began = perf_counter_ns()
            found.copy(device, target, source, nbytes)
            took.append(perf_counter_ns() - began)
        return took, True

    def _copies(self, nbytes, count):
        """What the device can do: copies in a row, of which the last is waited for."""
        found, device, source, target = self._memories(nbytes)
        with found.on(device) as driver:
            began = perf_counter_ns()
            for _ in range(count):
                driver.copy(target, source, nbytes, device.stream)
            driver.finish(device.stream)
            return [(perf_counter_ns() - began) // count] * count, True

    def _memories(self, nbytes):
        found = devices()
        device = found.get(self._device)
        self._tensor = None
        self._kept = [DeviceMemory.allocate(found, device, nbytes) for _ in range(2)]
        source, target = (memory.address() for memory in self._kept)
        found.copy(device, target, source, nbytes)
        return found, device, source, target
