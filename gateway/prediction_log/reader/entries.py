"""The entries of streams, a page at a time: where they are, and the bytes that they hold.

Knows keys, ids and the one field of an entry; nothing of what the bytes say. Reading goes past
redis-py's conversions, which cost more than the rest: a page is ids and blobs as they came.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import redis
from redis.exceptions import ResponseError

from gateway.prediction_log.streams import (
    BEFORE_ALL,
    NAMES_KEY,
    EntryId,
    StreamKind,
    streams_key,
)

FIELD: Final = b"r"
"""The one field of an entry."""
PAGE: Final = 1_000
"""Most entries read per command."""
PAGE_BYTES: Final = 4 << 20
"""About how many bytes of entries are read per command."""
SOCKET_TIMEOUT_S: Final = 5.0

When = datetime | float | str | None
"""A moment: a datetime (without a zone: UTC), seconds since the epoch, or an entry id as XRANGE
takes it; None: no limit."""
Fields = Mapping[bytes | str, bytes | str] | None


class Window(NamedTuple):
    """The ids between which entries are read, as XRANGE takes them."""

    first: str = "-"
    last: str = "+"

    @classmethod
    def of(cls, since: When, until: When) -> Window:
        """Return the window of two moments: from `since` on, before `until`.

        An entry id as `until` is included, unless it is written with a bracket:
        ``(1767225600000-0``.
        """
        last = _bound(until, "+")
        is_moment = until is not None and not isinstance(until, str)
        # An id without its second part would end with its millisecond, not before it.
        return cls(_bound(since, "-"), f"({last}-0" if is_moment else last)


EVERYTHING: Final = Window()


class Page(NamedTuple):
    """Some entries of one stream, in order."""

    key: str
    ids: list[bytes]
    blobs: list[bytes]
    last: EntryId
    """Of the page; its entry may be none of ours, and then is not among `ids`."""


def connect(url: str) -> redis.Redis:
    """Return a client fit for reading; it connects at its first command.

    Raises:
        ValueError: not a URL that redis-py understands.
    """
    return redis.Redis.from_url(
        url, decode_responses=False, protocol=2, socket_timeout=SOCKET_TIMEOUT_S
    )


def known_names(client: redis.Redis) -> list[str]:
    """Return the public names that have streams, sorted."""
    return sorted(text_of(member) for member in client.smembers(NAMES_KEY))


def streams(
    client: redis.Redis,
    names: Sequence[str] | None = None,
    *,
    shadows: bool = False,
    kind: StreamKind = StreamKind.LIVE,
) -> list[str]:
    """Return the keys of the streams of a kind of these names, or of all names, sorted.

    `shadows` is short for the kind of shadows.
    """
    wanted = StreamKind.SHADOW if shadows else kind
    keys: set[str] = set()
    for name in known_names(client) if names is None else names:
        keys.update(text_of(member) for member in client.smembers(streams_key(name, wanted)))
    return sorted(keys)


def unconverted(client: redis.Redis) -> redis.Redis:
    """Return a client on the same connections that leaves the replies of some commands as they are.

    The caller's client keeps its own settings.
    """
    plain = redis.Redis(connection_pool=client.connection_pool)
    for command in ("XRANGE", "XREADGROUP", "XCLAIM", "XPENDING"):
        plain.set_response_callback(command, _as_it_is)
    return plain


def command(client: redis.Redis, *words: str | bytes | int) -> Any:  # Any: a reply of any shape
    """Execute a command; texts in its reply stay bytes whatever the client's settings."""
    execute: Any = client.execute_command  # it has no types
    return execute(*words, NEVER_DECODE=True)


def stream_info(client: redis.Redis, key: str) -> dict[str, Any] | None:  # Any: of any type
    """Return what Redis says of a stream; None: there is no such stream."""
    try:
        info: dict[str, Any] = command(client, "XINFO STREAM", key)
    except ResponseError as exc:
        if "no such key" in str(exc):
            return None
        raise
    return info


def pages(
    client: redis.Redis, key: str, window: Window = EVERYTHING, *, plain: redis.Redis | None = None
) -> Iterator[Page]:
    """Yield the entries of one stream, oldest first."""
    reading = plain or unconverted(client)
    first, count = window.first, PAGE
    while True:
        reply = command(reading, "XRANGE", key, first, window.last, "COUNT", count) or []
        if reply:
            page = page_of(key, reply)
            yield page
            first = f"({page.last}"
        if len(reply) < count:
            return
        count = _fitting(page.blobs)


def interleaved(
    client: redis.Redis, keys: Sequence[str], window: Window = EVERYTHING
) -> Iterator[Page]:
    """Yield the pages of several streams: next always that of the stream which is furthest behind.

    Pages overlap, so that entries of two streams are in order only about to a page.
    """
    plain = unconverted(client)
    waiting = [
        (BEFORE_ALL, number, pages(client, key, window, plain=plain))
        for number, key in enumerate(keys)
    ]
    while waiting:
        _, number, coming = heapq.heappop(waiting)
        page = next(coming, None)
        if page is not None:
            yield page
            heapq.heappush(waiting, (page.last, number, coming))


def page_of(key: str, reply: Sequence[Any]) -> Page:  # Any: entries as redis-py left them
    """Return what an unconverted reply of XRANGE holds; it has at least one entry."""
    ours = [(entry[0], entry[1][1]) for entry in reply if entry[1] and entry[1][0] == FIELD]
    ids, blobs = [i for i, _ in ours], [blob for _, blob in ours]
    return Page(key, ids, blobs, EntryId.parse(reply[-1][0]))


def last_id(client: redis.Redis, key: str) -> EntryId:
    """Return the last id that a stream ever gave; BEFORE_ALL: there is no such stream."""
    info = stream_info(client, key)
    return BEFORE_ALL if info is None else EntryId.parse(info["last-generated-id"])


def blob_of(fields: Fields) -> bytes | None:
    """Return the record in an entry's fields as redis-py gives them; None: not one of ours."""
    blob = fields.get(FIELD) if fields else None
    return blob if isinstance(blob, bytes) else None


def entry_id(raw: bytes | str | None) -> EntryId:
    """Return the id of an entry as redis-py gives it."""
    return EntryId.parse(raw or b"0-0")


def text_of(raw: bytes | str) -> str:
    """Return what the server calls something as text."""
    return raw.decode() if isinstance(raw, bytes) else raw


def epoch_ms(when: When) -> int | None:
    """Return a moment in milliseconds; None: no limit."""
    if when is None or when in ("-", "+"):
        return None
    if isinstance(when, str):
        return int(when.lstrip("(").partition("-")[0])
    if isinstance(when, datetime):
        zoned = when if when.tzinfo else when.replace(tzinfo=UTC)
        return round(zoned.timestamp() * 1e3)
    return round(when * 1e3)


def _bound(when: When, unlimited: str) -> str:
    if isinstance(when, str):
        return when
    ms = epoch_ms(when)
    return unlimited if ms is None else str(max(ms, 0))


def _fitting(blobs: Sequence[bytes]) -> int:
    """Return how many entries like these make a page."""
    mean_bytes = sum(map(len, blobs)) // max(len(blobs), 1)
    return max(1, min(PAGE, PAGE_BYTES // max(mean_bytes, 1)))


def _as_it_is(reply: Any, **_: Any) -> Any:  # Any: see `command`
    return reply
