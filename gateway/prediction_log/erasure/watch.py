"""A running gateway's part in erasures: it goes through its own spool, and says so.

Knows tombstones and one store; decides nothing about connections: whoever ships awaits `apply` on
every connection, before anything is shipped, and every two seconds afterwards. Read first:
tombstone.py.

Invariants:
  - nothing that a tombstone covers is shipped from a spool after `apply` has returned;
  - an acknowledgement follows upon the destruction, and what was found is told before it (what
    came in between the two, right after it).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import redis.asyncio

from gateway.ending import in_thread
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.erasure import spooled, tombstone
from gateway.prediction_log.erasure.sought import Sought
from gateway.prediction_log.erasure.tombstone import Found, Tombstone
from gateway.prediction_log.spool.store import Store

EACH_S: Final = 2.0
"""How often whoever ships calls `apply`."""
_SLOWEST_REQUEST_MS: Final = 3_600_000
"""A record is appended when its request is answered; none is assumed to take longer than this."""
_PER_COMMAND: Final = 1_000

_log = logging.getLogger(__name__)


T = TypeVar("T")


async def nothing_to_settle() -> None:
    """Return at once: every record stands in the store as soon as it is offered."""


class Erasures:
    """What a gateway knows of erasures, and has done for them.

    Args:
        client: of the Redis that the log is shipped to; its owner closes it.
        replica: names the gateway, and its spool.
        store: the spool.
        on_forget: told the tags of subjects whose sealing keys must not be used any more, and their
            SHA-256: of an erasure that has ended there may be nothing else.
        settle: returns when every record offered before now stands in the store; what is still on
            its way there (a tensor being reduced) would escape.
        references: the files of large tensors; None: there are none.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        replica: str,
        store: Store,
        on_forget: Callable[[bytes], None],
        settle: Callable[[], Awaitable[None]] = nothing_to_settle,
        references: References | None = None,
    ) -> None:
        self._client = client
        self._replica = replica
        self._store = store
        self._on_forget = on_forget
        self._settle = settle
        self._references = references
        self._stamp: bytes | None = None
        """Of the tombstones as they were last seen."""
        self._done: dict[str, int] = {}
        """The last round done, by erasure."""

    async def apply(self) -> None:
        """Do what erasures ask for; costs one short exchange where there is nothing new.

        Whoever calls it neither reads from the store nor ships meanwhile.

        Raises:
            redis.RedisError: Redis does not answer; nothing may be shipped before this succeeds.
            OSError: the spool could not be overwritten; likewise.
        """
        stamp = await self._look()
        if stamp == self._stamp:
            return
        due = await self._due()
        if due:
            await self._carry_out(due)
        self._stamp = stamp

    async def leave(self, *, keeps_spool: bool) -> None:
        """Say that this gateway ends: an erasure need not wait for it.

        Args:
            keeps_spool: whether its records outlive it.

        Raises:
            redis.RedisError: Redis does not answer; it will find out by itself.
        """
        await self._client.delete(tombstone.alive_key(self._replica))
        if not keeps_spool:
            await self._await(self._client.srem(tombstone.REPLICAS_KEY, self._replica))

    async def _look(self) -> bytes:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.sadd(tombstone.REPLICAS_KEY, self._replica)
        pipeline.set(tombstone.alive_key(self._replica), self._store.token, ex=tombstone.ALIVE_S)
        pipeline.get(tombstone.STAMP_KEY)
        answers = await pipeline.execute()
        return answers[2] or b""

    async def _due(self) -> list[Tombstone]:
        """Return what has to be done; of closed ones only those that may cover what is kept."""
        known = await self._await(self._client.hgetall(tombstone.TOMBSTONES_KEY))
        due: list[Tombstone] = []
        oldest_ms: int | None = None
        for text in known.values():
            try:
                one = tombstone.decode(text)
            except msgspec.DecodeError as exc:
                _log.error("an erasure cannot be read", extra={"reason": str(exc)})
                continue
            if self._done.get(one.id, 0) >= one.round:
                continue
            if one.is_open:
                due.append(one)
            else:  # its last round was missed
                if oldest_ms is None:
                    oldest_ms = await in_thread(partial(spooled.oldest_ms, self._store))
                if oldest_ms and oldest_ms <= one.until_ms + _SLOWEST_REQUEST_MS:
                    due.append(one)
                else:
                    self._done[one.id] = one.round
                    for hashed in one.digests:
                        self._on_forget(hashed)
        return due

    async def _carry_out(self, due: list[Tombstone]) -> None:
        began_s = time.monotonic()
        await self._settle()
        sought = [await self._sought(one) for one in due]
        finding = await in_thread(partial(spooled.find, self._store, sought))
        told = [set(found) for found in finding.found]
        await self._tell_found(due, told)
        destroyed = await in_thread(partial(spooled.destroy, self._store, finding))
        late = [found - before for found, before in zip(finding.found, told, strict=True)]
        await self._tell_found(due, late)
        for tag in finding.key_tags.union(*(one.tags for one in sought)):
            self._on_forget(tag)
        for hashed in {hashed for one in due for hashed in one.digests}:
            self._on_forget(hashed)
        for one, found in zip(due, finding.found, strict=True):
            uris = {uri for record in found for uri in record.uris}
            await self._remove_files(await self._files(one, uris) - finding.uris_of_others)
            await self._acknowledge(one)
        extra = {"erasures": len(due), "blobs": destroyed, "s": time.monotonic() - began_s}
        _log.info("spool gone through for erasures", extra=extra)

    async def _tell_found(self, due: Sequence[Tombstone], found: Sequence[set[Found]]) -> None:
        for one, records in zip(due, found, strict=True):
            if one.is_open:
                members = [tombstone.pack(record) for record in records]
                await self._tell(tombstone.found_key(one.id), members)

    async def _sought(self, one: Tombstone) -> Sought:
        sought = Sought(one)
        if not one.is_complete:
            members = await self._await(self._client.smembers(tombstone.found_key(one.id)))
            sought.add(tombstone.unpack(member) for member in members)
            members = await self._await(self._client.smembers(tombstone.cids_key(one.id)))
            sought.cids.update(member.decode() for member in members)
        return sought

    async def _files(self, one: Tombstone, uris: set[str]) -> set[str]:
        """Return the files to delete: the command knows of an open one who else refers to them."""
        if not one.is_open:
            return uris
        members = await self._await(self._client.smembers(tombstone.files_key(one.id)))
        return {member.decode() for member in members}

    async def _remove_files(self, uris: set[str]) -> None:
        references = self._references
        if references is not None:
            for uri in uris:
                await in_thread(partial(references.remove, uri))

    async def _acknowledge(self, one: Tombstone) -> None:
        if one.is_open:
            key = tombstone.acks_key(one.id, one.round)
            await self._tell(key, [self._replica.encode()])
        self._done[one.id] = one.round

    async def _tell(self, key: str, members: list[bytes]) -> None:
        for start in range(0, len(members), _PER_COMMAND):
            some = members[start : start + _PER_COMMAND]
            await self._await(self._client.sadd(key, *some))
        if members:
            await self._client.expire(key, tombstone.ROUND_KEPT_S)

    async def _await(self, command: Any) -> Any:
        # Any: redis-py types these commands as awaitable or not, and their replies by command.
        return await command
