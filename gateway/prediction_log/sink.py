"""The few Redis commands that the prediction log needs, and what their failures mean.

Knows keys, entry ids and the server's error words; knows no buffer, no retry and no time. Every
failure leaves as one of two: `SinkDown` (try again later) or `SinkRefused` (never will).

Why the same ids may be sent again and again. Entries carry ids that we choose, and Redis refuses an
id that is not above the stream's last one. A script runs wholly or not at all, so a batch whose
reply was lost is either wholly in the stream or not in it. Sent again under the same ids it is
refused, or added, and either way it stands there once. That holds as well when a stalled server
reads the lost attempt after the repeated one: last-generated-id only grows, so the late attempt is
refused as a whole. tests/unit/gateway/test_prediction_log_trouble.py shows it on real servers.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import redis.asyncio
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.prediction_log.streams import BEFORE_ALL, NAMES_KEY, EntryId, streams_key

FIELD: Final = b"r"
"""The one field of an entry: the blob of record.py."""

# KEYS[1] the stream; ARGV[1] the entries to keep; ARGV[2] the records, ids ascending: of each the
# two numbers of its id, the size of its blob, and the blob. One argument for all of them, because a
# client spends more on an argument than on a record. Answers {added, refused, error}. Because ids
# ascend, the refused are a prefix; `error` is about the record after the added ones, and nothing
# after it was tried. Trimming also follows an error: it is what frees memory when the error says
# that there is none.
_APPEND: Final = f"""
local added, refused, failure = 0, 0, ''
local records, at = ARGV[2], 1
while at <= #records do
  local ms, seq, blob
  ms, seq, blob, at = struct.unpack('>I8I8I4c0', records, at)
  local id = string.format('%.0f-%.0f', ms, seq)
  local reply = redis.pcall('XADD', KEYS[1], id, '{FIELD.decode()}', blob)
  if type(reply) ~= 'table' or not reply.err then
    added = added + 1
  elseif string.find(reply.err, 'equal or smaller', 1, true) then
    refused = refused + 1
  else
    failure = reply.err
    break
  end
