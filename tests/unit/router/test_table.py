"""The routes in force: replaced as a whole, never changed under a reader."""

from __future__ import annotations

from typing import Any, cast

import pytest

from router.routes import Route, RouteError, Variant
from router.slots import SLOTS
from router.table import RouteTable


def route(name: str, revision: int = 1, variants: int = 1) -> Route:
    sizes = [SLOTS // variants] * variants
    return Route(
        name=name,
        revision=revision,
        salt=name,
        key=(),
        variants=tuple(
            Variant(name=f"v{n}", model="m", version="1", slots=size)
            for n, size in enumerate(sizes)
        ),
    )


def test_a_new_table_has_no_routes() -> None:
    assert dict(RouteTable().snapshot) == {}


def test_routes_are_found_by_their_public_name_ready_for_decisions() -> None:
    table = RouteTable([route("a"), route("b")])
    assert sorted(table.snapshot) == ["a", "b"]
    assert table.snapshot["a"].decide(b"key", lambda: 0.0).variant.name == "v0"


def test_replacing_takes_effect_as_a_whole_and_readers_keep_what_they_read() -> None:
    table = RouteTable([route("a", 1), route("b", 1)])
    before = table.snapshot
    table.replace([route("a", 2), route("c", 1)])
    assert sorted(table.snapshot) == ["a", "c"]
    assert table.snapshot["a"].route.revision == 2
    assert sorted(before) == ["a", "b"]
    assert before["a"].route.revision == 1


def test_a_replacement_that_fails_leaves_everything_in_force() -> None:
    table = RouteTable([route("a")])
    before = table.snapshot
    with pytest.raises(RouteError):
        table.replace(route("b", variants=n) for n in (2, 3))
    assert table.snapshot is before


def test_a_snapshot_cannot_be_written_to() -> None:
    snapshot = RouteTable([route("a")]).snapshot
    with pytest.raises(TypeError):
        cast("dict[str, Any]", snapshot)["b"] = snapshot["a"]  # Any: nothing fits, on purpose
