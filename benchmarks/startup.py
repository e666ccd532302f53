"""Start to ready with ten models, and the memory that their processes then hold while idle."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .cases import add_sub
from .client import verify
from .errors import BenchmarkError
from .processes import Memory, descendants, memory
from .report import Sample
from .servers import Target

MODELS = Path(__file__).with_name("models")
_COUNT = 10
# Long enough for what a server still does after it became ready.
_SETTLE = 0.5
_BARE = "import sys, numpy; print(flush=True); sys.stdin.read()"


@contextmanager
def ten_models() -> Iterator[Path]:
    """A temporary repository of ten copies of add_sub: add_sub_0 to add_sub_9."""
    with tempfile.TemporaryDirectory(prefix="benchmark-models-") as folder:
        for number in range(_COUNT):
            copy = Path(folder, f"add_sub_{number}")
            shutil.copytree(MODELS / "add_sub", copy, ignore=shutil.ignore_patterns("__pycache__"))
            config = copy / "config.pbtxt"
            config.write_text(config.read_text().replace('"add_sub"', f'"{copy.name}"'))
        yield Path(folder)


def measure_start(target: Target, repository: Path) -> tuple[str, Sample]:
    """One start, one checked answer from each model, one look at memory; the server's name first.

    Memory is that of the idle server: `stub_*` of all descendants, divided by the models, so that a
    helper process that serves them all is counted too.
    """
    with target.started(repository) as (server, seconds):
        for number in range(_COUNT):
            verify(server.host, server.port, add_sub(f"add_sub_{number}"))
        time.sleep(_SETTLE)
        if server.pid is None:
            raise BenchmarkError("the process of a server that was just started cannot be seen")
        parent = memory(server.pid)
        stubs = [memory(pid) for pid in descendants(server.pid)]
    return server.name, {
        "ready_s": seconds,
        "processes": 1 + len(stubs),
        "parent_pss_mib": parent.proportional,
        "stub_pss_mib": sum(stub.proportional for stub in stubs) / _COUNT,
        "stub_private_mib": sum(stub.private for stub in stubs) / _COUNT,
    }


def measure_bare(count: int) -> Sample:
    """Memory of `python -c "import numpy"`, the mean of `count` of them alive at a time."""
    with ExitStack() as stack:
        bare: list[Memory] = []
        processes = []
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", _BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        bare = [memory(process.pid) for process in processes]
    return {
        "processes": count,
        "stub_pss_mib": statistics.mean(one.proportional for one in bare),
        "stub_private_mib": statistics.mean(one.private for one in bare),
    }
