"""Replicas of the route control for tests: real stores, a real repository of fakes, no sockets.

A `Scene` is one place with its models and its store; each of its replicas has a table, a sync and
verbs of its own. Nothing looks at the store unless a test says so, or starts the sync.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from engines.base import VersionPolicy
from engines.repository import Repository
from gateway.route_control.control import RouteControl
from gateway.route_control.emergency import EmergencyJournal
from gateway.route_control.events import EventHub
from gateway.route_control.file_store import FileRouteStore, InProcessBoard, NoHints
from gateway.route_control.in_force import Held, InForce
from gateway.route_control.last_known import LastKnownGood
from gateway.route_control.questions import RouteQuestions
from gateway.route_control.revision import Change, Position
from gateway.route_control.store import ReplicaBoard, RouteStore
from gateway.route_control.sync import Stores, Sync
from gateway.route_control.targets import Targets
from gateway.route_control.write import Condition, Intent, Written
from router import changes, document
from router.revisions import Origin, Revision
from router.routes import Route
from router.table import RouteTable
from tests.support.batching import HANG_S, until
from tests.support.repositories import Shelf, open_repository
from tests.support.route_stores import TroubledStore

MODEL: Final = "digits"
NAME: Final = "digits"
T0_MS: Final = 1_700_000_000_000
NEW: Final = Condition(must_not_exist=True)
Json = Any  # a JSON value


def body(canary: float = 10, *, version: str = "2", **fields: Json) -> dict[str, Json]:
    """Return the document of a route with a stable variant of version 1, and a canary."""
    variants = {
        "stable": {"model": MODEL, "version": "1", "weight": 100 - canary},
        "canary": {"model": MODEL, "version": version, "weight": canary},
    }
    return {"variants": variants, **fields}


def route(canary: float = 10, *, name: str = NAME, version: str = "2", **fields: Json) -> Route:
    """Return the route of `body`."""
    return document.read(body(canary, version=version, **fields), name=name)


def origin(verb: str = "create", *, created_ms: int = T0_MS, parent: int = 0) -> Origin:
    """Return where a revision comes from."""
    return Origin(verb=verb, actor="ann", reason="test", created_ms=created_ms, parent=parent)


def revisions(*routes: Route, generation: int = 1, created_ms: int = T0_MS) -> list[Revision]:
    """Return the revisions of a route that was made and then changed, one after the other."""
    made = [changes.first(routes[0], origin(created_ms=created_ms))]
    for following in routes[1:]:
        since = origin("replace", created_ms=created_ms, parent=made[-1].route.revision)
        made.append(changes.follow(made[-1], following, since, changes.ALWAYS))
    return [replace(revision, generation=generation) for revision in made]


def held(*routes: Route, generation: int = 1, created_ms: int = T0_MS) -> Held:
    """Return the last one of `revisions`, as a replica holds it."""
    return Held.of(revisions(*routes, generation=generation, created_ms=created_ms)[-1])


async def write(store: RouteStore, after: Held, *, at: Position | None = None) -> Held:
    """Write a revision into a store, as another replica would have; `at`: what it follows."""
    name, audit = after.revision.route.name, f"{after.position} {after.digest}".encode()
    change = Change.of(name, after.position, after.body, expected=at, audit=audit)
    await store.write(change)
    return after


async def write_row(store: RouteStore, *routes: Route, created_ms: int = T0_MS) -> Held:
    """Write the revisions of a route, one after the other; return the last one."""
    at: Position | None = None
    for revision in revisions(*routes, created_ms=created_ms):
        newest = await write(store, Held.of(revision), at=at)
        at = newest.position
    return newest


def intent(reason: str = "because", **fields: Any) -> Intent:  # Any: fields of Intent
    """Return who wants a change."""
    return Intent(
        **({"actor": "ann", "auth": "token", "source": "here", "reason": reason} | fields)
    )


class Replica:
    """One replica under test."""

    def __init__(
        self,
        name: str,
        stores: Stores,
        store: TroubledStore,
        repository: Repository,
        journal: Path,
    ) -> None:
        self.name = name
        self.store = store
        self.table = RouteTable()
        self.in_force = InForce(self.table)
        self.targets = Targets(repository)
        self.events = EventHub()
        self.sync = Sync(
            stores=stores,
            in_force=self.in_force,
            targets=self.targets,
            events=self.events,
            replica=name,
            poll_s=0.01,
        )
        self.questions = RouteQuestions(sync=self.sync, in_force=self.in_force)
        self.journal = EmergencyJournal(journal, name)
        self.control = RouteControl(
            sync=self.sync, questions=self.questions, targets=self.targets, journal=self.journal
        )

    def weights(self, name: str = NAME) -> dict[str, float]:
        """Return what requests see, in percent; empty: no such route."""
        compiled = self.table.snapshot.get(name)
        return {v.name: float(v.weight) for v in compiled.route.variants} if compiled else {}

    def canary(self, name: str = NAME) -> float | None:
        """Return the canary's weight as requests see it; None: no such route."""
        return self.weights(name).get("canary")

    def position(self, name: str = NAME) -> Position | None:
        """Return where the route in force stands; None: nothing is in force."""
        found = self.in_force.held.get(name)
        return found.position if found else None

    def here(self, name: str = NAME) -> Condition:
        """Return the condition of a writer who has seen what is newest here."""
        newest = self.sync.newest(name)
        assert newest is not None
        return Condition(at=newest.position)

    async def hear(self, *routes: Route) -> None:
        """Look at the store after somebody else has changed a route, once for each change."""
        for following in routes:
            newest = self.sync.newest(following.name)
            assert newest is not None
            since = origin("replace", parent=newest.position[1])
            after = changes.follow(newest.revision, following, since, changes.ALWAYS)
            await write(self.store.store, Held.of(after), at=newest.position)
            await self.sync.look()

    async def create(self, canary: float = 10, *, name: str = NAME, **fields: Json) -> Written:
        """Create a route."""
        return await self.control.put(name, body(canary, **fields), NEW, intent("create"))

    async def change(self, canary: float, *, name: str = NAME, **fields: Json) -> Written:
        """Replace a route by one with another weight, or other fields."""
        document_ = body(canary, **fields)
        return await self.control.put(name, document_, self.here(name), intent("change"))


