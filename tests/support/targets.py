"""Targets of requests, as the directory makes them, for tests of what is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from gateway.directory import Target
from gateway.route_statistics import RouteStatistics
from router.policy import CompiledRoute
from tests.support.desk import open_desk, route_of
from tests.support.repositories import Shelf

FIELDS = [name for name in Target.__slots__ if name not in ("is_watched", "serving")]
"""What a target is made of; the others follow from these."""


def split_target(root: Path) -> Target:
    """Return a target that the slot of a key chose: the stable variant of the route `split`.

    Its version, 1 of the model `echo`, was served for a moment from a folder below `root`.
    """
    route = route_of("split", ("stable", "echo", "1", 90), ("canary", "echo", "2", 10))

    async def served() -> Target:
        shelf = Shelf(root)
        shelf.add_fake("echo", "1")
        async with open_desk(shelf) as desk:
            return Target(
                served=desk.repository.get("echo", "1"),
                route=route.name,
                variant="stable",
                revision=1,
                reason="slot",
                propensity=0.9,
                assigned="stable",
                split=CompiledRoute.compile(route),
                assigned_by="slot",
            )

    return asyncio.run(served())


def like(target: Target, **changes: Any) -> Target:  # Any: a target's fields
    """Return a target that differs from another in some fields."""
    return Target(**{name: getattr(target, name) for name in FIELDS} | changes)


def count_answer(
    book: RouteStatistics, target: Target, total_ns: int = 1, *, is_error: bool = False
) -> None:
    """Count one answer in a book of routes, as the accounts do."""
    if is_error:
        book.observe_failure(target, total_ns)
    else:
        book.observe(target, np.array([total_ns / 1e9]))
