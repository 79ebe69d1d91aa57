"""The routes in force: one immutable snapshot, replaced as a whole.

A request reads `snapshot` once at admission and keeps what it read, so it never mixes revisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from router.policy import CompiledRoute
from router.routes import Route

Snapshot = Mapping[str, CompiledRoute]


class RouteTable:
    """Routes by public name. Every change is one reference assignment."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self._snapshot: Snapshot = MappingProxyType(
            {route.name: CompiledRoute.compile(route) for route in routes}
        )

    @property
    def snapshot(self) -> Snapshot:
        """The routes in force now; never changes once read."""
        return self._snapshot

    def put(self, compiled: CompiledRoute) -> None:
        """Put a route in force, in the place of the one of its name."""
        self._snapshot = MappingProxyType({**self._snapshot, compiled.route.name: compiled})

    def remove(self, name: str) -> None:
        """Take a route out of force; nothing if there is none."""
        self._snapshot = MappingProxyType({n: c for n, c in self._snapshot.items() if n != name})
