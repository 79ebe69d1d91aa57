"""What this replica serves: the revisions in force, and whether another one may take their place.

The judgement is pure. A revision only moves forward: a higher generation wins, else a higher
number; the same number with another digest is a split history and changes nothing. Knows the route
table and revisions; knows no store, no model and no time of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from gateway.route_control.revision import Position, StoredRevision, digest_of
from router.policy import CompiledRoute
from router.revisions import Revision
from router.routes import Route
from router.table import RouteTable

PROVISIONAL: Final = 0
"""Generation of a route that was configured and that no store has numbered yet."""


class Verdict(Enum):
    """What a replica does about a revision that it hears of."""

    CURRENT = "current"
    """It is the one in force."""
    NEWER = "newer"
    """It is to be brought into force."""
    OLDER = "older"
    """The store went back: keep what is in force, raise an alarm."""
    SPLIT = "split"
    """Two histories: the same number, another content. Keep what is in force, raise an alarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A revision, with the bytes that it was read from: they stay as they are, also where this
    version of Sluice would write the same revision in other words."""

    revision: Revision
    digest: str
    body: bytes
    audit_digest: str = ""
    """Of the audit entry that was written with it."""

    @property
    def position(self) -> Position:
        """Generation and number."""
        return self.revision.position

    @classmethod
    def of(cls, revision: Revision, audit_digest: str = "") -> Held:
        """Hold a revision that no store has handed out."""
        body = revision.body()
        digest = digest_of(body)
        return cls(revision=revision, digest=digest, body=body, audit_digest=audit_digest)

    def stored(self) -> StoredRevision:
        """Return it as a store holds it."""
        generation, number = self.position
        return StoredRevision(
            name=self.revision.route.name,
            generation=generation,
            revision=number,
            digest=self.digest,
            body=self.body,
            audit_digest=self.audit_digest,
        )


def judge(held: Held | None, position: Position, digest: str) -> Verdict:
    """Return what to do about a revision, given what is in force."""
    if held is None or position > held.position:
        return Verdict.NEWER
    if position < held.position:
        return Verdict.OLDER
    return Verdict.CURRENT if digest == held.digest else Verdict.SPLIT


def behind(held: Held | None, current: Held) -> str:
    """Return what is wrong where the store does not lead on from what is served; else nothing."""
    if held is None or held.revision.generation == PROVISIONAL:
        return ""
    if judge(held, current.position, current.digest) not in (Verdict.OLDER, Verdict.SPLIT):
        return ""
    at, served = (f"g{generation}-{n}" for generation, n in (current.position, held.position))
    return (
        f"the store has {at} of route {current.revision.route.name!r}, which does not follow what "
        f"is served here, {served}: restore writes what this replica serves in its place"
    )


class InForce:
    """The revisions in force at this replica; the route table always shows them, compiled."""

    def __init__(self, table: RouteTable) -> None:
        self._table = table
        self._held: dict[str, Held] = {}
        self._overrides: dict[str, Route] = {}

    @property
    def held(self) -> Mapping[str, Held]:
        """By route, deleted ones too."""
        return self._held

    @property
    def revisions(self) -> dict[str, Revision]:
        """By route, deleted ones too."""
        return {name: held.revision for name, held in self._held.items()}

    def put(self, held: Held, now_ms: int) -> None:
        """Bring a revision into force: one reference assignment, as requests see it.

        Raises ValueError for one that is not newer than what is in force.
        """
        name = held.revision.route.name
        verdict = judge(self._held.get(name), held.position, held.digest)
        if verdict is not Verdict.NEWER:
            raise ValueError(f"route {name!r} at {held.position} is {verdict.value}")
        self._held[name] = held
        self._show(name, now_ms)

    def override(self, name: str, route: Route | None, now_ms: int) -> None:
        """Serve another content than the revision's, under its number; None: no longer.

        Of a route that is not in force nothing is served.
        """
        if route is None:
            self._overrides.pop(name, None)
        else:
            self._overrides[name] = route
        self._show(name, now_ms)

    def overridden(self, name: str) -> Route | None:
        """Return what is served instead of the revision; None: nothing."""
        return self._overrides.get(name)

    def refresh(self, now_ms: int) -> None:
        """Compile again what has a rule that has expired since."""
        for name, compiled in self._table.snapshot.items():
            until_ms = compiled.rules_until_ms
            if until_ms is not None and until_ms <= now_ms:
                self._show(name, now_ms)

    def _show(self, name: str, now_ms: int) -> None:
        held = self._held.get(name)
        override = self._overrides.get(name)
        if held is None:
            return
        revision = held.revision
        if revision.is_deleted:
            self._table.remove(name)
        elif override is None:
            self._table.put(CompiledRoute.of(revision, now_ms))
        else:
            route = replace(override, revision=revision.route.revision)
            self._table.put(CompiledRoute.compile(route, now_ms=now_ms))