class Scene:
    """One repository, one store, and the replicas that were made of them."""

    def __init__(self, folder: Path, shelf: Shelf, repository: Repository, store: RouteStore):
        self.folder = folder
        self.shelf = shelf
        self.repository = repository
        self.store = store
        self.board: ReplicaBoard = InProcessBoard()
        self.replicas: list[Replica] = []

    def replica(
        self, name: str = "a", *, keeps_copy: bool = False, is_released: bool = True
    ) -> Replica:
        """Make a replica; released: it may put things in force at once."""
        store = TroubledStore(self.store)
        stores = Stores(
            routes=store,
            board=self.board,
            hints=NoHints(),
            last_known=LastKnownGood(self.folder / f"last-{name}") if keeps_copy else None,
        )
        made = Replica(name, stores, store, self.repository, self.folder / "state")
        self.replicas.append(made)
        if is_released:
            made.sync.release()
        return made

    async def serving(self, canary: float = 0, name: str = "a") -> Replica:
        """Return a replica that has the first revision in force."""
        replica = self.replica(name)
        await write_row(self.store, route(canary))
        await replica.sync.look()
        await until(lambda: replica.position() is not None)
        return replica

    async def another_store(self, folder: str) -> FileRouteStore:
        """Put an empty store in the place of the one that there was, for every replica."""
        assert isinstance(self.store, FileRouteStore)
        await self.store.close()
        self.store = store = await FileRouteStore.open(self.folder / folder)
        for replica in self.replicas:
            replica.store.store = store
        return store


@asynccontextmanager
async def open_scene(folder: Path, *, versions: int = 3) -> AsyncIterator[Scene]:
    """Set a scene on files; of the model only version 1 is loaded from the beginning."""
    shelf = Shelf(folder / "models")
    for version in range(1, versions + 1):
        shelf.add_fake(MODEL, str(version))
    shelf.configure(MODEL, versions=VersionPolicy(specific=("1",)))
    async with open_repository(shelf) as repository:
        scene = Scene(folder, shelf, repository, await FileRouteStore.open(folder / "routes"))
        try:
            yield scene
        finally:
            shelf.may_load.set()
            for replica in scene.replicas:
                await asyncio.wait_for(replica.sync.close(), HANG_S)
            if isinstance(scene.store, FileRouteStore):
                await scene.store.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not [task for task in left if task.get_name() == "route sync"]
