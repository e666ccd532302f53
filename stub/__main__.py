"""``python -m stublet.stub``: a stub, or the fork server that starts stubs. The server runs it; people need not.

It also runs by path, under an interpreter that has no stublet installed: then ``stublet`` becomes a namespace of the folder above
this one, so that nothing else of the server's site-packages is exposed to the model.
"""

import os
import sys
import types


def _forget_libraries() -> None:
    """Takes the environment's libraries off LD_LIBRARY_PATH, where the server put them for this interpreter. It has read the variable
    when it was started; programs that the model runs are to see the server's."""
    libraries = os.environ.pop("STUBLET_LIBRARIES", None)
    if libraries is None:
        return
    directories = os.environ.pop("LD_LIBRARY_PATH", "").split(":")
    if libraries in directories:
        directories.remove(libraries)
    rest = ":".join(directories)
    if rest:
        os.environ["LD_LIBRARY_PATH"] = rest


def _make_importable() -> None:
    """Makes ``stublet.shm`` and ``stublet.stub`` importable from where this file lies."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0] or ".") == here:
        del sys.path[0]
    if "stublet" not in sys.modules:
        namespace = types.ModuleType("stublet")
        namespace.__path__ = [os.path.dirname(here)]
        sys.modules["stublet"] = namespace


def _add_msgpack(directory: str) -> None:
    """Lends the server's msgpack to an interpreter that has none; its pure-Python form serves any version."""
    try:
        import msgpack  # noqa: F401
    except ImportError:
        import importlib.util

        location = os.path.join(directory, "__init__.py")
        spec = importlib.util.spec_from_file_location("msgpack", location, submodule_search_locations=[directory])
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["msgpack"] = module
        spec.loader.exec_module(module)


def main() -> int:
    if sys.version_info < (3, 9):
        print(
            "stublet: a model's environment needs Python 3.9 or newer, %s has %d.%d" % ((sys.executable,) + sys.version_info[:2]),
            file=sys.stderr,
        )
        return 3
    if len(sys.argv) < 3 or sys.argv[1] not in ("--control", "--spawner"):
        print(__doc__, file=sys.stderr)
        print(
            "usage: python -m stublet.stub --control FD STACKS MSGPACK | --spawner FD   (descriptors inherited from the server)",
            file=sys.stderr,
        )
        return 2
    _forget_libraries()
    _make_importable()
    from stublet.stub import faults

    if sys.argv[1] == "--control":
        # As early as can be: libraries crash while they are imported, too.
        faults.report_to(int(sys.argv[3]))
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        print("stublet: the model's environment has no usable numpy, which is the one package it needs: pip install numpy", file=sys.stderr)
        print("(%s: %s)" % (sys.executable, error), file=sys.stderr)
        return 3
    if sys.argv[1] == "--control":
        _add_msgpack(sys.argv[4])
    from stublet.stub import process, spawner

    fd = int(sys.argv[2])
    if sys.argv[1] == "--spawner":
        child = spawner.main(fd)
        if child is None:
            return 0
        fd, stacks = child
        faults.report_to(stacks)
    return process.main(fd)


if __name__ == "__main__":
    sys.exit(main())
