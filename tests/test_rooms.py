"""The doors between the rooms: who imports whom, and what the far side's interpreter must have and know."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Iterator, List, NamedTuple, Set

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("shm", "stub", "parent")

MAY_ENTER = {"shm": {"shm"}, "stub": {"stub", "shm"}, "parent": {"parent", "shm"}}

# A model's environment has nothing else. What is imported within a function is not needed to import the module.
FAR_SIDE = {"numpy", "msgpack"}
FAR_SIDE_LAZILY = {"shm/segment.py": {"posix_ipc"}, "stub/thread_counts.py": {"threadpoolctl"}}

# The runtime of Python 3.10 and later: (module, names), None for all of it.
NEWER_NAMES = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout"},
    "contextlib": {"aclosing", "chdir"},
    "dataclasses": {"KW_ONLY"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "FlagBoundary", "ReprEnum", "StrEnum", "global_enum", "member", "nonmember", "verify"},
    "inspect": {"get_annotations"},
    "itertools": {"batched", "pairwise"},
    "os": {"EFD_CLOEXEC", "EFD_NONBLOCK", "EFD_SEMAPHORE", "eventfd", "eventfd_read", "eventfd_write", "splice"},
    "sys": {"exception", "monitoring", "orig_argv", "stdlib_module_names"},
    "threading": {"gettrace", "getprofile", "setprofile_all_threads", "settrace_all_threads"},
    "tomllib": None,
    "types": {"EllipsisType", "NoneType", "NotImplementedType", "UnionType"},
    "typing": {
        "Concatenate", "LiteralString", "Never", "NotRequired", "ParamSpec", "ParamSpecArgs", "ParamSpecKwargs", "Required", "Self", "TypeAlias",
        "TypeGuard", "TypeVarTuple", "Unpack", "assert_never", "assert_type", "dataclass_transform", "is_typeddict", "override", "reveal_type",
    },
}  # fmt: skip
NEWER_BUILTINS = {"BaseExceptionGroup", "EncodingWarning", "ExceptionGroup", "PythonFinalizationError", "aiter", "anext"}
NEWER_METHODS = {"add_note", "bit_count"}
NEWER_KEYWORDS = {"zip": {"strict"}, "dataclass": {"slots", "kw_only", "match_args", "weakref_slot"}}


def files(*rooms: str) -> List[Path]:
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Import(NamedTuple):
    module: str
    """From the top, as in ``stublet.shm.ring``."""
    lazy: bool


def imports(path: Path, tree: ast.AST) -> Iterator[Import]:
    package = ["stublet", *path.relative_to(ROOT).parts[:-1]]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                yield from (Import(f"{module}.{alias.name}", lazy) for alias in child.names)
            else:
                yield from walk(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    return walk(tree, False)


def test_the_scan_sees_imports() -> None:
    tree = ast.parse("import a.b\nfrom ..shm.ring import Ring\nfrom . import x\nfrom .. import parent\ndef f():\n    import lazy\n")
    assert list(imports(ROOT / "stub" / "some.py", tree)) == [
        ("a.b", False), ("stublet.shm.ring.Ring", False), ("stublet.stub.x", False), ("stublet.parent", False), ("lazy", True)
    ]  # fmt: skip


@pytest.mark.parametrize("path", files(*ROOMS), ids=named)
def test_a_room_imports_only_the_rooms_it_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    entered = {found.module.split(".")[1] for found in imports(path, ast.parse(path.read_text())) if found.module.startswith("stublet.")}
    assert entered <= MAY_ENTER[room]


@pytest.mark.parametrize("path", files("shm", "stub"), ids=named)
def test_the_far_side_needs_the_standard_library_numpy_and_msgpack(path: Path) -> None:
    def foreign(lazy: bool) -> Set[str]:
        tops = {found.module.split(".")[0] for found in imports(path, ast.parse(path.read_text())) if found.lazy == lazy}
        return tops - set(sys.stdlib_module_names) - {"stublet", "__future__"}

    assert foreign(lazy=False) <= FAR_SIDE
    assert foreign(lazy=True) <= FAR_SIDE | FAR_SIDE_LAZILY.get(named(path), set())


@pytest.mark.parametrize("path", files("shm", "stub"), ids=named)
def test_the_far_side_is_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    assert list(newer(tree)) == []
    annotated = any(isinstance(node, (ast.AnnAssign, ast.FunctionDef)) for node in ast.walk(tree))
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    assert future or not annotated or path.name == "__main__.py", "annotations in the syntax of 3.10 must not be evaluated"


def newer(tree: ast.AST) -> Iterator[str]:
    """What 3.9 would stumble over, although it parses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in NEWER_NAMES and not node.level:
            names = NEWER_NAMES[node.module]
            yield from (f"{node.module}.{alias.name}" for alias in node.names if names is None or alias.name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if NEWER_NAMES.get(alias.name, ()) is None)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.attr in (NEWER_NAMES.get(node.value.id) or ()):
                yield f"{node.value.id}.{node.attr}"
            elif node.attr in NEWER_METHODS:
                yield f".{node.attr}()"
        elif isinstance(node, ast.Name) and node.id in NEWER_BUILTINS:
            yield node.id
        elif isinstance(node, ast.Call):
            function = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
            yield from (f"{function}({keyword.arg}=)" for keyword in node.keywords if keyword.arg in NEWER_KEYWORDS.get(function, ()))
            if function in ("isinstance", "issubclass") and isinstance(node.args[1], ast.BinOp):
                yield f"{function}(..., X | Y)"
            if function in ("format_exception", "format_exception_only", "print_exception") and len(node.args) == 1:
                yield f"{function}(one argument)"


@pytest.mark.parametrize(
    "source, found",
    [
        ("import tomllib", ["tomllib"]),
        ("from typing import Self, Any", ["typing.Self"]),
        ("os.eventfd(0)", ["os.eventfd"]),
        ("zip(a, b, strict=True)", ["zip(strict=)"]),
        ("@dataclasses.dataclass(slots=True)\nclass A: pass", ["dataclass(slots=)"]),
        ("(5).bit_count()", [".bit_count()"]),
        ("isinstance(x, int | str)", ["isinstance(..., X | Y)"]),
        ("traceback.format_exception(error)", ["format_exception(one argument)"]),
        ("raise ExceptionGroup('', [])", ["ExceptionGroup"]),
        ("zip(a, b); dataclass(frozen=True); isinstance(x, (int, str)); os.pipe2(0)", []),
    ],
)
def test_the_scan_sees_what_is_newer(source: str, found: List[str]) -> None:
    assert list(newer(ast.parse(source))) == found


@pytest.mark.parametrize("source", ["match x:\n    case 1: pass", "try: pass\nexcept* ValueError: pass", "type X = int"])
def test_the_scan_sees_newer_grammar(source: str) -> None:
    with pytest.raises(SyntaxError):
        ast.parse(source, feature_version=(3, 9))
