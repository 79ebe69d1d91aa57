"""Aborts that were made while the store was out of reach, until the store knows of them.

Each one is served here at once, in the place of the revision in force, and written to a file that
outlives a restart. It is over when a revision that knows of it is in force: not before, so that at
no moment the aborted variant gets traffic again. Knows no store; how the store is told is in
control.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.route_control import durable
from gateway.route_control.in_force import Held, InForce
from gateway.route_control.revision import digest_of
from router import changes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Emergency:
    """One abort that only this replica has carried out."""

    route: str
    generation: int
    revision: int
    """What was in force then."""
    actor: str
    reason: str
    since_ms: int
    """Unix time."""

    def applies_to(self, current: Held) -> bool:
        """Whether what the store has is no later decision of somebody else's."""
        revision = current.revision
        if revision.is_deleted:
            return False
        is_same = current.position == (self.generation, self.revision)
        return is_same or revision.origin.created_ms < self.since_ms

    def is_over(self, held: Held | None) -> bool:
        """Whether what is in force came after the abort, or is like it anyway."""
        if held is None or held.position > (self.generation, self.revision):
            return True
        route = held.revision.route
        return held.revision.is_deleted or changes.aborted(route) == route


class EmergencyJournal:
    """The emergencies that are not reconciled yet. Blocking: call it from a thread.

    Args:
        folder: of the route control's state; gateways of one host may share it.
        replica: the name of this one.
    """

    def __init__(self, folder: Path, replica: str) -> None:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in replica)
        if safe != replica:  # another name may look the same then
            safe = f"{safe}-{digest_of(replica.encode())[:8]}"
        self._path = folder / f"emergency-{safe}.json"
        self._writing = threading.Lock()

    def load(self) -> list[Emergency]:
        """Return what was kept; nothing if the file is missing or, which is logged, not ours."""
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            return [Emergency(**row) for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as exc:
            extra = {"path": str(self._path), "why": str(exc)}
            logger.error("emergency aborts cannot be read", extra=extra)
            return []

    def save(self, emergencies: Iterable[Emergency]) -> None:
        """Keep these and no others, durably. Raises OSError."""
        rows = [asdict(emergency) for emergency in emergencies]
        with self._writing:
            durable.make_folder(self._path.parent)
            durable.replace(self._path, json.dumps(rows).encode())


class Emergencies:
    """The aborts of this replica alone: served, and written down. Use from the event loop only."""

    def __init__(self, *, in_force: InForce, journal: EmergencyJournal) -> None:
        self._in_force = in_force
        self._journal = journal
        self._by_route: dict[str, Emergency] = {}
        self._saving = asyncio.Lock()

    @property
    def by_route(self) -> Mapping[str, Emergency]:
        """Those that are not over."""
        return self._by_route

    async def load(self) -> None:
        """Carry out again what the journal says that the store does not know yet."""
        for emergency in await asyncio.to_thread(self._journal.load):
            self._by_route[emergency.route] = emergency
            self._serve(emergency.route)

    async def declare(self, emergency: Emergency) -> None:
        """Send all traffic of a route to its stable variant, here and now; then write it down."""
        self._by_route[emergency.route] = emergency
        self._serve(emergency.route)
        extra = {"route": emergency.route, "actor": emergency.actor, "reason": emergency.reason}
        logger.error("emergency abort", extra=extra)
        await self._save()

    async def settle(self, name: str) -> None:
        """End a route's emergency if what is in force no longer needs it."""
        emergency = self._by_route.get(name)
        if emergency is not None and emergency.is_over(self._in_force.held.get(name)):
            del self._by_route[name]
            self._in_force.override(name, None, _now_ms())
            await self._save()

    def _serve(self, name: str) -> None:
        held = self._in_force.held.get(name)
        if held is not None and not held.revision.is_deleted:
            self._in_force.override(name, changes.aborted(held.revision.route), _now_ms())

    async def _save(self) -> None:
        async with self._saving:  # one after the other, so that the newest is written last
            try:
                await asyncio.to_thread(self._journal.save, list(self._by_route.values()))
            except OSError as exc:
                logger.warning("emergencies not written down", extra={"why": str(exc)})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
