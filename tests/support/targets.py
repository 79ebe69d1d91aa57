"""Targets of requests, as the directory makes them, for tests of what is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.directory import Target
from router.policy import CompiledRoute
from tests.support.desk import open_desk, route_of
from tests.support.repositories import Shelf


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
                key=b"u1",
                assigned_by="slot",
            )

    return asyncio.run(served())
