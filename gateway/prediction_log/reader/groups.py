"""Consumer groups: every record of a name given to one of the group's consumers, at least once.

    members = GroupReader(client, "digits", "drift", "monitor-1")
    while True:
        batch = members.read()
        ...use batch.records...
        members.acknowledge(batch)

The group remembers in Redis what it was given. What is not acknowledged comes again: to the same
consumer after its restart, to another one when it has waited for `claim_idle_ms`. What came
`max_deliveries` times without being acknowledged kills its consumer, perhaps: it goes to the stream
of the group's dead letters. Redis may hold a record twice, and a group may be given one twice; this
reader drops what it has seen, by worker and number and by request id.

Retention respects a group only if the gateway's configuration names it (respect_groups); a group
that nobody reads any more is to be deleted (XGROUP DESTROY).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis
from redis.exceptions import ResponseError

from gateway.prediction_log.reader import about, entries
from gateway.prediction_log.reader.completeness import Completeness
from gateway.prediction_log.reader.documents import Documents
from gateway.prediction_log.reader.entries import FIELD, When, Window, command
from gateway.prediction_log.reader.tally import Tally
from gateway.prediction_log.record import LoggedAudit, LoggedLabel, LoggedPrediction
from gateway.prediction_log.streams import StreamKind

MAX_DEAD: Final = 10_000
"""Dead letters kept, approximately."""
_LAST_SEQ: Final = (1 << 64) - 1
_NEW: Final = ">"
_OLDEST: Final = "0-0"
_ACKNOWLEDGED_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """How a group treats what is not acknowledged."""

    claim_idle_ms: int = 60_000
    """A consumer that has not acknowledged for this long is taken to be dead. Longer than one batch
    may take."""
    max_deliveries: int = 5
    """Times that an entry is given before it is a dead letter."""


@dataclass(slots=True)
class Batch:
    """What was read at once."""

    records: list[LoggedPrediction] = field(default_factory=list)
    labels: list[LoggedLabel] = field(default_factory=list)
    audits: list[LoggedAudit] = field(default_factory=list)
    ids: dict[str, list[bytes]] = field(default_factory=dict)
    """By stream: all entries that acknowledging the batch acknowledges."""

    def __bool__(self) -> bool:
        """Whether there was anything."""
        return bool(self.ids)


def dead_key(name: str, group: str) -> str:
    """Return the key of the stream of a group's dead letters."""
    return f"pl:{{{name}}}:dead:{group}"


