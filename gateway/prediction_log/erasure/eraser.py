"""Carries an erasure out, from the tombstone to Redis' own files. The command's side; blocking.

Knows the order of the steps (tombstone.py says why it is this one) and what is left when one of
them cannot be done. Each step may be interrupted and done again: an erasure whose tombstone is open
is taken up by the next run for the same subject and names.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import redis

from gateway.prediction_log.erasure import gaps, persistence, tombstone
from gateway.prediction_log.erasure.lock import Lock
from gateway.prediction_log.erasure.persistence import NotRewritten, Rewritten
from gateway.prediction_log.erasure.rebuild import RebuildFailed, drop_leftovers, rebuild
from gateway.prediction_log.erasure.request import Request
from gateway.prediction_log.erasure.roll_call import RollCall
from gateway.prediction_log.erasure.search import Place, Search, places
from gateway.prediction_log.erasure.sought import Sought
from gateway.prediction_log.erasure.spools import Spools
from gateway.prediction_log.erasure.tombstone import Found, Tombstone
from gateway.prediction_log.privacy.key_store import destroy_keys
from gateway.prediction_log.streams import NAMES_KEY, StreamKind

_PER_COMMAND: Final = 1_000

Say = Callable[[str], None]
"""Told what is being done, for a person."""


@dataclass(slots=True)
class Outcome:
    """What was done."""

    erasure: str = ""
    begun_ms: int = 0
    ended_ms: int = 0
    records: dict[StreamKind, int] = field(default_factory=dict)
    """Destroyed in streams; of a dry run: found in them."""
    requests: int = 0
    """Whose records were found, anywhere."""
    spooled: int = 0
    """Blobs destroyed in spools of gateways that do not run; those that run do not say."""
    sealing_keys: int = 0
    files: int = 0
    streams_rebuilt: int = 0
    acknowledged: set[str] = field(default_factory=set)
    done_here: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    servers: list[Rewritten] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What could not be done."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to be done."""
        return not self.left


