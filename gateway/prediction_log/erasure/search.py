"""Searches the streams of public names for what is sought, and says what has to be rebuilt.

Knows Redis' streams and the registry of their keys. Blocking; read only. Reading and judging cost
about 6 us per record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import redis
from redis.exceptions import ResponseError

from gateway.prediction_log.erasure.rebuild import LARGE_PAGE, PAGE, pages
from gateway.prediction_log.erasure.sought import Sought, marks_of, uris_of
from gateway.prediction_log.erasure.tombstone import Found
from gateway.prediction_log.streams import BEFORE_ALL, NAMES_KEY, EntryId, StreamKind, streams_key

KINDS: Final = (StreamKind.LIVE, StreamKind.SHADOW, StreamKind.BIG, StreamKind.LABELS)
"""In the order of the search: the live records lead to the others."""


class Place(NamedTuple):
    """One stream."""

    name: str
    kind: StreamKind
    key: str

    @property
    def page_size(self) -> int:
        """How many of its entries are read at a time."""
        return LARGE_PAGE if self.kind is StreamKind.BIG else PAGE


@dataclass(slots=True)
class Hits:
    """What a search found in one stream."""

    found: set[Found] = field(default_factory=set)
    records: int = 0
    up_to: EntryId = BEFORE_ALL
    """The last entry that was looked at."""
    has_deleted: bool = False
    """Entries were deleted from it one by one; their bytes may stand in it still."""

    @property
    def needs_rebuild(self) -> bool:
        """Whether bytes of the subject stand in it, or may."""
        return self.records > 0 or self.has_deleted


def places(client: redis.Redis, names: Sequence[str]) -> list[Place]:
    """Return the streams of these names, or of all, in the order of KINDS."""
    if not names:
        names = [name.decode() for name in _members(client, NAMES_KEY)]
    return [
        Place(name, kind, key.decode())
        for kind in KINDS
        for name in sorted(names)
        for key in _members(client, streams_key(name, kind))
    ]


class Search:
    """One search through streams; `run` may be called again, and then looks at what came since."""

    def __init__(
        self, client: redis.Redis, sought: Sought, each_page: Callable[[], None] = lambda: None
    ) -> None:
        self._client = client
        self._sought = sought
        self._each_page = each_page
        self.hits: dict[Place, Hits] = {}

    @property
    def found(self) -> set[Found]:
        """All that was found."""
        return {one for hits in self.hits.values() for one in hits.found}

    def run(self, places: Sequence[Place]) -> None:
        """Search; `places` are in the order of KINDS."""
        for place in places:
            hits = self.hits.get(place)
            if hits is None:
                hits = self.hits[place] = Hits(has_deleted=self._has_deleted(place.key))
            for entry_id, blob in self._entries(place, hits.up_to):
                record = self._sought.judge(blob, place.kind)
                if record is not None:
                    hits.records += 1
                    hits.found.add(record)
                hits.up_to = entry_id
            self._sought.add(hits.found)

    def shared(
        self, places: Sequence[Place], cids: set[str], uris: set[str]
    ) -> tuple[set[str], set[str]]:
        """Return which of these callers' ids, and of these files, records of others have too."""
        shared_cids: set[str] = set()
        shared_uris: set[str] = set()
        for place in places if cids or uris else ():
            if place.kind is StreamKind.LABELS:
                continue
            for _, blob in self._entries(place, BEFORE_ALL):
                if self._sought.judge(blob, place.kind) is not None:
                    continue
                marks = marks_of(blob)
                if marks is not None and marks.cid in cids:
                    shared_cids.add(marks.cid)
                if uris:
                    shared_uris.update(uris.intersection(uris_of(blob)))
        return shared_cids, shared_uris

    def _entries(self, place: Place, after: EntryId) -> Iterator[tuple[EntryId, bytes]]:
        start = after if after == BEFORE_ALL else after.after()
        for page in pages(self._client, place.key, size=place.page_size, start=start):
            self._each_page()
            yield from page

    def _has_deleted(self, key: str) -> bool:
        """Whether entries were deleted from the part of a stream that still stands (Redis 7)."""
        try:
            info: Any = self._client.xinfo_stream(key)  # Any: as redis-py types it
        except ResponseError:
            return False  # there is no such stream any more
        deleted, first = info.get("max-deleted-entry-id"), info.get("first-entry")
        if not deleted or not first:
            return False
        return EntryId.parse(deleted) >= EntryId.parse(first[0])


def _members(client: redis.Redis, key: str) -> list[bytes]:
    found: Any = client.smembers(key)  # Any: as redis-py types it for both its clients
    return sorted(found)