end
redis.pcall('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1])
return {{added, refused, failure}}
"""
_APPEND_SHA: Final = hashlib.sha1(_APPEND.encode(), usedforsecurity=False).hexdigest()

MAX_ID_PART: Final = 1 << 53
"""Greatest number in an id: above it the script's numbers, which are doubles, are not exact."""
_entry_head: Final = struct.Struct(">QQI").pack

# First word of an error that is about the server's state, not about what it was sent.
_TEMPORARY: Final = frozenset(
    (
        "OOM",
        "READONLY",
        "LOADING",
        "MISCONF",
        "BUSY",
        "CLUSTERDOWN",
        "MOVED",
        "ASK",
        "TRYAGAIN",
        "MASTERDOWN",
        "NOREPLICAS",
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
        "NOSCRIPT",
    )
)
# redis-py strips the first word from the errors that it has classes for.
_TEMPORARY_CLASSES: Final = (
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    redis_errors.NoScriptError,
    redis_errors.NoPermissionError,
    redis_errors.TryAgainError,
    redis_errors.AskError,
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
)
# Redis 6.2 puts '@user_script: 1: -' before the word in the errors that a script catches.
_FIRST_WORD: Final = re.compile(r"^(?:@\S+ \d+: )?-?([A-Z]+)\b")
_NO_SUCH_KEY: Final = "no such key"


def blob_of(fields: Mapping[bytes | str, bytes | str] | None) -> bytes | None:
    """Return the record in an entry's fields; None: an entry that is not ours."""
    blob = fields.get(FIELD) if fields else None
    return blob if isinstance(blob, bytes) else None


class SinkDown(Exception):
    """Redis cannot be reached, did not answer in time, or cannot write now."""


class SinkRefused(Exception):
    """Redis answered that it will not take this, now or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What became of one batch: refused, then added, then the one that failed and the untried."""

    refused: int
    added: int
    failure: SinkDown | SinkRefused | None


class RedisSink:
    """One connection to Redis for writing. Commands are awaited one at a time, by one task.

    redis-py's own retries are off: they would send a write again without anybody knowing. After a
    `SinkDown` call `disconnect`, and `connect` when it is time to try again.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Raises ValueError for a URL that redis-py does not understand."""
        self._client = redis.asyncio.Redis.from_url(
            url,
            decode_responses=False,
            max_connections=1,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
        )
        self._is_connected = False
        self.generation = 0
        """Counts the connections made; what was learned from an earlier one may be out of date."""

    async def connect(self) -> None:
        """Connect and load the script, unless connected."""
        if not self._is_connected:
            with _translated():
                await self._client.script_load(_APPEND)
            self._is_connected = True
            self.generation += 1

    async def ping(self) -> None:
        """Ask for a sign of life."""
        with _translated():
            await self._client.ping()

    async def register(self, name: str, key: str, *, is_shadow: bool) -> None:
        """Enter a stream into the sets by which readers find it."""
        with _translated():
            await self._client.sadd(streams_key(name, is_shadow=is_shadow), key)
            await self._client.sadd(NAMES_KEY, name)

    async def last_id(self, key: str) -> EntryId:
        """Return the stream's last-generated-id; entries that are trimmed still count."""
        with _translated():
            try:
                info = await self._client.xinfo_stream(key)
            except redis_errors.ResponseError as exc:
                if _NO_SUCH_KEY in str(exc):
                    return BEFORE_ALL
                raise
        return EntryId.parse(info["last-generated-id"])

    async def append(
        self, key: str, entries: Sequence[tuple[EntryId, bytes]], *, max_entries: int
    ) -> Appended:
        """Write a batch whose ids ascend, then trim.

        Raises:
            SinkDown: the batch may nevertheless have been written, or may yet be.
            SinkRefused: ids beyond MAX_ID_PART, which follow upon such ids of another writer's.
        """
        if entries and max(entries[-1][0]) > MAX_ID_PART:
            raise SinkRefused(f"entry id {entries[-1][0]} is beyond {MAX_ID_PART}")
        pieces: list[bytes] = []
        for (ms, seq), blob in entries:
            pieces += (_entry_head(ms, seq, len(blob)), blob)
        records = b"".join(pieces)
        with _translated():
            # A script that is missing, which it is after every restart of Redis, ends as SinkDown:
            # connecting again loads it, and what was known about the streams is read anew.
            added, refused, failure = await self._client.evalsha(
                _APPEND_SHA, 1, key, max_entries, records
            )
        text = failure.decode(errors="replace").strip()
        return Appended(refused=refused, added=added, failure=_failure(text) if text else None)

    async def blobs(self, key: str, first: EntryId, last: EntryId) -> dict[EntryId, bytes]:
        """Return the records that stand in the stream between two ids, both included."""
        with _translated():
            found = await self._client.xrange(key, str(first), str(last)) or []
        return {EntryId.parse(i): blob for i, f in found if i and (blob := blob_of(f)) is not None}

    async def disconnect(self) -> None:
        """Give the connection up; a reply that is still under way goes with it."""
        self._is_connected = False
        try:
            await self._client.connection_pool.disconnect()
        except (redis_errors.RedisError, OSError):
            return  # it was broken already

    async def close(self) -> None:
        """Release the client. Idempotent."""
        await self.disconnect()
        await self._client.aclose()


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what redis-py raises into SinkDown or SinkRefused."""
    try:
        yield
    except redis_errors.ResponseError as exc:
        if isinstance(exc, _TEMPORARY_CLASSES):
            raise SinkDown(f"{type(exc).__name__}: {exc}") from exc
        raise _failure(str(exc)) from exc
    except (redis_errors.RedisError, OSError) as exc:
        raise SinkDown(f"{type(exc).__name__}: {exc}") from exc


def _failure(text: str) -> SinkDown | SinkRefused:
    word = _FIRST_WORD.match(text)
    return SinkDown(text) if word and word[1] in _TEMPORARY else SinkRefused(text)
