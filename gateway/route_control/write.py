"""Values of a write to a route: what is asked, by whom, on which condition, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway import ids
from gateway.errors import ConditionFailed, UnknownName
from gateway.route_control.in_force import Held
from gateway.route_control.revision import Position
from router import changes
from router.changes import Permission
from router.diff import diff
from router.document import timestamp
from router.revisions import Origin, Revision

Make = Callable[[Revision | None, Origin], Revision]
"""Makes the next revision from the current one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Who wants to change a route, and why."""

    actor: str
    auth: str
    """How the actor is known: token, or none."""
    source: str
    """Address of the caller."""
    reason: str
    is_dry_run: bool = False
    wants_reseed: bool = False
    accepts_carryover: bool = False

    def permission(self, name: str) -> Permission:
        """Return what may be done to an experiment; a new salt is drawn where one is wanted."""
        new_salt = f"{name}-{ids.as_text(ids.new_id())[-8:]}" if self.wants_reseed else ""
        return Permission(new_salt=new_salt, accepts_carryover=self.accepts_carryover)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """On what a write depends."""

    at: Position | None = None
    """The revision that it changes; None: see the two below."""
    must_not_exist: bool = False
    is_any: bool = False
    """Whatever the route's state: an abort."""

    def check(self, name: str, current: Held | None) -> None:
        """Raise RevisionMismatch unless the route is as the writer thinks."""
        exists = current is not None and not current.revision.is_deleted
        if self.is_any and exists:
            return
        if self.must_not_exist:
            if exists:
                raise RevisionMismatch(f"route {name!r} exists already", current)
        elif current is None or current.position != self.at:
            raise RevisionMismatch(f"route {name!r} is no longer at that revision", current)


class RevisionMismatch(ConditionFailed):
    """The route stands elsewhere; `current` is where."""

    def __init__(self, sentence: str, current: Held | None) -> None:
        at = f": it is at g{current.position[0]}-{current.position[1]}" if current else ""
        super().__init__(sentence + at)
        self.current = current


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of a write."""

    before: Revision | None
    after: Revision
    is_changed: bool
    """False: the route was like that already, and nothing was written."""
    is_dry_run: bool
    loads: tuple[tuple[str, str], ...] = ()
    """Versions that were not loaded when it was asked."""
    is_emergency: bool = False
    """Carried out on this replica only, because the store is out of reach."""
    diff: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON

    def document(self) -> dict[str, Any]:  # Any: JSON
        """Return the answer of the admin API."""
        answer = {
            "document": self.after.document(),
            "changed": self.is_changed,
            "moved_share_percent": float(changes.moved_share(self.before, self.after)),
            "reversioned_share_percent": float(
                changes.moved_share(self.before, self.after, versions=True)
            ),
            "diff": self.diff,
            "loads": [{"model": model, "version": version} for model, version in self.loads],
            "dry_run": self.is_dry_run,
        }
        return answer | ({"emergency": True} if self.is_emergency else {})


def existing(name: str, make: Callable[[Revision, Origin], Revision]) -> Make:
    """Return a maker that refuses a route that is not there, or no longer."""

    def checked(before: Revision | None, origin: Origin) -> Revision:
        if before is None or before.is_deleted:
            raise unknown(name)
        return make(before, origin)

    return checked


def unknown(name: str) -> UnknownName:
    """Return the error for a route that is not there."""
    return UnknownName(f"there is no route {name!r}")


def origin_of(verb: str, intent: Intent, parent: int) -> Origin:
    """Return where a revision that is made now comes from."""
    now_ms = time.time_ns() // 1_000_000
    return Origin(
        verb=verb, actor=intent.actor, reason=intent.reason, created_ms=now_ms, parent=parent
    )


def difference(before: Revision | None, after: Revision) -> list[dict[str, Any]]:  # Any: JSON
    """Return what changed between two revisions; all of it where a route comes or goes."""
    changed = diff(before.document() if before else None, after.document())
    was_deleted = before is not None and before.is_deleted
    if was_deleted == after.is_deleted:
        return changed
    return [{"path": "/deleted", "from": was_deleted, "to": after.is_deleted}, *changed]


def audit_entry(
    before: Revision | None, after: Revision, intent: Intent, *, digest: str, previous: str
) -> bytes:
    """Return the audit entry of a change.

    Args:
        before: the revision that is changed.
        after: the one that takes its place.
        intent: who wanted it.
        digest: of the body of `after`.
        previous: digest of the route's last audit entry: each entry vouches for those before it.
    """
    entry: Mapping[str, object] = {
        "id": ids.as_text(ids.new_id()),
        "ts": timestamp(after.origin.created_ms),
        "actor": intent.actor,
        "auth": intent.auth,
        "source": intent.source,
        "verb": after.origin.verb,
        "route": after.route.name,
        "generation": after.generation,
        "from_revision": before.route.revision if before else 0,
        "to_revision": after.route.revision,
        "digest": digest,
        "diff": difference(before, after),
        "moved_share_percent": float(changes.moved_share(before, after)),
        "reason": intent.reason,
        "previous": previous,
    }
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()
