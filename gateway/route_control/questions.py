"""What people ask about routes: the newest revision, the past, who has it, why a key goes where.

Reads only; knows no HTTP. Answers are values, or JSON where the store keeps JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from gateway.errors import StoreUnavailable, UnknownName
from gateway.route_control.asked import asked, trusted
from gateway.route_control.in_force import Held, InForce
from gateway.route_control.sync import Sync
from gateway.route_control.write import unknown
from router.revisions import Revision

logger = logging.getLogger(__name__)

CONVERGENCE_POLL_S: Final = 0.02
LIVE_S: Final = 5.0
"""A replica that has not reported for this long, five times in a row, is not waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What one replica last said about one route."""

    replica: str
    generation: int
    revision: int
    digest: str
    pending: str
    """Why the newest revision is not in force there; empty: nothing waits."""
    age_s: float
    """Of its last word."""
    is_live: bool
    """Whether that is recent: one that is not is shown, and nobody waits for it."""
    is_converged: bool


class RouteQuestions:
    """Answers from what this replica knows, and from the store where that is not enough."""

    def __init__(self, *, sync: Sync, in_force: InForce) -> None:
        self._sync = sync
        self.in_force = in_force
        self._store = sync.stores.routes

    def names(self) -> list[str]:
        """Return the routes that are in force here."""
        held = self.in_force.held
        return sorted(name for name, h in held.items() if not h.revision.is_deleted)

    def newest(self, name: str) -> Held:
        """Return the newest revision of a route that is known here; raises UnknownName."""
        held = self._sync.newest(name)
        if held is None or held.revision.is_deleted:
            raise unknown(name)
        return held

    async def current(self, name: str) -> Held | None:
        """Return where the store has a route, deleted or not; raises as `asked`."""
        stored = await asked(self._store.read(name))
        return trusted(stored) if stored else None

    async def revision(self, name: str, number: int) -> Revision:
        """Return a revision of a route's history; raises UnknownName, StoreUnavailable."""
        stored = await asked(self._store.revision(name, number))
        if stored is None:
            raise UnknownName(f"route {name!r} has no revision {number} in its history")
        return trusted(stored).revision

    async def history(self, name: str, limit: int) -> list[Held]:
        """Return the newest revisions, the newest first; raises UnknownName, StoreUnavailable."""
        found = await asked(self._store.history(name, limit))
        if not found:
            raise unknown(name)
        return [trusted(stored) for stored in found]

    async def audit(self, names: list[str], limit: int) -> list[dict[str, Any]]:  # Any: JSON
        """Return the newest audit entries of some routes (none: of all), oldest first.

        Those of one route stay in the order in which the store has them, whatever their clocks say:
        each is vouched for by the next one.
        """
        wanted = names or sorted(await asked(self._store.heads()))
        found: list[tuple[datetime, dict[str, Any]]] = []  # Any: as above
        for name in wanted:
            newest = datetime.min.replace(tzinfo=UTC)
            for entry in _readable(name, await asked(self._store.audit(name, limit=limit))):
                newest = max(newest, datetime.fromisoformat(entry["ts"]))
                found.append((newest, entry))
        found.sort(key=lambda dated: dated[0])
        return [entry for _, entry in found][-limit:]

    async def convergence(self, name: str, at: Held | None = None) -> list[ReplicaState]:
        """Return what every live replica serves of a route.

        Args:
            name: of the route.
            at: revision that counts as converged, or later ones; None: the newest known here.
        """
        wanted = at or self.newest(name)
        reports = await asked(self._sync.stores.board.replicas())
        return [
            _state(replica, name, age_s, report, wanted)
            for replica, (age_s, report) in sorted(reports.items())
        ]

    async def converged(self, name: str, at: Held, within_s: float) -> list[str]:
        """Wait until every live replica has a revision; return those that have not, in the end.

        A store that goes away meanwhile takes nothing back: who had not reported then is returned.
        """
        limit_s = time.monotonic() + within_s
        laggards = [self._sync.replica]  # until the board has been seen, nobody has
        while True:
            with contextlib.suppress(StoreUnavailable):
                states = await self.convergence(name, at)
                laggards = [s.replica for s in states if s.is_live and not s.is_converged]
            if not laggards or time.monotonic() >= limit_s:
                return laggards
            await asyncio.sleep(CONVERGENCE_POLL_S)


def _readable(name: str, entries: list[bytes]) -> Iterator[dict[str, Any]]:  # Any: JSON
    """Yield the audit entries that can be read; what somebody else put between them is logged."""
    for raw in entries:
        try:
            entry = json.loads(raw)
            datetime.fromisoformat(entry["ts"])
        except (ValueError, TypeError, KeyError):
            logger.warning("unreadable audit entry left out", extra={"route": name})
            continue
        yield entry


def _reported(report: bytes, name: str) -> tuple[int, int, str, str]:
    """Return generation, revision, digest and what waits; of a report that another version of
    Sluice wrote in its own form, that nothing is in force there."""
    nothing = (0, 0, "", "")
    try:
        generation, revision, digest, pending = json.loads(report)["routes"].get(name, nothing)
        return int(generation), int(revision), str(digest), str(pending)
    except (ValueError, TypeError, KeyError, AttributeError):
        return nothing


def _state(replica: str, name: str, age_s: float, report: bytes, at: Held) -> ReplicaState:
    """Return what a report says of a route. The same number with another content is a split."""
    generation, revision, digest, pending = _reported(report, name)
    position = (generation, revision)
    return ReplicaState(
        replica=replica,
        generation=generation,
        revision=revision,
        digest=digest,
        pending=pending,
        age_s=age_s,
        is_live=age_s <= LIVE_S,
        is_converged=position > at.position or (position == at.position and digest == at.digest),
    )
