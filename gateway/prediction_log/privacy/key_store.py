"""The wrapped keys of subjects in Redis: put there by the shipper, destroyed by an erasure.

Knows key blobs and one hash, `pl:keys`; holds no key that opens them. Two kinds of field:

    <tag hex>:<key id hex>   a key blob
    <SHA-256 of tag, hex>    ms since the epoch: no key of this subject made until then comes back

The second is the tombstone, which outlives the erasure and so does not hold the tag. A key blob may
be sent long after it was made, and again: by a spool that is shipped late, or once more to a Redis
that forgot. Without the tombstone that would bring a destroyed key back to life.

What a deletion does not reach: see docs/privacy.md (append-only files, snapshots, backups of the
Redis that keeps the keys).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from types import TracebackType
from typing import Final

import redis
import redis.asyncio

from gateway.prediction_log.privacy.seal import MAX_KEY_AGE_MS, Unsealable, parse_blob
from gateway.prediction_log_config import RetentionConfig
from gateway.redis_client import client_of

KEYS_KEY: Final = "pl:keys"
_SCAN_COUNT: Final = 1_000
_STONES_KEPT_MS: Final = 400 * 86_400_000
"""How long a tombstone waits for key blobs that come late, beyond the keys' own time."""

_log = logging.getLogger(__name__)

# KEYS[1] the hash; ARGV: tombstone's field, key's field, when it was made, blob.
_PUT: Final = """
local destroyed = redis.call('HGET', KEYS[1], ARGV[1])
if destroyed and tonumber(destroyed) >= tonumber(ARGV[3]) then return 0 end
return redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[4])
"""
# KEYS[1] the hash; ARGV: tombstone's field, ms. It only ever grows.
_ENTOMB: Final = """
local before = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if before < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return 0
"""


def needed_from_ms(retention: RetentionConfig, now_ms: int) -> int:
    """Return when the oldest key was made whose records can still stand; 0: any may.

    A record comes in on the last day of its key, and stays for the retention and its grace.
    """
    if not retention.for_s:
        return 0
    kept_ms = (retention.for_s + retention.grace_s) * 1_000
    return now_ms - kept_ms - 2 * MAX_KEY_AGE_MS  # a day for clocks, and for what is late


def key_field(tag: bytes, key_id: bytes) -> str:
    """Return the field of a subject's key."""
    return f"{tag.hex()}:{key_id.hex()}"


def tombstone_field(tag: bytes) -> str:
    """Return the field of a subject's tombstone."""
    return sha256(tag).hexdigest()


class KeyStore:
    """Puts wrapped keys into Redis. One event loop; close it.

    Raises ValueError for a URL that redis-py does not understand. Its methods raise RedisError
    where Redis cannot be reached, and may have been carried out in part: putting a key twice is the
    same as once.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._client = client_of(url, timeout_s=timeout_s)

    async def put(self, blobs: Sequence[bytes]) -> int:
        """Keep wrapped keys; return how many are new. In one round trip.

        Those that are there, or were destroyed, stay as they are. What is no key blob is logged and
        left out: nobody could ever open anything with it, and what waits behind it has to go on.
        """
        with_keys = self._client.pipeline(transaction=False)
        for blob in blobs:
            try:
                key = parse_blob(blob)
            except Unsealable as exc:
                _log.error("a wrapped key is left out: %s", exc)
                continue
            field = key_field(key.tag, key.key_id)
            with_keys.eval(
                _PUT, 1, KEYS_KEY, tombstone_field(key.tag), field, str(key.made_ms), blob
            )
        return sum(await with_keys.execute()) if len(with_keys) else 0

    async def prune(self, before_ms: int) -> int:
        """Delete the keys made before a time, and tombstones that are old; return how many.

        Reads the whole hash, a page at a time. Any number of gateways may do it.
        """
        stones_before_ms = before_ms - _STONES_KEPT_MS
        due: list[str] = []
        async for field, value in self._client.hscan_iter(KEYS_KEY, count=_SCAN_COUNT):
            if _is_due(field, value, before_ms, stones_before_ms):
                due.append(field.decode())
        for start in range(0, len(due), _SCAN_COUNT):
            await self._client.hdel(KEYS_KEY, *due[start : start + _SCAN_COUNT])
        return len(due)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> KeyStore:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def destroy_keys(client: redis.Redis, tags: Iterable[bytes], now_ms: int) -> int:
    """Destroy all keys of a subject, by whatever tags; return how many there were. Blocking.

    First the tombstones, so that none comes in meanwhile, then the keys. Reads the whole hash, once
    for all tags.
    """
    stones = {tag.hex(): tombstone_field(tag) for tag in tags}
    for stone in stones.values():
        _entomb(client, stone, now_ms)
    fields: list[str] = []
    for field, blob in _fields(client):
        tag_hex, is_key, _ = field.decode().partition(":")
        if is_key and tag_hex in stones:
            fields.append(field.decode())
            # Made by a clock ahead of ours, it would come back when its blob is sent again.
            _entomb(client, stones[tag_hex], max(parse_blob(blob).made_ms, now_ms))
    for start in range(0, len(fields), _SCAN_COUNT):
        client.hdel(KEYS_KEY, *fields[start : start + _SCAN_COUNT])
    return len(fields)


def _is_due(field: bytes, value: bytes, before_ms: int, stones_before_ms: int) -> bool:
    if b":" not in field:
        return int(value) < stones_before_ms
    try:
        return parse_blob(value).made_ms < before_ms
    except Unsealable:
        return False  # not ours to judge


def _entomb(client: redis.Redis, stone: str, at_ms: int) -> None:
    client.eval(_ENTOMB, 1, KEYS_KEY, stone, str(at_ms))


def _fields(client: redis.Redis) -> Iterator[tuple[bytes, bytes]]:
    """Yield fields and values; one that is there from start to end is met at least once."""
    yield from client.hscan_iter(KEYS_KEY, count=_SCAN_COUNT)
