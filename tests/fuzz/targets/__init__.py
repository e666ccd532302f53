"""The targets, by name. A module of this package has those of one boundary."""

from __future__ import annotations

from typing import Dict

from ..target import Target
from . import client, config, grpc, http, rings, server, stub

TARGETS: Dict[str, Target] = {
    target.name: target for boundary in (http, grpc, config, rings, stub, client, server) for target in boundary.TARGETS
}
