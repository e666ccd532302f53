"""Paths lead to the endpoints that the table names, and to nothing else."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import pytest
from stublet.parent.http.exchange import Exchange
from stublet.parent.http.routes import MODEL, Operation, Route, Router, paths


async def nothing(_exchange: Exchange, *_: Any) -> None:
    return


def route(method: str, path: str) -> Route:
    return Route(method, path, "metadata", nothing, Operation("nothing"))


ROUTER = Router(
    [
        route("POST", MODEL + "/infer"),
        route("GET", "/v2/models/stats"),
        route("GET", MODEL + "/stats"),
        route("GET", MODEL),
        route("GET", "/v2/logging"),
        route("POST", "/v2/logging"),
        route("GET", "/v2/some.thing"),
    ]
)


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/v2/models/m/infer", (MODEL + "/infer", ("m", None))),
        ("/v2/models/m/versions/3/infer", (MODEL + "/infer", ("m", 3))),
        ("/v2/models/a b:c/versions/007", (MODEL, ("a b:c", 7))),
        ("/v2/models/stats", ("/v2/models/stats", ())),
        ("/v2/models/stats/stats", (MODEL + "/stats", ("stats", None))),
        ("/v2/models/stats/versions/1", (MODEL, ("stats", 1))),
        ("/v2/logging", ("/v2/logging", ())),
        ("/v2/some.thing", ("/v2/some.thing", ())),
        ("/v2/someXthing", None),
        ("/v2/models/m/versions/x", None),
        ("/v2/models/m/versions/" + "9" * 19, None),
        ("/v2/models/m/n", None),
        ("/v2/models/", None),
        ("/v2/logging/", None),
        ("v2/logging", None),
        ("", None),
    ],
)
def test_where_paths_lead(path: str, expected: Optional[Tuple[str, Tuple[Any, ...]]]) -> None:
    for _ in range(2):
        found = ROUTER.find(path)
        assert (found and (next(iter(found.routes.values())).path, found.arguments)) == expected


def test_methods_of_one_path() -> None:
    found = ROUTER.find("/v2/logging")
    assert found is not None
    assert list(found.routes) == ["GET", "POST"]


def test_any_number_of_paths_is_found() -> None:
    for number in range(3000):
        found = ROUTER.find(f"/v2/models/m{number}")
        assert found is not None
        assert found.arguments == (f"m{number}", None)
    assert len(ROUTER._found) <= 1024


def test_a_part_that_may_be_left_out() -> None:
    assert paths(MODEL + "/infer") == ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"]
    assert paths("/v2") == ["/v2"]
