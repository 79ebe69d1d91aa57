"""The streams that this gateway writes, as they are known so far.

Knows the store's numbers and Redis' keys; talks to neither Redis nor a clock. A stream of Redis can
be two of the store's: audits stand among the live records and are counted apart from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.prediction_log.shipping.sink import Target
from gateway.prediction_log.spool.store import Store
from gateway.prediction_log.streams import (
    BEFORE_ALL,
    EntryId,
    StreamKind,
    owner_key,
    stream_key,
)

USUAL_RECORD_BYTES: Final = 400.0
"""What a record is taken to have before any was sent."""


@dataclass(slots=True, eq=False)
class Outlet:
    """One stream of Redis as its one writer sees it."""

    name: str
    kind: StreamKind
    target: Target
    numbers: tuple[int, ...]
    """Of the store's streams that go there."""
    confirmed: EntryId = BEFORE_ALL
    """Greatest id that Redis confirmed: what it may not have less than later."""
    reached: EntryId = BEFORE_ALL
    """Greatest id that was sent of a chunk that is not settled: the rest of it is added only to a
    stream that has this."""
    synced_generation: int = 0
    """Connection on which it was claimed and compared; 0: never, or to be done again."""
    was_synced: bool = False
    """Whether `confirmed` was ever compared with Redis in this life."""
    contact_s: float = 0.0
    """When a script last ran for it."""
    records: int = 0
    """Sent in this life."""
    record_bytes: int = 0
    length: int = 0
    """Entries that stand there."""
    history_per_s: float = 0.0
    """Rate at which those came that stood there first; 0: too few to tell."""
    history_bytes: int = 0
    """Size of the oldest of them."""
    trimmed_unread: int = 0
    is_refused: bool = False
    """The last records were refused, which has been logged."""
    has_collided: bool = False
    """Another writer was met, which has been logged."""

    @property
    def mean_bytes(self) -> float:
        """Size of a record."""
        if self.records:
            return self.record_bytes / self.records
        return float(self.history_bytes) or USUAL_RECORD_BYTES


class Outlets:
    """All of them, by the store's numbers and by key."""

    def __init__(self, store: Store, *, replica: str, token: str) -> None:
        self._store = store
        self._replica = replica
        self._token = token
        self._by_number: dict[int, Outlet] = {}
        self._by_key: dict[str, Outlet] = {}

    def __iter__(self) -> Iterator[Outlet]:
        return iter(list(self._by_key.values()))

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def of(self, number: int) -> Outlet:
        """Return where the records of one of the store's streams go."""
        outlet = self._by_number.get(number)
        return self._make(number) if outlet is None else outlet

    def _make(self, number: int) -> Outlet:
        name, kind = self._store.stream_of(number)
        kinds: tuple[StreamKind, ...] = (kind,)
        if kind in (StreamKind.LIVE, StreamKind.AUDIT):
            kind, kinds = StreamKind.LIVE, (StreamKind.LIVE, StreamKind.AUDIT)
        numbers = tuple(self._store.stream(name, each) for each in kinds)
        key = stream_key(name, self._replica, kind)
        target = Target(key, owner_key(name, self._replica), self._token)
        outlet = self._by_key[key] = Outlet(name, kind, target, numbers)
        outlet.confirmed = max(self._store.last_shipped(each) for each in numbers)
        for each in numbers:
            self._by_number[each] = outlet
        return outlet
