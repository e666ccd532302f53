"""The process around one model instance, and everything that ``model.py`` can see of it.

Needs the standard library, numpy and msgpack (pure Python will do) and CPython 3.9 or newer, because it runs under whatever
interpreter a model asks for. It imports ``stublet.shm`` and nothing of ``stublet.parent``.
"""
