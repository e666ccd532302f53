"""``stublet ps``: from what a server says of itself to rows for the eye."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..byte_size import size
from ..repository_index import READY
from .http_client import ClientError, HttpClient

INSTANCES = "/v2/stublet/instances"
_NOT_FOUND = 404
_NONE = "-"
PASSIVE = "PASSIVE"
"""The state of an instance that is ready, and never scheduled."""

RESTARTING = "RESTARTING"
"""The state of an instance that has died and will be there again, until it is."""

_STARTING = ("STARTING", "LOADING", "WARMING")
_COLUMNS = ("model", "version", "instance", "pid", "device", "state", "running", "queue", "memory", "shared memory")
_RESTARTS = "restarts"
_GPU_COLUMNS = ("gpu memory", "gpu exports", "gpu imports")
_INDEX_COLUMNS = ("model", "version", "state")


class Listing(NamedTuple):
    """What is shown: a line about the server, a table, and lines about what is wrong."""

    title: str
    columns: Sequence[str]
    rows: List[Tuple[str, ...]]
    notes: List[str]


def fetch(client: HttpClient) -> Tuple[Dict[str, Any], Listing]:
    """What a server serves, as it says it, and to be shown. One that is not stublet tells only its models.

    Raises:
        ClientError: it cannot be reached, or does not speak the protocol.
    """
    about = client.get("/v2").json()
    ready = _is_ready(client)
    try:
        report = client.get(INSTANCES).json()
    except ClientError as error:
        if error.status != _NOT_FOUND:
            raise
        index = client.request("POST", "/v2/repository/index").json()
        return {"server": about, "index": index}, of_index(about, client.url, ready, index)
    return report, of_report(about, client.url, ready, report)


def _is_ready(client: HttpClient) -> bool:
    try:
        client.get("/v2/health/ready")
    except ClientError as error:
        if not error.status:
            raise
        return False
    return True


def of_report(about: Dict[str, Any], url: str, ready: bool, report: Dict[str, Any]) -> Listing:
    """The listing of a server that tells its instances."""
    rows: List[Tuple[str, ...]] = []
    notes: List[str] = []
    gpus = _GPU_COLUMNS if any(_uses_gpus(instance) for model in report["models"] for instance in model["instances"]) else ()
    for model in report["models"]:
        of_model = (str(model["pending"]), size(model["shared_memory_bytes"]))
        if model["reason"]:
            notes.append(_note(f"{model['name']} {model['version']}".strip(), model["reason"]))
        if not model["instances"]:
            front = (model["name"], model["version"] or _NONE, *[_NONE] * 3, model["state"], _NONE, of_model[0], _NONE, of_model[1])
            rows.append((*front, *[_NONE] * (len(gpus) + 1)))
        for number, instance in enumerate(model["instances"]):
            # What belongs to the model stands at its first instance.
            pending, shared = of_model if number == 0 else (_NONE, _NONE)
            if instance["reason"] and instance["reason"] != model["reason"]:
                notes.append(_note(instance["name"] + _restart(instance), instance["reason"]))
            state = model["state"] if instance["state"] == READY else instance["state"]
            if instance["restarts"] and state in _STARTING:
                state = RESTARTING
            if instance["passive"] and state == READY:
                state = PASSIVE
            device = f"{instance['device']}:{instance['cores']}" if instance["cores"] else instance["device"]
            rows.append(
                (
                    model["name"], model["version"], instance["name"], _text(instance["pid"]), device, state,
                    str(instance["executing"]), pending, size(instance["memory_bytes"]), shared, *(_on_gpus(instance) if gpus else ()),
                    str(instance["restarts"]),
                )
            )  # fmt: skip
    columns: Sequence[str] = (*_COLUMNS, *gpus)
    if any(instance["restarts"] for model in report["models"] for instance in model["instances"]):
        columns = (*columns, _RESTARTS)
    server = report["server"]
    count = len({model["name"] for model in report["models"] if model["state"] == READY})
    facts = (
        f"{about['name']} {about['version']}", url, "ready" if ready else "NOT READY", f"pid {server['pid']}", f"up {duration(server['seconds'])}",
        size(server["memory_bytes"]), _models_ready(count),
    )  # fmt: skip
    return Listing(" · ".join(facts), columns, [row[: len(columns)] for row in rows], notes)


def _restart(instance: Dict[str, Any]) -> str:
    """What is said of the next restart beside the name."""
    seconds = instance["restart_in_seconds"]
    if seconds is None:
        return ""
    return f" (started again in {seconds:.1f} s, restart {instance['restarts'] + 1})"


def _uses_gpus(instance: Dict[str, Any]) -> bool:
    return bool(instance["gpu_memory_bytes"] or instance["gpu_exported_bytes"] or instance["gpu_imported_bytes"])


def _on_gpus(instance: Dict[str, Any]) -> Tuple[str, ...]:
    """What it has on GPUs: as NVML says, of its own for others, and of others."""
    return tuple(size(instance[key]) for key in ("gpu_memory_bytes", "gpu_exported_bytes", "gpu_imported_bytes"))


def of_index(about: Dict[str, Any], url: str, ready: bool, index: Sequence[Dict[str, str]]) -> Listing:
    """The listing of a server that tells only its models."""
    rows: List[Tuple[str, ...]] = [(row["name"], row.get("version") or _NONE, row.get("state") or _NONE) for row in index]
    notes = [_note(f"{row['name']} {row.get('version', '')}".strip(), row["reason"]) for row in index if row.get("reason")]
    count = len({row["name"] for row in index if row.get("state") == READY})
    facts = (f"{about.get('name', '')} {about.get('version', '')}", url, "ready" if ready else "NOT READY", _models_ready(count))
    return Listing(" · ".join(facts), _INDEX_COLUMNS, rows, notes)


def duration(seconds: float) -> str:
    """``3d 4h``, ``4h 5m``, ``5m 6s``, ``6s``: the two largest units."""
    left = int(seconds)
    parts: List[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount or parts or unit == "s":
            parts.append(f"{amount}{unit}")
    return " ".join(parts[:2])


def as_json(document: Dict[str, Any]) -> str:
    """The server's own words, for programs."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def _models_ready(count: int) -> str:
    return f"{count} model{'' if count == 1 else 's'} ready"


def _note(who: str, why: str) -> str:
    return f"{who}: {why.strip().splitlines()[0]}"


def _text(value: Optional[int]) -> str:
    return _NONE if value is None else str(value)
