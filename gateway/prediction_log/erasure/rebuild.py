"""Rebuilds a stream without some of its entries, while its one writer goes on writing.

Why. XDEL only marks an entry: its bytes stay in the node that they share with others, in memory, in
the RDB and in a rewritten AOF. So the entries that stay are copied into a new key, with their ids,
and the copy takes the stream's place (scripts.py) in one script: nobody can see a part.

The writer notices nothing. It gives ids above the stream's last-generated-id, which the copy has
too; what it wrote since the copying passed is in the copy before the copy is in place. Groups go on
where they were, with their consumers and what is pending. TTL, entries-added and
max-deleted-entry-id are kept, the latter as if the entries had been deleted, where the server has
them (Redis 7; asked for, not guessed from its version).

Memory: the stream stands twice until the swap. Cost: one page read and judged here, copied inside
the server; the swap holds the server for the entries and the pending ones that it copies, about
2 us each. Knows no subject: a callback judges the entries.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.exceptions import ResponseError

from gateway.prediction_log.erasure.scripts import COPY, GONE, SWAP
from gateway.prediction_log.erasure.tombstone import copies_key
from gateway.prediction_log.streams import BEFORE_ALL, EntryId

PAGE: Final = 256
"""Entries read, judged and copied at a time."""
LARGE_PAGE: Final = 8
"""The same for streams of whole large tensors."""
_FIELD: Final = b"r"
_MAX_BEHIND: Final = 100
"""Times that the writer may outrun the copying before we give up."""

Entry = tuple[EntryId, bytes]
Judge = Callable[[bytes], bool]
"""Whether the entry with this blob is left out."""


class RebuildFailed(Exception):
    """The stream is as it was; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a rebuild did."""

    kept: int
    left_out: int


def pages(
    client: redis.Redis, key: str, *, size: int = PAGE, start: EntryId = BEFORE_ALL
) -> Iterator[list[Entry]]:
    """Yield a stream's entries from an id on, a page at a time; entries of others are empty."""
    while True:
        # Any: redis-py types the reply as that of both its clients
        page: Any = client.xrange(key, min=str(start), count=size)
        if page:
            entries = [(EntryId.parse(i), fields.get(_FIELD, b"")) for i, fields in page]
            start = entries[-1][0].after()
            yield entries
        if len(page or ()) < size:
            return


def rebuild(
    client: redis.Redis,
    name: str,
    key: str,
    is_left_out: Judge,
    *,
    size: int = PAGE,
    each_page: Callable[[], None] = lambda: None,
) -> Rebuilt:
    """Replace a stream of a public name by a copy without the entries that are judged so.

    `each_page` is called between pages; what it raises ends the rebuild and leaves the stream.

    Raises:
        RebuildFailed: no memory for the copy, a writer that is faster than we are, not allowed.
        redis.RedisError: no answer; whether the copy is in place is not known, and it does not
            matter: the next rebuild begins anew.
    """
    copy = _Copy(client, name, key, size)
    try:
        copy.begin()
        for _ in range(_MAX_BEHIND):
            copy.follow(is_left_out, each_page)
            if copy.is_swapped():
                return Rebuilt(kept=copy.kept, left_out=copy.left_out)
        raise RebuildFailed(f"{key} is written faster than it can be copied")
    except ResponseError as exc:
        raise RebuildFailed(f"{key} could not be copied: {exc}") from exc
    finally:
        copy.drop()


def drop_leftovers(client: redis.Redis, name: str) -> int:
    """Delete the copies that interrupted rebuilds of a name's streams left; return how many."""
    members: Any = client.smembers(copies_key(name))  # Any: as above
    for member in members:
        client.unlink(member)
        client.srem(copies_key(name), member)
    return len(members)


class _Copy:
    """A copy that is being made. Noted in a set before it exists, so that it can be found."""

    def __init__(self, client: redis.Redis, name: str, key: str, size: int) -> None:
        self._client = client
        self._key = key
        # A name of this rebuild alone: two that run at once, because one was thought dead, must
        # not write into the same copy.
        self._copy = f"{key}:copy:{secrets.token_hex(8)}"
        self._noted_in = copies_key(name)
        self._size = size
        self._last = BEFORE_ALL
        self._greatest_left_out = BEFORE_ALL
        self.kept = self.left_out = 0

    def begin(self) -> None:
        """Make an empty stream."""
        self._client.sadd(self._noted_in, self._copy)
        self._client.xgroup_create(self._copy, "new", id="0", mkstream=True)
        self._client.xgroup_destroy(self._copy, "new")

    def follow(self, is_left_out: Judge, each_page: Callable[[], None]) -> None:
        """Copy what stands behind the last entry that was looked at, up to the stream's end."""
        start = self._last.after() if self._last != BEFORE_ALL else BEFORE_ALL
        for page in pages(self._client, self._key, size=self._size, start=start):
            each_page()
            without = [entry_id for entry_id, blob in page if is_left_out(blob)]
            if len(without) < len(page):
                self.kept += self._copied(page[0][0], page[-1][0], without)
            self._last = page[-1][0]
            if without:
                self._greatest_left_out = without[-1]
                self.left_out += len(without)

    def is_swapped(self) -> bool:
        """Try to put the copy in the stream's place; False: more came than fits into the step."""
        answer = self._run(SWAP, str(self._last), str(self._size), str(self._greatest_left_out))
        if answer[0] == b"reset":
            raise RebuildFailed(f"{self._key} began anew while it was copied")
        if answer[0] == b"gone":
            return True  # nothing is left of it; `drop` takes the copy away
        if answer[0] == b"done":
            self.kept += answer[1]
        return bool(answer[0] == b"done")

    def drop(self) -> None:
        """Delete what is left of the copy."""
        self._client.unlink(self._copy)
        self._client.srem(self._noted_in, self._copy)

    def _copied(self, first: EntryId, last: EntryId, without: Sequence[EntryId]) -> int:
        copied: int = self._run(COPY, str(first), str(last), *map(str, without))
        return copied

    def _run(self, script: str, *arguments: str) -> Any:  # Any: a script's reply
        try:
            return self._client.eval(script, 2, self._key, self._copy, *arguments)
        except ResponseError as exc:
            if GONE in str(exc):
                raise RebuildFailed(f"the copy of {self._key} was deleted by another") from exc
            raise
