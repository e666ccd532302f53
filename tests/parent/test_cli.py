"""The command line knows every option of tritonserver's."""

from __future__ import annotations

import re
from collections import Counter
from typing import Dict

import click
import pytest
from click.testing import CliRunner
from stublet.parent.cli.commands import cli
from stublet.parent.cli.ignored_options import IGNORED
from stublet.parent.cli.serve import serve
from stublet.parent.cli.trace_flags import FORMER

OPTIONS: Dict[str, click.Parameter] = {flag: parameter for parameter in serve.params for flag in parameter.opts}

TRITON = re.findall(
    r"--\S+",
    """
    --id --exit-timeout-secs --log-verbose --log-info --log-warning --log-error --log-format --log-file --model-store --model-repository
    --exit-on-error --disable-auto-complete-config --strict-readiness --model-control-mode --repository-poll-secs --load-model
    --model-config-name --model-load-thread-count --model-load-retry-count --model-namespacing --enable-peer-access --allow-http
    --http-address --http-port --reuse-http-port --http-header-forward-pattern --http-thread-count --http-restricted-api
    --http-max-input-size --allow-grpc --grpc-address --grpc-port --reuse-grpc-port --grpc-header-forward-pattern
    --grpc-infer-thread-count --grpc-infer-allocation-pool-size --grpc-use-ssl --grpc-use-ssl-mutual --grpc-server-cert --grpc-server-key
    --grpc-root-cert --grpc-infer-response-compression-level --grpc-keepalive-time --grpc-keepalive-timeout
    --grpc-keepalive-permit-without-calls --grpc-http2-max-pings-without-data --grpc-http2-min-recv-ping-interval-without-data
    --grpc-http2-max-ping-strikes --grpc-max-connection-age --grpc-max-connection-age-grace --grpc-restricted-protocol --allow-sagemaker
    --sagemaker-port --sagemaker-safe-port-range --sagemaker-thread-count --allow-vertex-ai --vertex-ai-port --vertex-ai-thread-count
    --vertex-ai-default-model --allow-metrics --allow-gpu-metrics --allow-cpu-metrics --metrics-address --metrics-port
    --metrics-interval-ms --metrics-config --trace-config --backend-directory --backend-config --repoagent-directory --cache-config
    --cache-directory --rate-limit --rate-limit-resource --pinned-memory-pool-byte-size --cuda-memory-pool-byte-size
    --cuda-virtual-address-size --min-supported-compute-capability --buffer-manager-thread-count --host-policy --model-load-gpu-limit
    --strict-model-config --response-cache-byte-size --trace-file --trace-level --trace-rate --trace-count --trace-log-frequency
    --allow-client-shm
""",
)


@pytest.mark.parametrize("flag", TRITON)
def test_every_option_is_known(flag: str) -> None:
    assert flag in OPTIONS


def test_none_is_there_twice() -> None:
    counts = Counter(flag for parameter in serve.params for flag in parameter.opts)
    assert [flag for flag, count in counts.items() if count > 1] == []


def test_help_shows_those_that_have_a_meaning() -> None:
    text = CliRunner().invoke(cli, ["serve", "--help"]).output
    shown = set(re.findall(r"--[a-z0-9-]+", "\n".join(re.findall(r"^  (-.*)", text, re.MULTILINE))))
    assert "INTEGER RANGE" not in text and "<=" not in text
    for flag, parameter in OPTIONS.items():
        if isinstance(parameter, click.Option) and flag.startswith("--"):
            former = parameter.name in FORMER
            assert (flag in shown) == (flag not in IGNORED and not former), flag
    assert [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "Models and server:", "Requests:", "Clients:", "Shared memory:", "Placement:", "HTTP and metrics:", "gRPC:", "Log:", "Traces:", "Other:",
    ]  # fmt: skip


def test_every_command_has_a_help() -> None:
    for name in ("serve", "infer", "ps"):
        assert CliRunner().invoke(cli, [name, "--help"]).output.startswith(f"Usage: cli {name}")
