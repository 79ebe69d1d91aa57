"""Everything about routes that lives beside the request path, put together and started in order.

Opens the store (Redis, or a folder without it), finds out which routes are in force, says which
versions they need, brings them into force when these are loaded, and from then on keeps routes,
shadows, loaded versions and shared units in step. Knows the concrete stores; knows no protocol.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from engines.repository import Repository
from gateway.config import ControlConfig, RedisConfig
from gateway.ending import end
from gateway.prediction_log.record_sink import RecordSink
from gateway.route_control.asked import read_held
from gateway.route_control.control import RouteControl
from gateway.route_control.emergency import EmergencyJournal
from gateway.route_control.events import EventHub
from gateway.route_control.file_store import FileRouteStore, InProcessBoard, NoHints
from gateway.route_control.in_force import InForce
from gateway.route_control.insight import RouteInsight
from gateway.route_control.last_known import LastKnownGood
from gateway.route_control.questions import RouteQuestions
from gateway.route_control.redis_hints import RedisChangeHints
from gateway.route_control.redis_store import RedisRouteStore
from gateway.route_control.redis_units import RedisUnitBoard
from gateway.route_control.revision import Change, StoredRevision
from gateway.route_control.store import Head, StoreDown
from gateway.route_control.sync import Stores, Sync
from gateway.route_control.targets import Pins, Targets
from gateway.route_control.units import UnitCounter
from gateway.route_statistics import RouteStatistics
from gateway.route_watch import RouteWatch
from gateway.shadowing import Shadows
from router.faults import RouteError
from router.revisions import Revision
from router.routes import Route
from router.table import RouteTable

logger = logging.getLogger(__name__)

UNAVAILABLE: Final = "a route names a version that is unavailable"
RELEASE_S: Final = 5.0
"""How often versions that no route needs any more are looked for."""


class NoStore:
    """Stands in for a folder that cannot be written: routes are served, and cannot be changed."""

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self) -> NoReturn:
        raise StoreDown(self._why)

    async def heads(self) -> dict[str, Head]:
        """Raise StoreDown."""
        self._refuse()

    async def read(self, name: str) -> StoredRevision | None:
        """Raise StoreDown."""
        self._refuse()

    async def write(self, change: Change) -> None:
        """Raise StoreDown."""
        self._refuse()

    async def revision(self, name: str, number: int) -> StoredRevision | None:
        """Raise StoreDown."""
        self._refuse()

    async def history(self, name: str, limit: int) -> list[StoredRevision]:
        """Raise StoreDown."""
        self._refuse()

    async def audit(self, name: str, *, limit: int) -> list[bytes]:
        """Raise StoreDown."""
        self._refuse()


class Units:
    """Distinct units of experiments: of all replicas where they share a Redis, else of this one."""

    def __init__(self, counter: UnitCounter, board: RedisUnitBoard | None) -> None:
        self.counter = counter
        self._board = board

    async def share(self) -> None:
        """Tell the other replicas what this one has seen; raises StoreDown."""
        if self._board is not None:
            await self._board.share(self.counter)

    async def counts(self, route: str, epoch: int, variants: Sequence[str]) -> dict[str, int]:
        """Return the units by variant; those of this replica alone while Redis is away."""
        if self._board is not None:
            try:
                await self._board.share(self.counter)
                return await self._board.counts(route, epoch, variants)
            except StoreDown:
                logger.warning("units of this replica only", extra={"route": route})
        return self.counter.counts(route, epoch)

    async def close(self) -> None:
        """Let the connection go."""
        if self._board is not None:
            await self._board.close()


async def open_stores(control: ControlConfig, redis: RedisConfig | None, state: Path) -> Stores:
    """Return the stores that the configuration means.

    Raises:
        StoreLocked: another gateway keeps its routes in this folder.
    """
    if redis is not None:
        store = RedisRouteStore(redis.url, timeout_s=control.timeout_s)
        hints = (
            RedisChangeHints(redis.url, timeout_s=control.timeout_s)
            if control.pubsub
            else NoHints()
        )

        async def close() -> None:
            if isinstance(hints, RedisChangeHints):
                await hints.close()
            await store.close()

        return Stores(
            routes=store,
            board=store,
            hints=hints,
            last_known=LastKnownGood(state / "last-known-good"),
            close=close,
        )
    board, no_hints = InProcessBoard(), NoHints()
    try:
        files = await FileRouteStore.open(state / "routes")
    except StoreDown as exc:
        logger.warning("routes cannot be changed", extra={"reason": str(exc)})
        return Stores(routes=NoStore(str(exc)), board=board, hints=no_hints, last_known=None)
    return Stores(routes=files, board=board, hints=no_hints, last_known=None, close=files.close)


class RoutePlane:
    """Routes beside the request path. Made at once, opened and started in order.

    Args:
        control: settings.
        redis: absent: routes are kept in a folder.
        state: that folder, and the one of the last known good routes.
        replica: name of this process.
        repository: of the models.
        table: what requests read.
        books: per variant and revision.
        log: takes the records of shadows.
        draw: returns a number in [0, 1).
    """

    def __init__(  # noqa: PLR0913 - the collaborators that app.py hands down
        self,
        *,
        control: ControlConfig,
        redis: RedisConfig | None,
        state: Path,
        replica: str,
        repository: Repository,
        table: RouteTable,
        books: RouteStatistics,
        log: RecordSink,
        draw: Callable[[], float],
    ) -> None:
        self._settings = control
        self._redis = redis
        self._state = state
        self._replica = replica
        self._repository = repository
        self._table = table
        self._books = books
        self._loads: set[asyncio.Task[None]] = set()
        self._released_s = 0.0
        self._is_started = False
        self.in_force = InForce(table)
        self.targets = Targets(repository)
        self.events = EventHub()
        self.shadows = Shadows(load_copy=repository.load_copy, log=log)
        board = RedisUnitBoard(redis.url, timeout_s=control.timeout_s) if redis else None
        self.units = Units(UnitCounter(), board)
        self.watch = RouteWatch(
            shadows=self.shadows,
            units=self.units.counter,
            draw=draw,
            subject_of=log.subject_of,
        )
        self.sync: Sync | None = None

    async def open(self, routes: list[Route]) -> None:
        """Find out which routes are in force: what was written down, or the store's, or these.

        Raises:
            StoreLocked.
        """
        stores = await open_stores(self._settings, self._redis, self._state)
        self.sync = sync = Sync(
            stores=stores,
            in_force=self.in_force,
            targets=self.targets,
            events=self.events,
            replica=self._replica,
            poll_s=self._settings.poll_ms / 1e3,
        )
        self.questions = RouteQuestions(sync=sync, in_force=self.in_force)
        self.control = RouteControl(
            sync=sync,
            questions=self.questions,
            targets=self.targets,
            journal=EmergencyJournal(self._state, self._replica),
        )
        self.insight = RouteInsight(
            table=self._table,
            in_force=self.in_force,
            targets=self.targets,
            routes=self._books,
            shadows=self.shadows,
            units=self.units,
        )
        sync.on_put = self._came_into_force
        # First what this replica served last: a store that has gone back meanwhile, or has lost a
        # route, is then seen for what it is, and its newer revisions win as they always do.
        if stores.last_known is not None:
            await self._read_last_known(sync, stores.last_known)
        await sync.look()
        await self.control.seed(routes)

    async def _read_last_known(self, sync: Sync, last_known: LastKnownGood) -> None:
        for stored in await asyncio.to_thread(last_known.load):
            try:
                sync.accept(read_held(stored))
            except RouteError as exc:
                logger.error("kept route is invalid", extra={"route": stored.name, "why": str(exc)})

    def pins(self) -> Pins:
        """Return the versions that routes need, by model."""
        revisions = self.sync.revisions if self.sync else []
        return self.targets.pins(revisions, time.time_ns() // 1_000_000)

    async def start(self) -> None:
        """Bring the routes into force, now that the models are loaded, and stay in step."""
        assert self.sync is not None  # opened before
        self.sync.release()
        self._is_started = True
        for revision in self.in_force.revisions.values():
            self._say_what_is_missing(revision)
        await self.control.load_emergencies()
        self.sync.on_round += [self.units.share, self._let_versions_go]
        self.sync.start()

    def _say_what_is_missing(self, revision: Revision) -> None:
        targets = {(v.model, v.version) for v in revision.route.variants}
        for model, version in sorted(() if revision.is_deleted else targets):
            if why := self.targets.why_not_ready(model, version):
                extra = {"route": revision.route.name, "model": model, "version": version}
                logger.error(UNAVAILABLE, extra=extra | {"reason": why})

    def _came_into_force(self, revision: Revision) -> None:
        """Follow a route that has changed: its shadows, its units, versions without traffic."""
        revisions = [r for r in self.in_force.revisions.values() if not r.is_deleted]
        self.shadows.apply({(r.route.name, s.name): s for r in revisions for s in r.route.shadows})
        self.units.counter.retain([r.route.name for r in revisions])
        if self._is_started and not revision.is_deleted:  # at the start all was tried
            task = asyncio.get_running_loop().create_task(self._load_rest(revision.route))
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)

    async def _load_rest(self, route: Route) -> None:
        """Load the versions that have no traffic yet, so that giving them some needs no wait."""
        try:
            await self.targets.load(route)
        except RouteError as exc:
            logger.error(UNAVAILABLE, extra={"route": route.name, "reason": str(exc)})

    async def _let_versions_go(self) -> None:
        """Unload what was loaded for routes only, and is needed by none any more."""
        if time.monotonic() - self._released_s < RELEASE_S:
            return
        self._released_s = time.monotonic()
        for model, version in await self._repository.release(self.pins()):
            extra = {"model": model, "version": version}
            logger.info("version unloaded: no route needs it any more", extra=extra)

    async def close_shadows(self) -> None:
        """Drop everything that shadows have: they never delay a drain."""
        await self.shadows.close()

    async def close(self) -> None:
        """Leave the board and the store. Idempotent."""
        self.events.close()
        await end(*self._loads)
        if self.sync is not None:
            await self.sync.close()
            await self.sync.stores.close()
        await self.units.close()
