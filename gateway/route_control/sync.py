"""Keeps the routes in force in step with the store: hints, polls, reports.

One task looks at the store whenever a hint comes and at least every `poll_s`, give or take a fifth.
What it finds newer it reads, checks, has loaded, and puts in force; what it cannot put in force it
keeps apart as `pending`, with the reason, and serves on what it has. A store that is away changes
nothing. Loading never holds up other routes: it runs beside, one task per route.

Read first: in_force.py (what may replace what), targets.py (what must be loaded).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from gateway.ending import end
from gateway.errors import StoreUnavailable
from gateway.route_control.asked import read_held
from gateway.route_control.events import EventHub
from gateway.route_control.in_force import PROVISIONAL, Held, InForce, Verdict, judge
from gateway.route_control.last_known import LastKnownGood
from gateway.route_control.revision import Position
from gateway.route_control.store import (
    ChangeHints,
    CorruptRevision,
    Head,
    ReplicaBoard,
    RouteStore,
    StoreDown,
)
from gateway.route_control.targets import Targets, needed
from router import revisions
from router.faults import RouteError

logger = logging.getLogger(__name__)

_chance: Final = Random()  # its own: nobody else's sequence is disturbed

JITTER: Final = 0.2
"""Part of the poll interval by which it varies, so that replicas do not ask all at once."""
RETRY_LOAD_S: Final = 30.0
"""Pause before a version that did not load is tried again for a pending revision."""
REPORT_S: Final = 1.0
"""How often a replica says that it lives."""


@dataclass(slots=True)
class Pending:
    """A revision that is not in force yet."""

    held: Held
    why: str
    retry_at_s: float = 0.0
    """Monotonic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStatistics:
    """What the replica knows of itself and the store."""

    is_store_up: bool
    age_s: float
    """Since the store last answered; -1: it never did."""
    pending: Mapping[str, str]
    """Why, by route."""
    conflicts: Mapping[str, str]
    """older, split or corrupt, by route."""
    conflicts_total: int


@dataclass(slots=True, kw_only=True)
class Stores:
    """Where routes are kept, and who else serves them."""

    routes: RouteStore
    board: ReplicaBoard
    hints: ChangeHints
    last_known: LastKnownGood | None
    """None where the store itself is a local file."""
    close: Callable[[], Awaitable[None]] = field(default=lambda: asyncio.sleep(0))


