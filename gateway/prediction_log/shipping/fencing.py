"""Who may write a name's streams: the token in Redis, and what its look-up means.

Pure: knows neither Redis nor time. A stream has one writer, without exception: two that give ids by
turns make Redis refuse good records. The writer of all streams of a name and replica is whoever's
token stands in the owner key; scripts.py reads and refreshes it with every write.

    found           who may have it                        what follows
    nothing         a first start, or Redis forgot all      ours from now on
    our token       this spool, in this life or before      ours
    another, fresh  a gateway with our replica's name       nothing is sent, all stays spooled
    another, stale  such a gateway that is gone             ours from now on

Whenever a name becomes or is ours, the stream's last id is compared with what we know of it:
  - lower than what Redis once confirmed: Redis forgot, and the spool is wound back;
  - higher: the ids that the spool gives next must be above it. Records that have lower ids already
    are looked up one by one as they are refused, and those that do not stand there get new ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.prediction_log.streams import EntryId

STALE_MS: Final = 30_000
"""An owner that has been silent for this long is gone."""
BEAT_S: Final = 8.0
"""How often an idle owner gives a sign of life; three may be lost."""


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """One gateway as a writer of streams."""

    replica: str
    token: str
    """Of its spool: the same after a restart, and nobody else's. Without a colon at its end."""
    clock_ms: Callable[[], int] = _wall_clock_ms
    """Time since the epoch."""


class Outcome(StrEnum):
    """What a script found at the owner key; the words are those of scripts.py."""

    OURS = "ours"
    ABSENT = "absent"
    STALE = "stale"
    """Another's, who is gone: ours from now on."""
    FENCED = "fenced"
    """Another's, who is there."""


class Claim(NamedTuple):
    """A name as it was found, and one stream of it."""

    outcome: Outcome
    silent_ms: int
    """Since the other owner's last sign of life; -1: there is no other."""
    last: EntryId
    """The stream's last-generated-id; entries that are trimmed still count."""
    length: int
    first: EntryId | None
    first_bytes: int
    """Size of the oldest entry."""


class Fenced(Exception):
    """Another gateway with this replica's name is writing; nothing may be sent."""

    def __init__(self, name: str, silent_ms: int) -> None:
        super().__init__(
            f"another gateway writes the streams of {name!r} under this replica's name"
        )
        self.name = name
        self.silent_ms = silent_ms
