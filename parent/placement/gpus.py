"""The GPUs that instances can be placed on. The server itself uses none of them, and never loads the driver: a program looks, and ends."""

from __future__ import annotations

import glob
import logging
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping, Optional, Tuple

from ...shm.cuda import list_devices

LEAST_CAPABILITY = 6.0
"""As of Triton: what ``--min-supported-compute-capability`` is by default."""

OWN_GPU_ONLY = "own_gpu_only"
"""The parameter of a model whose instances see no GPU but their own."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

_SIGNS = ("/dev/nvidia[0-9]*", "/dev/dxg")
"""Without one of these files there is no GPU, and no need to look for longer. The latter is that of WSL2."""

_LOOK = (sys.executable, str(Path(list_devices.__file__).resolve()))
_LOOK_SECONDS = 30.0

logger = logging.getLogger(__name__)


def supported_gpus() -> Tuple[int, ...]:
    """The numbers of the GPUs that the server sees and Triton would use. They are looked for once."""
    return _look() if any(map(glob.glob, _SIGNS)) else ()


@lru_cache(maxsize=1)
def _look() -> Tuple[int, ...]:
    try:
        looked = subprocess.run(_LOOK, capture_output=True, text=True, timeout=_LOOK_SECONDS, check=True)
        return tuple(number for number, line in enumerate(looked.stdout.split()) if float(line) >= LEAST_CAPABILITY)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        last = (getattr(error, "stderr", None) or "").strip().splitlines()[-1:]
        logger.warning("no GPU is used: %s", last[0] if last else error)
        return ()


def own_gpu_only(config: Any) -> bool:
    """Whether each instance of a model is to see no GPU but its own.

    Raises:
        ValueError: the parameter is neither "yes" nor "no".
    """
    text = config.parameters[OWN_GPU_ONLY].string_value if OWN_GPU_ONLY in config.parameters else "no"
    if text not in ("yes", "no"):
        raise ValueError(f"parameter '{OWN_GPU_ONLY}' of model '{config.name}' must be \"yes\" or \"no\", not '{text}'")
    return bool(text == "yes")


def visible(gpu: Optional[int], environment: Mapping[str, str]) -> str:
    """What a process has to have in ``CUDA_VISIBLE_DEVICES`` to see that GPU of the server's, or None of them.

    Args:
        environment: the server's, which may have some GPUs only, in some order.
    """
    if gpu is None:
        return ""
    names = environment.get(VISIBLE, "")
    return names.split(",")[gpu].strip() if names else str(gpu)