class GroupReader:
    """One consumer of a group. Blocking; one thread.

    Completeness is of what this consumer was given: with several consumers each one's share has
    gaps, and a window read without a group says what is missing.

    Args:
        client: its socket timeout must be longer than `block_ms`.
        group: shared by the consumers that divide the records among them.
        consumer: a name that stays the same over restarts, of one process at a time.
        kinds: one kind, or one kind and the labels.
        settings: what happens to what is not acknowledged.
    """

    def __init__(
        self,
        client: redis.Redis,
        name: str,
        group: str,
        consumer: str,
        *,
        kinds: Sequence[StreamKind] = (StreamKind.LIVE,),
        settings: GroupSettings | None = None,
    ) -> None:
        self._client = client
        self._plain = entries.unconverted(client)
        self._name = name
        self._member = (group, consumer)
        self._kinds = tuple(kinds)
        self._settings = settings or GroupSettings()
        self._tally = Tally(kinds[0], others=kinds[1:])
        self._cursors: dict[str, str] = {}
        """By stream: behind which of its own old entries to go on, or _NEW: they are through."""
        self._claims: dict[str, str] = {}
        """By stream: where the search for stale entries goes on."""
        self._claim_at_ms = 0
        self._held: set[tuple[str, bytes]] = set()
        """Given to us and not acknowledged."""
        self._is_begun = False
        self.dead = 0
        """Entries that became dead letters here."""
        self.gone = 0
        """Entries that were deleted or trimmed after they were given and before they were read."""

    def begin(self, since: When = None) -> None:
        """Make the group where there is none, to be given what came from a moment on."""
        self._is_begun = True
        window = Window.of(since, None)
        for kind in self._kinds:
            keys = entries.streams(self._client, [self._name], kind=kind)
            about.begin(self._client, self._tally, kind, keys, window)
            for key in keys:
                self._join(key, _before(window.first))

    def read(self, count: int = 1_000, block_ms: int | None = 1_000) -> Batch:
        """Return entries, at most `count` of each stream; empty after waiting for `block_ms`.

        First what this consumer was given before it was restarted, then what others left, then
        what is new. None: do not wait.
        """
        if not self._is_begun:
            self.begin()
        self._find_new_streams()
        try:
            return self._read_again(count) or self._claim(count) or self._read_new(count, block_ms)
        except ResponseError as exc:
            if not str(exc).startswith("NOGROUP"):
                raise
            self._cursors.clear()  # Redis forgot: join again, from the oldest entry on
            return Batch()

    def drain(self, limit: int | None = None) -> Iterator[Batch]:
        """Yield batches until there is nothing more, or `limit` records have come."""
        left = limit
        while left is None or left > 0:
            batch = self.read(1_000 if left is None else min(1_000, left), None)
            if not batch:
                return
            yield batch
            left = None if left is None else left - len(batch.records)

    def acknowledge(self, batch: Batch) -> None:
        """Tell the group that a batch was used."""
        for key, ids in batch.ids.items():
            for at in range(0, len(ids), _ACKNOWLEDGED_AT_ONCE):
                self._client.xack(key, self._member[0], *ids[at : at + _ACKNOWLEDGED_AT_ONCE])
            self._held.difference_update((key, raw_id) for raw_id in ids)

    def completeness(self) -> Completeness:
        """Return how complete is what was read so far."""
        return self._tally.completeness(about.erased_numbers(self._client, self._name))

    def _find_new_streams(self) -> None:
        for kind in self._kinds:
            keys = entries.streams(self._client, [self._name], kind=kind)
            new = [key for key in keys if key not in self._cursors]
            about.begin(self._client, self._tally, kind, new, entries.EVERYTHING)
            for key in new:
                self._join(key, _OLDEST)

    def _join(self, key: str, after: str) -> None:
        """Make the group in a stream, unless it is there."""
        self._cursors[key] = _OLDEST
        try:
            self._client.xgroup_create(key, self._member[0], id=after, mkstream=True)
        except ResponseError as exc:
            if not str(exc).startswith("BUSYGROUP"):
                raise

    def _read_again(self, count: int) -> Batch:
        """Return what was given to this consumer before, and not acknowledged."""
        unread = [key for key, cursor in self._cursors.items() if cursor != _NEW]
        found: dict[str, list[Any]] = {}  # Any: entries as they came
        for key, listed in self._ask(unread, count, None).items():
            self._cursors[key] = listed[-1][0].decode() if listed else _NEW
            if listed:  # this time was counted
                limit = self._settings.max_deliveries + 1
                deliveries = self._deliveries(key, listed)
                found[key] = self._without_dead(key, listed, deliveries, limit)
        return self._batch(found)

    def _read_new(self, count: int, block_ms: int | None) -> Batch:
        return self._batch(self._ask(list(self._cursors), count, block_ms))

    def _ask(self, keys: list[str], count: int, block_ms: int | None) -> dict[str, list[Any]]:
        """Read from these streams behind their cursors, by stream."""
        if not keys:
            if block_ms:
                time.sleep(block_ms / 1e3)  # no stream yet
            return {}
        words: list[str | int] = ["XREADGROUP", "GROUP", *self._member, "COUNT", count]
        words += [] if block_ms is None else ["BLOCK", block_ms]
        words += ["STREAMS", *keys, *(self._cursors[key] for key in keys)]
        reply = command(self._plain, *words) or []
        pairs = reply.items() if isinstance(reply, dict) else reply
        return {key.decode(): listed for key, listed in pairs}

    def _claim(self, count: int) -> Batch:
        """Take over what other consumers have left for too long; looked for now and then.

        Not with XAUTOCLAIM, which would count what this consumer is working on as given once more.
        """
        now_ms = time.monotonic_ns() // 1_000_000
        if now_ms < self._claim_at_ms:
            return Batch()
        group, consumer = self._member
        idle_ms = self._settings.claim_idle_ms
        found: dict[str, list[Any]] = {}  # Any: as above
        for key in self._cursors:
            start = self._claims.get(key, "-")
            words = ("XPENDING", key, group, "IDLE", idle_ms, start, "+", count)
            listed = command(self._plain, *words)
            self._claims[key] = f"({listed[-1][0].decode()}" if len(listed) == count else "-"
            left = {it[0]: it[3] for it in listed if (key, it[0]) not in self._held}
            if left:
                claimed = command(self._plain, "XCLAIM", key, group, consumer, idle_ms, *left)
                found[key] = self._without_dead(key, claimed, left, self._settings.max_deliveries)
        if all(start == "-" for start in self._claims.values()):
            self._claim_at_ms = now_ms + idle_ms // 2  # looked at all of them
        return self._batch(found)

    def _deliveries(self, key: str, listed: list[Any]) -> dict[bytes, int]:
        """Return how often entries of this consumer were given."""
        group, consumer = self._member
        first, last = listed[0][0], listed[-1][0]
        words = ("XPENDING", key, group, first, last, len(listed), consumer)
        return {found[0]: found[3] for found in command(self._plain, *words)}

    def _without_dead(
        self, key: str, listed: list[Any], deliveries: Mapping[bytes, int], limit: int
    ) -> list[Any]:
        """Return entries without those that were given `limit` times, which are buried."""
        alive = []
        for entry in listed:
            if entry is None:
                self.gone += 1  # Redis 6.2 lists what was deleted as nil, and forgets its id
            elif entry[1] and deliveries.get(entry[0], 0) >= limit:
                self._bury(key, entry, deliveries[entry[0]])
            else:
                alive.append(entry)
        return alive

    def _bury(self, key: str, entry: Any, deliveries: int) -> None:
        # Any: redis-py's stubs make the mapping's types invariant
        letter: dict[Any, Any] = {FIELD: entry[1][1], b"stream": key, b"id": entry[0]}
        letter[b"deliveries"] = deliveries
        # One after the other: after a crash between the two it is buried twice, and not lost.
        self._client.xadd(
            dead_key(self._name, self._member[0]), letter, maxlen=MAX_DEAD, approximate=True
        )
        self._client.xack(key, self._member[0], entry[0])
        self.dead += 1

    def _batch(self, found: dict[str, list[Any]]) -> Batch:
        """Decode and count entries, by stream."""
        batch = Batch()
        for key, listed in found.items():
            if not listed:
                continue
            batch.ids[key] = ids = [entry[0] for entry in listed]
            self._held.update((key, raw_id) for raw_id in ids)
            present = [entry[1] for entry in listed if entry[1]]
            self.gone += len(listed) - len(present)
            documents = Documents.of(fields[1] for fields in present if fields[0] == FIELD)
            batch.records += self._tally.predictions(key, documents.predictions)
            batch.labels += [x for x in documents.labels if self._tally.label(x, key)]
            for audit in documents.audits:
                self._tally.audit(audit, key)
            batch.audits += documents.audits
            self._tally.unreadable += documents.unreadable
        return batch


def _before(first: str) -> str:
    """Return the id that comes before the first one that a window begins with."""
    if first in ("-", "0", _OLDEST):
        return _OLDEST
    if first.startswith("(") or first == "$":
        return first.removeprefix("(")
    ms, _, seq = first.partition("-")
    if seq and int(seq):
        return f"{ms}-{int(seq) - 1}"
    return f"{int(ms) - 1}-{_LAST_SEQ}" if int(ms) else _OLDEST
