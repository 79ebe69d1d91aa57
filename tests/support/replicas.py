"""Replicas of the route control for tests: real stores, a real repository of fakes, no sockets.

A `Scene` is one place with its models and its store; each of its replicas has a table, a sync and
verbs of its own. Nothing looks at the store unless a test says so, or starts the sync.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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
from gateway.route_control.store import ChangeHints, ReplicaBoard, RouteStore
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
    first = changes.first(routes[0], origin(created_ms=created_ms))
    made = [Held.of(first).revision]
    for following in routes[1:]:
        since = origin("replace", created_ms=created_ms, parent=made[-1].route.revision)
        made.append(changes.follow(made[-1], following, since, changes.ALWAYS))
    return [_of_generation(revision, generation) for revision in made]


def _of_generation(revision: Revision, generation: int) -> Revision:
    text = json.loads(revision.body()) | {"generation": generation}
    return _read(text, revision.route.name)


def _read(text: Mapping[str, Json], name: str) -> Revision:
    from router import revisions as stored

    return stored.read(json.dumps(text).encode(), name=name)
