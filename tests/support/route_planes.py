"""Route planes for tests: everything beside the request path, on a repository of fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from engines.base import VersionPolicy
from engines.repository import Repository
from gateway.config import ControlConfig, RedisConfig
from gateway.route_plane import RoutePlane
from gateway.route_statistics import RouteStatistics
from router.routes import Route
from router.table import RouteTable
from tests.support.batching import HANG_S
from tests.support.replicas import MODEL
from tests.support.repositories import Shelf, open_repository
from tests.support.shadows import KeptRecords

POLL_MS: Final = 50


def shelf_of(folder: Path, *versions: str) -> Shelf:
    """Return a shelf with versions of the model, of which the policy selects the first."""
    shelf = Shelf(folder)
    for version in versions or ("1", "2", "3"):
        shelf.add_fake(MODEL, version)
    shelf.configure(MODEL, versions=VersionPolicy(specific=("1",)))
    return shelf


def plane_of(
    repository: Repository, state: Path, *, url: str = "", replica: str = "a"
) -> RoutePlane:
    """Return a plane that was not opened; `url`: of a Redis, else routes are kept in a folder."""
    return RoutePlane(
        control=ControlConfig(poll_ms=POLL_MS, timeout_s=1.0),
        redis=RedisConfig(url=url) if url else None,
        state=state,
        replica=replica,
        repository=repository,
        table=RouteTable(),
        books=RouteStatistics(),
        log=KeptRecords(),
        draw=lambda: 0.5,
    )


@asynccontextmanager
async def open_plane(
    shelf: Shelf, state: Path, routes: Sequence[Route] = (), *, url: str = "", replica: str = "a"
) -> AsyncIterator[RoutePlane]:
    """Open, load and start, in the order of the gateway; close everything at the end."""
    async with open_repository(shelf) as repository:
        plane = plane_of(repository, state, url=url, replica=replica)
        try:
            await plane.open(list(routes))
            await repository.start(plane.pins())
            await plane.start()
            yield plane
        finally:
            await plane.close_shadows()
            await asyncio.wait_for(plane.close(), HANG_S)