class Eraser:
    """One run.

    Args:
        client: of the Redis that the log is in.
        request: what to erase.
        keys: of the Redis that keeps the sealing keys; may be `client`.
        spools: the folders at hand; None: none are.
        say: told of each step.
    """

    def __init__(
        self,
        client: redis.Redis,
        request: Request,
        *,
        keys: redis.Redis,
        spools: Spools | None,
        say: Say = lambda sentence: None,
    ) -> None:
        self._client = client
        self._request = request
        self._keys = keys
        self._say = say
        self._lock = Lock(client, wait_s=request.timeout_s)
        self._tombstone = Tombstone(id="", begun_ms=0)
        self._sought = Sought(self._tombstone)
        self._search = Search(client, self._sought, self._lock.extend)
        self._roll = RollCall(client, spools, request, self._lock.extend, say, self._note)
        self._spools = spools
        self._files: set[str] = set()
        self.outcome = Outcome()

    def dry_run(self) -> Outcome:
        """Count what stands in the streams, and change nothing."""
        tags = list(self._request.tags)
        one = Tombstone(id="", begun_ms=0, tags=tags, names=list(self._request.names))
        search = Search(self._client, Sought(one))
        search.run(places(self._client, self._request.names))
        self.outcome.records = _by_kind(search)
        return self.outcome

    def run(self) -> Outcome:
        """Erase; what could not be done stands in the outcome.

        Raises:
            AnotherRuns: another erasure has the lock, or took it.
            redis.RedisError: Redis went away; run it again.
        """
        with self._lock:
            self._drop_leftovers()
            self._begin()
            self._destroy_keys()
            self._round()
            self._search_streams()
            # Before the round in which gateways forget for the second time: none of them goes on
            # with a key that is destroyed here.
            self._destroy_keys()
            self._round()
            self._rebuild_streams()
            self._remove_files()
            self._end()
            self._rewrite_files()
        return self.outcome

    def _drop_leftovers(self) -> None:
        names: Any = self._client.smembers(NAMES_KEY)  # Any: as redis-py types it
        for name in names:
            dropped = drop_leftovers(self._client, name.decode())
            if dropped:
                self._say(f"deleted {dropped} copies of streams that an earlier run left")

    def _begin(self) -> None:
        """Take up the tombstone of an earlier run that left something, or make one."""
        now_ms = self._now_ms()
        digests = sorted(tombstone.digest(tag) for tag in self._request.tags)
        names = sorted(self._request.names)
        one = next(
            (t for t in self._known() if not t.is_complete and _is_same(t, digests, names)),
            Tombstone(id=secrets.token_hex(16), begun_ms=now_ms, round=0),
        )
        # Tags that the key file has got since then come with them.
        self._tombstone = msgspec.structs.replace(
            one, tags=sorted(self._request.tags), digests=digests, names=names, until_ms=0
        )
        self.outcome.erasure, self.outcome.begun_ms = one.id, one.begun_ms
        self._forget_old(now_ms)
        self._sought = Sought(self._tombstone)
        self._sought.add(self._told())
        self._search = Search(self._client, self._sought, self._lock.extend)

    def _round(self) -> None:
        """Have every spool gone through."""
        one = msgspec.structs.replace(self._tombstone, round=self._tombstone.round + 1)
        self._publish(one)
        self._roll.call(one, self._sought)
        self._sought.add(self._told())

    def _search_streams(self) -> None:
        """Search all streams; find out which ids and files the subject alone has; then labels."""
        self._say("searching the streams")
        where = places(self._client, self._request.names)
        predictions = [place for place in where if place.kind is not StreamKind.LABELS]
        self._search.run(predictions)
        self._note(self._search.found)
        told, erasure = self._told(), self._tombstone.id
        self._sought.add(told)
        cids = {one.cid for one in told if one.cid}
        uris = {uri for one in told for uri in one.uris}
        shared_cids, shared_uris = self._search.shared(predictions, cids, uris)
        self._sought.cids = cids - shared_cids
        self._files = uris - shared_uris
        self._add(tombstone.cids_key(erasure), {cid.encode() for cid in self._sought.cids})
        self._add(tombstone.files_key(erasure), {uri.encode() for uri in self._files})
        self._search.run(where)
        self._note(self._search.found)

    def _rebuild_streams(self) -> None:
        where = places(self._client, self._request.names)
        self._search.run(where)  # what gateways have shipped since
        self._note(self._search.found)
        for place in where:
            if self._search.hits[place].needs_rebuild:
                self._rebuild(place)

    def _rebuild(self, place: Place) -> None:
        self._say(f"rebuilding {place.key}")
        # What was not found before stays until the next erasure: nobody would know of its labels.
        found = self._search.hits[place].found
        try:
            rebuilt = rebuild(
                self._client,
                place.name,
                place.key,
                lambda blob: self._sought.judge(blob, place.kind) in found,
                size=place.page_size,
                each_page=self._lock.extend,
            )
        except RebuildFailed as exc:
            self.outcome.left.append(str(exc))
            return
        self.outcome.streams_rebuilt += 1
        records = self.outcome.records
        records[place.kind] = records.get(place.kind, 0) + rebuilt.left_out

    def _destroy_keys(self) -> None:
        """A key opens the records of all names, so it stays where only some are erased."""
        if not self._request.names:
            destroyed = destroy_keys(self._keys, self._request.tags, self._now_ms())
            self.outcome.sealing_keys += destroyed

    def _remove_files(self) -> None:
        """Delete files here; gateways delete theirs in the second round."""
        if self._spools is not None:
            self.outcome.files = self._spools.remove_files(self._files - self._roll.uris_of_others)

    def _end(self) -> None:
        """Close the tombstone. What could not be reached finds it; what was found is forgotten."""
        outcome, one = self.outcome, self._tombstone
        outcome.left += self._roll.left()
        outcome.spooled = self._roll.destroyed
        outcome.acknowledged, outcome.done_here = self._roll.acknowledged, self._roll.done_here
        outcome.gone = self._roll.gone
        told = self._told()
        outcome.requests = len({found.rid for found in told if found.rid})
        gaps.note(self._client, told)
        outcome.ended_ms = self._now_ms()
        self._publish(one.closed(outcome.ended_ms, is_complete=outcome.is_complete))
        if outcome.is_complete:
            keys = [tombstone.acks_key(one.id, number) for number in range(1, one.round + 1)]
            keys += (tombstone.found_key(one.id), tombstone.cids_key(one.id))
            self._client.unlink(*keys, tombstone.files_key(one.id))

    def _rewrite_files(self) -> None:
        for client in {id(c): c for c in (self._client, self._keys)}.values():
            self._say("Redis rewrites its files")
            try:
                rewritten = persistence.rewrite(
                    client, timeout_s=self._request.timeout_s, each_pause=self._lock.extend
                )
            except NotRewritten as exc:
                self.outcome.left.append(str(exc))
            else:
                self.outcome.servers.append(rewritten)

    def _publish(self, one: Tombstone) -> None:
        self._tombstone = one
        self._client.hset(tombstone.TOMBSTONES_KEY, one.id, tombstone.encode(one))
        self._touch()

    def _touch(self) -> None:
        self._client.set(tombstone.STAMP_KEY, secrets.token_hex(8))

    def _known(self) -> list[Tombstone]:
        found: Any = self._client.hgetall(tombstone.TOMBSTONES_KEY)  # Any: as redis-py types it
        return [tombstone.decode(text) for text in found.values()]

    def _forget_old(self, now_ms: int) -> None:
        for one in self._known():
            if not one.is_open and one.until_ms + tombstone.KEPT_S * 1_000 < now_ms:
                self._client.hdel(tombstone.TOMBSTONES_KEY, one.id)

    def _told(self) -> set[Found]:
        """Return everything that was found by anybody, in this run and earlier ones."""
        # Any: as redis-py types it
        members: Any = self._client.smembers(tombstone.found_key(self._tombstone.id))
        return {tombstone.unpack(member) for member in members}

    def _note(self, found: Iterable[Found]) -> None:
        self._add(tombstone.found_key(self._tombstone.id), {tombstone.pack(one) for one in found})

    def _add(self, key: str, members: set[bytes]) -> None:
        ordered = sorted(members)
        for start in range(0, len(ordered), _PER_COMMAND):
            self._client.sadd(key, *ordered[start : start + _PER_COMMAND])
        if members:
            self._client.expire(key, tombstone.ROUND_KEPT_S)

    def _now_ms(self) -> int:
        now: Any = self._client.time()  # Any: as redis-py types it
        return int(now[0]) * 1_000 + int(now[1]) // 1_000


def _is_same(one: Tombstone, digests: list[bytes], names: list[str]) -> bool:
    """Whether a tombstone is of the same subject, by whatever keys there were then, and names."""
    return bool(set(one.digests) & set(digests)) and one.names == names


def _by_kind(search: Search) -> dict[StreamKind, int]:
    counts: dict[StreamKind, int] = {}
    for place, hits in search.hits.items():
        counts[place.kind] = counts.get(place.kind, 0) + hits.records
    return counts


__all__ = ["Eraser", "Outcome", "Request"]
