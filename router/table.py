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
    """Routes by public name. Replacing is one reference assignment."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self._snapshot: Snapshot = MappingProxyType({})
        self.replace(routes)

    @property
    def snapshot(self) -> Snapshot:
        """The routes in force now; never changes once read."""
        return self._snapshot

    def replace(self, routes: Iterable[Route]) -> None:
        """Put other routes in force, all at once."""
        self._snapshot = MappingProxyType({r.name: CompiledRoute.compile(r) for r in routes})
