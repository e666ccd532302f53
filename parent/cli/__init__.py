"""The command ``stublet``: ``serve``, ``infer`` and ``ps``."""