class Sync:
    """One replica's view of the store.

    Args:
        stores: the store and what belongs to it.
        in_force: what is served.
        targets: checks and loads versions.
        events: told of everything that happens.
        replica: name of this one.
        poll_s: seconds between two looks.
    """

    def __init__(
        self,
        *,
        stores: Stores,
        in_force: InForce,
        targets: Targets,
        events: EventHub,
        replica: str,
        poll_s: float,
    ) -> None:
        self.stores = stores
        self.replica = replica
        self._in_force = in_force
        self._targets = targets
        self._events = events
        self._poll_s = poll_s
        self._pending: dict[str, Pending] = {}
        self._conflicts: dict[str, str] = {}
        self._conflicts_total = 0
        self._loading: set[str] = set()
        """Routes whose versions are being loaded: one task each."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_holding = True
        self._is_store_up = True
        self._answered_s: float | None = None
        self._reported: tuple[float, bytes] = (0.0, b"")
        self._saved: dict[str, Position] = {}
        self._task: asyncio.Task[None] | None = None
        self.missing: list[str] = []
        """Routes that are in force here, and that the store did not have when it last answered."""
        self.on_put: Callable[[revisions.Revision], None] = lambda _: None
        """Called when a revision has come into force."""
        self.on_round: list[Callable[[], Awaitable[None]]] = []
        """Called after every look at a store that answered."""

    def statistics(self) -> SyncStatistics:
        """Return a frozen copy of what is known."""
        age_s = -1.0 if self._answered_s is None else time.monotonic() - self._answered_s
        return SyncStatistics(
            is_store_up=self._is_store_up,
            age_s=age_s,
            pending={name: pending.why for name, pending in self._pending.items()},
            conflicts=dict(self._conflicts),
            conflicts_total=self._conflicts_total,
        )

    def newest(self, name: str) -> Held | None:
        """Return the newest revision of a route that this replica knows, in force or pending."""
        pending = self._pending.get(name)
        return pending.held if pending else self._in_force.held.get(name)

    def start(self) -> None:
        """Begin to look, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="route sync")

    async def close(self) -> None:
        """Stop looking and take this replica off the board. Idempotent."""
        await end(*self._tasks, *((self._task,) if self._task else ()))
        self._task = None
        try:
            await self.stores.board.withdraw(self.replica)
        except StoreDown:
            logger.debug("could not withdraw", extra={"replica": self.replica})

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # whatever it is, the next look must still come
                logger.exception("looking at the route store failed")
            jitter = 1 + JITTER * (2 * _chance.random() - 1)
            await self.stores.hints.next(self._poll_s * jitter)

    def release(self) -> None:
        """Put in force what was found while the models were loading, whatever has come up."""
        self._is_holding = False
        for pending in list(self._pending.values()):
            self.force(pending.held)

    @property
    def revisions(self) -> list[revisions.Revision]:
        """The revisions that are in force or on their way to it."""
        held = [*self._in_force.held.values(), *(p.held for p in self._pending.values())]
        return [h.revision for h in held]

    async def look(self) -> None:
        """Look at the store once: bring what is newer into force, report, keep a copy."""
        now_ms = time.time_ns() // 1_000_000
        self._in_force.refresh(now_ms)
        try:
            await self._compare()
            self._note_store(is_up=True)
            for name in list(self._pending):
                self._advance(name, now_ms)
            await self.report()
            for then in self.on_round:
                await _on_its_own(then)
        except (StoreDown, StoreUnavailable) as exc:
            self._note_store(is_up=False, why=str(exc))
            for name in list(self._pending):
                self._advance(name, now_ms)
        await self._keep_copy()

    async def _compare(self) -> None:
        """Ask where every route stands, and consider each; note those that the store has not."""
        # What is written here while the store answers is newer than its answer: compared is what
        # was known when it was asked.
        known = {name: self.newest(name) for name in {*self._in_force.held, *self._pending}}
        heads = await self.stores.routes.heads()
        for name, head in heads.items():
            await self._consider(name, head, known.get(name))
        self.missing = [name for name in self._in_force.held if name in known.keys() - heads.keys()]
        for name in self._conflicts.keys() - heads.keys():
            del self._conflicts[name]

    async def _consider(self, name: str, head: Head, known: Held | None) -> None:
        """Fetch a revision if the store has a newer one than this replica."""
        position = head.position
        verdict = judge(known, position, head.digest)
        if verdict is Verdict.CURRENT:
            self._conflicts.pop(name, None)
            return
        if verdict is not Verdict.NEWER:
            if position == (0, 0):
                self._alarm(name, "corrupt", "the stored route has no readable position")
            else:
                self._alarm(name, verdict.value, f"the store has g{position[0]}-{position[1]}")
            return
        if judge(self.newest(name), position, head.digest) is not Verdict.NEWER:
            return  # it was written here meanwhile
        try:
            stored = await self.stores.routes.read(name)
            if stored is None:
                return
            held = read_held(stored)
        except (CorruptRevision, RouteError) as exc:
            self._alarm(name, "corrupt", exc.why if isinstance(exc, CorruptRevision) else str(exc))
            return
        self._conflicts.pop(name, None)
        self.accept(held)

    def accept(self, held: Held) -> None:
        """Put a revision in force as soon as what it names is loaded; now, if it is."""
        name = held.revision.route.name
        newest = self.newest(name)
        if judge(newest, held.position, held.digest) is Verdict.NEWER:
            self._pending[name] = Pending(held, why="")
            self._advance(name, time.time_ns() // 1_000_000)

    def force(self, held: Held) -> None:
        """Put a revision in force now, whatever is loaded: there is nothing else to serve."""
        self._pending.pop(held.revision.route.name, None)
        self._put(held, time.time_ns() // 1_000_000)

    def _advance(self, name: str, now_ms: int) -> None:
        """Put a pending revision in force if it can be; else have its versions loaded."""
        if self._is_holding:
            return
        pending = self._pending[name]
        revision = pending.held.revision
        missing = [] if revision.is_deleted else self._targets.missing(revision.route)
        has_stand_in = revision.route.fallback is not None or name not in self._in_force.held
        is_tried = bool(pending.retry_at_s)
        if (
            not missing
            or (is_tried and has_stand_in)
            or _asks_nothing_new(self._in_force, revision)
        ):
            del self._pending[name]
            self._put(pending.held, now_ms)
            return
        if name in self._loading or time.monotonic() < pending.retry_at_s:
            return
        names = ", ".join("/".join(target) for target in missing)
        self._note_pending(name, pending, f"loading {names}")
        task = asyncio.get_running_loop().create_task(self._load(name, pending))
        self._loading.add(name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, name: str, pending: Pending) -> None:
        """Have the versions loaded; then, or if they do not come up, go on."""
        try:
            route = pending.held.revision.route
            await self._targets.load(route, only=needed(route))
        except Exception as exc:  # whatever it is, the revision waits and is tried again
            if not isinstance(exc, RouteError):
                logger.exception("versions of a route could not be loaded", extra={"route": name})
            pending.retry_at_s = time.monotonic() + RETRY_LOAD_S
            self._note_pending(name, pending, str(exc))
        finally:
            self._loading.discard(name)
        if name in self._pending:  # this revision, or one that came while it was loading
            self._advance(name, time.time_ns() // 1_000_000)
        await self.report_quietly()

    def _put(self, held: Held, now_ms: int) -> None:
        self._in_force.put(held, now_ms)
        route = held.revision.route
        data = {"revision": route.revision, "generation": held.revision.generation}
        origin = held.revision.origin
        self._events.publish(
            "route", route.name, **data, verb=origin.verb, actor=origin.actor, reason=origin.reason
        )
        extra = {"route": route.name, **data, "verb": origin.verb, "actor": origin.actor}
        logger.info("route in force", extra=extra)
        self.on_put(held.revision)

    def _note_pending(self, name: str, pending: Pending, why: str) -> None:
        if pending.why != why:
            pending.why = why
            number = pending.held.revision.route.revision
            logger.warning("route pending", extra={"route": name, "revision": number, "why": why})
            self._events.publish("pending", name, revision=number, why=why)

    def _alarm(self, name: str, kind: str, why: str) -> None:
        if self._conflicts.get(name) != kind:
            self._conflicts[name] = kind
            self._conflicts_total += 1
            logger.error("route_conflict", extra={"route": name, "kind": kind, "why": why})
            self._events.publish("conflict", name, conflict=kind, why=why)

    def _note_store(self, *, is_up: bool, why: str = "") -> None:
        if is_up:
            self._answered_s = time.monotonic()
        if is_up != self._is_store_up:
            self._is_store_up = is_up
            level = logging.INFO if is_up else logging.ERROR
            logger.log(level, "route store", extra={"is_up": is_up, "why": why})
            self._events.publish("store", is_up=is_up, why=why)

    async def report(self) -> None:
        """Say what this replica serves, if that has changed or the last report is old."""
        waiting = {name: pending.why for name, pending in self._pending.items()}
        routes = {
            name: [*held.position, held.digest, waiting.get(name, "")]
            for name, held in self._in_force.held.items()
        }
        report = json.dumps({"routes": routes}, separators=(",", ":")).encode()
        at_s, before = self._reported
        if report != before or time.monotonic() - at_s >= REPORT_S * 0.9:
            await self.stores.board.report(self.replica, report)
            self._reported = (time.monotonic(), report)

    async def report_quietly(self) -> None:
        """Report, if the store is there."""
        try:
            await self.report()
        except StoreDown as exc:
            self._note_store(is_up=False, why=str(exc))

    async def _keep_copy(self) -> None:
        """Write the routes in force down, so that a restart without the store finds them."""
        held = {n: h for n, h in self._in_force.held.items() if h.position[0] > PROVISIONAL}
        positions = {name: h.position for name, h in held.items()}
        if self.stores.last_known is None or positions == self._saved:
            return
        try:
            stored = [h.stored() for h in held.values()]
            await asyncio.to_thread(self.stores.last_known.save, stored)
            self._saved = positions
        except OSError as exc:
            logger.warning("routes not written down", extra={"why": str(exc)})


async def _on_its_own(then: Callable[[], Awaitable[None]]) -> None:
    """Run what follows a look: what fails, unless the store is away, holds up nothing else."""
    try:
        await then()
    except (StoreDown, StoreUnavailable):
        raise
    except Exception:
        logger.exception("what follows a look at the route store failed")


def _asks_nothing_new(in_force: InForce, revision: revisions.Revision) -> bool:
    """Whether a revision sends traffic only where the one in force does, as an abort does: what
    it needs serves already, or is as absent as before."""
    held = in_force.held.get(revision.route.name)
    if held is None or held.revision.is_deleted:
        return False
    return needed(revision.route) <= needed(held.revision.route)
