"""Decoupled, so not to be reached over HTTP's infer."""


class TritonPythonModel:
    def execute(self, requests):
        return None
