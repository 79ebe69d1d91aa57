"""Waits until every live replica has a revision. Time and the look at the replicas are arguments.

A replica has a revision when it serves it or a later one; one that serves the same number with
another digest has something else and never counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.cli.admin_client import AdminError, NotAllowed, NotThere
from gateway.cli.route_documents import Convergence, Replica, RouteDocument
from gateway.cli.route_tables import replica_line
from gateway.cli.route_text import printable

POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """How a wait ended."""

    replicas: int
    """Live ones, at the last look."""
    took_s: float
    laggards: tuple[str, ...] = ()
    """A line for each thing that is missing; none: all replicas have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time, as a wait needs it."""

    now_s: Callable[[], float]
    sleep: Callable[[float], None]


def wait(
    look: Callable[[float], Convergence], wanted: RouteDocument, limit_s: float, clock: Clock
) -> Waited:
    """Look until every live replica has a revision or the time is up; looks at least once.

    A look that fails is repeated: the change is made, and a replica may be restarting.

    Args:
        look: asks for the convergence; gets the seconds that are left.
        wanted: the revision.
        limit_s: longest wait.
        clock: monotonic.

    Raises:
        NotAllowed, NotThere: waiting would not help.
    """
    start_s = clock.now_s()
    while True:
        left_s = start_s + limit_s - clock.now_s()
        count = 0
        try:
            found = look(left_s)
        except (NotAllowed, NotThere):
            raise
        except AdminError as exc:
            missing: tuple[str, ...] = (printable(str(exc)),)
        else:
            count = len(found.live)
            missing = laggards(found, wanted)
        now_s = clock.now_s()
        if not missing or now_s - start_s >= limit_s:
            return Waited(replicas=count, took_s=now_s - start_s, laggards=missing)
        clock.sleep(min(POLL_S, start_s + limit_s - now_s))


def laggards(found: Convergence, wanted: RouteDocument) -> tuple[str, ...]:
    """Return a line for each replica that does not have a revision."""
    if not found.live:
        return ("no replica has said what it serves",)
    return tuple(replica_line(r) for r in found.live if not _has(r, wanted))


def _has(replica: Replica, wanted: RouteDocument) -> bool:
    position = (replica.generation, replica.revision)
    if position != wanted.position:
        return position > wanted.position
    return replica.digest == wanted.meta.digest
