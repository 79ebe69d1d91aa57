"""Turns what a store says no with into the gateway's own errors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from gateway.errors import Conflict, StoreUnavailable
from gateway.route_control.in_force import Held
from gateway.route_control.revision import StoredRevision, etag_of
from gateway.route_control.store import CorruptRevision, StoreDown
from router import revisions
from router.faults import Fault, RouteError

_T = TypeVar("_T")
_REPAIR = "restore writes what this replica serves in its place"


async def asked(question: Awaitable[_T]) -> _T:
    """Return the store's answer.

    Raises:
        StoreUnavailable: it is out of reach.
        Conflict: what it holds is not intact.
    """
    try:
        return await question
    except StoreDown as exc:
        raise StoreUnavailable(f"routes cannot be changed or looked up now: {exc}") from None
    except CorruptRevision as exc:
        raise Conflict(f"{exc}; {_REPAIR}") from None


def read_held(stored: StoredRevision) -> Held:
    """Return a stored revision, checked; raises RouteError for one that is no valid route, or not
    the one that the store says it is."""
    revision = revisions.read(stored.body, name=stored.name)
    if revision.position != stored.position:
        sentence = f"the document says {etag_of(revision.position)}, the store {stored.etag}"
        raise RouteError(Fault(("revision",), sentence))
    return Held(
        revision=revision,
        digest=stored.digest,
        body=stored.body,
        audit_digest=stored.audit_digest,
    )


def trusted(stored: StoredRevision) -> Held:
    """Return a stored revision for a writer or reader; raises Conflict for one that is invalid."""
    try:
        return read_held(stored)
    except RouteError as exc:
        raise Conflict(f"route {stored.name!r} as stored is invalid: {exc}; {_REPAIR}") from None
