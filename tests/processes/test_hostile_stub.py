"""A stub that writes garbage into its rings, its blocks or its socket loses its own requests, and nothing else happens."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Iterator, List

import pytest
from http_wire import Answer, Wire, infer, tensor
from model_repository import MODELS
from server_process import ServerProcess, alive, serving, until

VANDAL = Path(__file__).parent.parent / "hostile_models" / "vandal"


def ways() -> List[str]:
    """The keys of WAYS in the model, which can be imported only in a stub."""
    tree = ast.parse((VANDAL / "1" / "model.py").read_text())
    (table,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "WAYS"]
    assert isinstance(table, ast.Dict)
    return [key.value for key in table.keys if isinstance(key, ast.Constant)]


ENDED_LATER = {"answered twice": 200, "returned twice": 503, "strings of no length": 500}
"""What is answered by a vandal whose request is over when it is ended."""


def model_of(way: str) -> str:
    return "vandal_" + re.sub(r"\W", "_", way)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model for each way, each with a stub to lose, and one that behaves."""
    root = tmp_path_factory.mktemp("repository")
    for way in ways():
        shutil.copytree(VANDAL, root / model_of(way))
    shutil.copytree(MODELS / "add_sub", root / "add_sub")
    with serving(tmp_path_factory.mktemp("server"), root, "--shm-limit-per-instance", "32MiB", tracebacks=True) as server:
        yield server


def ask(wire: Wire, way: str, model: str) -> Answer:
    return wire.ask(infer(model, {"inputs": [tensor("WAY", "BYTES", [1], [way])]}))


@pytest.mark.parametrize("way", ways())
def test_a_vandal_harms_only_itself(server: ServerProcess, way: str) -> None:
    model = model_of(way)
    pid, before = server.stubs()[f"{model}_0_0"], len(server.log)
    with server.wire() as wire, server.wire() as other:
        assert ask(wire, "none", model).json()["outputs"][0]["data"] == ["none"]
        answer = ask(wire, way, model)
        if way in ENDED_LATER:
            assert answer.status == ENDED_LATER[way], answer
        else:
            assert (answer.status, f"'{model}_0_0' is not healthy" in answer.error) == (503, True), answer
        until(lambda: not alive(pid), 5, "the end of the stub")
        add_sub = {"inputs": [tensor(name, "FP32", [4], [1, 1, 1, 1]) for name in ("INPUT0", "INPUT1")]}
        assert other.ask(infer("add_sub", add_sub)).json()["outputs"][0]["data"] == [2, 2, 2, 2]
    until(lambda: f"'{model}_0_0' is not healthy: it was ended for a protocol error" in server.log[before:], 5, "the reason in the log")
    log = server.log[before:]
    assert alive(server.pid) and "Exception in callback" not in log and "a segment was truncated" not in log


def test_of_all_that_nothing_is_left(server: ServerProcess) -> None:
    """Descriptors and memory that vandals were given, or have sent, go with them."""
    memory = f"/proc/{server.pid}/smaps_rollup"

    def shared() -> int:
        return sum(int(line.split()[1]) << 10 for line in Path(memory).read_text().splitlines() if line.startswith("Pss_Shmem"))

    until(lambda: shared() < len(ways()) * (8 << 20), 10, "the end of the memory of the vandals")
    until(lambda: len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < 100 + 40 * len(ways()), 10, "the end of their descriptors")
