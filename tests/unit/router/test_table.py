"""The routes in force: replaced one by one, never changed under a reader."""

from __future__ import annotations

from typing import Any, cast

import pytest

from router.policy import CompiledRoute
from router.routes import Route, Variant
from router.slots import SLOTS
from router.table import RouteTable


def route(name: str, revision: int = 1) -> Route:
    only = Variant(name="v0", model="m", version="1", slots=SLOTS)
    return Route(name=name, revision=revision, salt=name, key=(), variants=(only,))


def test_a_new_table_has_no_routes() -> None:
    assert dict(RouteTable().snapshot) == {}


def test_routes_are_found_by_their_public_name_ready_for_decisions() -> None:
    table = RouteTable([route("a"), route("b")])
    assert sorted(table.snapshot) == ["a", "b"]
    assert table.snapshot["a"].decide(b"key", lambda: 0.0).variant.name == "v0"


def test_a_route_takes_the_place_of_the_one_of_its_name_and_of_no_other() -> None:
    table = RouteTable([route("a"), route("b")])
    other = table.snapshot["b"]
    table.put(CompiledRoute.compile(route("a", 2)))
    assert table.snapshot["a"].route.revision == 2
    assert table.snapshot["b"] is other
    table.put(CompiledRoute.compile(route("c")))
    assert sorted(table.snapshot) == ["a", "b", "c"]


def test_readers_keep_what_they_read() -> None:
    table = RouteTable([route("a"), route("b")])
    before = table.snapshot
    table.put(CompiledRoute.compile(route("a", 2)))
    table.remove("b")
    assert sorted(before) == ["a", "b"]
    assert before["a"].route.revision == 1
    assert sorted(table.snapshot) == ["a"]


def test_what_is_removed_is_gone_and_may_come_back() -> None:
    table = RouteTable([route("a"), route("b")])
    table.remove("a")
    table.remove("a")
    table.remove("nobody")
    assert sorted(table.snapshot) == ["b"]
    table.put(CompiledRoute.compile(route("a", 3)))
    assert table.snapshot["a"].route.revision == 3


def test_a_snapshot_cannot_be_written_to() -> None:
    snapshot = RouteTable([route("a")]).snapshot
    with pytest.raises(TypeError):
        cast("dict[str, Any]", snapshot)["b"] = snapshot["a"]  # Any: nothing fits, on purpose
