"""Options of tritonserver's that mean nothing here: they are accepted, so that its command lines work, and the log says that they do
nothing."""

from __future__ import annotations

from typing import Any, Dict

import click

_POOLS = "there are no memory pools to size"
_CLOUD = "there is no endpoint of this kind"

IGNORED: Dict[str, str] = {
    "--http-thread-count": "one event loop serves HTTP",
    "--reuse-http-port": "the port is this server's alone",
    "--grpc-infer-thread-count": "the server's event loop handles requests of all protocols",
    "--grpc-infer-allocation-pool-size": _POOLS,
    "--model-load-thread-count": "all models load at the same time",
    "--model-namespacing": "a model's name is its own in all repositories",
    "--enable-peer-access": "GPUs are the models' affair",
    "--min-supported-compute-capability": "GPUs are the models' affair",
    "--model-load-gpu-limit": "GPUs are the models' affair",
    "--buffer-manager-thread-count": "tensors are not copied by threads",
    "--pinned-memory-pool-byte-size": _POOLS,
    "--cuda-memory-pool-byte-size": _POOLS,
    "--cuda-virtual-address-size": _POOLS,
    "--repoagent-directory": "there are no repository agents",
    "--cache-directory": "the local cache is built in",
    "--allow-sagemaker": _CLOUD,
    "--sagemaker-port": _CLOUD,
    "--sagemaker-safe-port-range": _CLOUD,
    "--sagemaker-thread-count": _CLOUD,
    "--allow-vertex-ai": _CLOUD,
    "--vertex-ai-port": _CLOUD,
    "--vertex-ai-thread-count": _CLOUD,
    "--vertex-ai-default-model": _CLOUD,
}
"""Why each means nothing."""

_KEY = "stublet.ignored"


def ignored_options(function: Any) -> Any:
    """Adds the options to a command."""
    for flag in reversed(IGNORED):
        function = click.option(flag, multiple=True, hidden=True, expose_value=False, callback=_note)(function)
    return function


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value:
        ctx.meta.setdefault(_KEY, []).append(param.opts[0])


def ignored_text(ctx: click.Context) -> str:
    """What the log is told of those that were given; "" if none was."""
    reasons: Dict[str, list[str]] = {}
    for flag in ctx.meta.get(_KEY, []):
        reasons.setdefault(IGNORED[flag], []).append(flag)
    told = "; ".join(f"{', '.join(flags)} ({reason})" for reason, flags in reasons.items())
    return f"options without effect here: {told}" if told else ""
