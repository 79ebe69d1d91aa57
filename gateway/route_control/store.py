"""What route control asks of the place where routes are kept, and how that place says no.

The contract of every implementation is tests/contract/stores. A store compares, keeps and hands
out; it never reads a body, and never decides which of two revisions is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from gateway.route_control.revision import Change, Position, StoredRevision

KEPT_REVISIONS: Final = 1_000
"""Newest revisions of a route that a store keeps."""
KEPT_AUDIT_ENTRIES: Final = 10_000
"""Newest audit entries of a route that a store keeps; it may keep somewhat more."""
FORGOTTEN_AFTER_S: Final = 60.0
"""A replica that has not reported for this long is gone."""


class StoreDown(Exception):
    """The store cannot be reached, did not answer in time, or cannot write now.

    After a write this says nothing about the change: it may have been made, or be made yet. To find
    out, write the same change again.
    """


class Stale(Exception):
    """The route does not stand where the change expects it."""

    def __init__(self, current: StoredRevision | None) -> None:
        at = "there is no such route" if current is None else f"the route stands at {current.etag}"
        super().__init__(at)
        self.current = current
        """Where it stands; None: there is no such route."""


class CorruptRevision(Exception):
    """What the store holds about a route is not intact."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"route {name}: {why}")
        self.name = name
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a route stands. Of a corrupt one: what can be read, else 0 and ""."""

    generation: int
    revision: int
    digest: str

    @property
    def position(self) -> Position:
        """Generation and revision; a write that expects it is let through, so it also repairs."""
        return (self.generation, self.revision)


class RouteStore(Protocol):
    """Where route documents, their history and their audit are kept."""

    async def heads(self) -> dict[str, Head]:
        """Return where every route stands, the corrupt ones too. Raises StoreDown."""

    async def read(self, name: str) -> StoredRevision | None:
        """Return a route's current revision. Raises StoreDown, CorruptRevision."""

    async def write(self, change: Change) -> None:
        """Compare and set, with history, audit entry and hint: all of it or nothing.

        A change that was made already, by an attempt whose reply was lost, is a success again,
        also where others have followed it.

        Raises:
            Stale: the route stands elsewhere.
            StoreDown: and the change may nevertheless have been made.
            CorruptRevision: it stands elsewhere, and what is there cannot be shown; or the store
                cannot keep this route as long as what is in its place is there.
        """

    async def revision(self, name: str, number: int) -> StoredRevision | None:
        """Return a kept revision, of the newest generation that has it; None: not kept.

        Raises:
            CorruptRevision, StoreDown.
        """

    async def history(self, name: str, limit: int) -> list[StoredRevision]:
        """Return the newest kept revisions, newest first; corrupt ones are logged and left out.

        Raises:
            CorruptRevision: there is something else in the place of the history.
            StoreDown.
        """

    async def audit(self, name: str, *, limit: int) -> list[bytes]:
        """Return the newest `limit` audit entries, oldest first. Raises as `history`."""


class ReplicaBoard(Protocol):
    """Where replicas say that they are alive and what they serve."""

    async def report(self, replica: str, report: bytes) -> None:
        """Say: alive now, and serves this. Raises StoreDown."""

    async def replicas(self) -> dict[str, tuple[float, bytes]]:
        """Return the age of each replica's last report in seconds, by the board's clock, and it.

        Replicas older than FORGOTTEN_AFTER_S are left out. Raises StoreDown.
        """

    async def withdraw(self, replica: str) -> None:
        """Take a replica off the board. Raises StoreDown."""


class ChangeHints(Protocol):
    """Hears that something may have changed. A hint can be lost: who relies on it also polls."""

    async def next(self, timeout_s: float) -> bool:
        """Wait for a hint; return whether there was one. What is wrong with it only sleeps.

        Hints between two calls are not lost, and are one. One task waits at a time.
        """
