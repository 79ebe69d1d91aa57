"""The Redis commands that shipping needs, and what their failures mean.

Knows keys, entry ids and the server's error words; knows no spool, no retry and no time. Every
failure leaves as one of two: `SinkDown` (try again later) or `SinkRefused` (never will). Only what
cannot be otherwise is refused: the key is no stream, or the server rejects this very record.

Why the same blocks may be sent again and again. Entries carry ids that we choose, and Redis refuses
an id that is not above the stream's last one. A script runs wholly or not at all, so what was sent
without a reply is either wholly in the stream or not in it. Sent again under the same ids it is
refused, or added, and either way it stands there once. That holds as well when a stalled server
reads the lost attempt after the repeated one: last-generated-id only grows, so the late attempt is
refused as a whole. And it holds when Redis was emptied meanwhile: the owner key is gone then, and
the late attempt writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from redis import exceptions as redis_errors

from gateway.prediction_log.shipping import fencing
from gateway.prediction_log.shipping.fencing import Claim, Outcome
from gateway.prediction_log.shipping.retention import Trim
from gateway.prediction_log.shipping.scripts import APPEND, CLAIM, RELEASE, TRIM_ORPHAN
from gateway.prediction_log.streams import (
    NAMES_KEY,
    EntryId,
    StreamKind,
    owner_key,
    schema_key,
    streams_key,
)
from gateway.redis_client import client_of

MAX_BULK_BYTES: Final = 512 << 20
"""Largest argument that Redis reads unless it is configured otherwise (proto-max-bulk-len)."""

DOWN: Final = (redis_errors.RedisError, OSError, RuntimeError)
"""What a command to a server that is not there raises; RuntimeError: uvloop, of a connection that
the server closed while it was being made."""

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
# Redis 6.2 puts '@user_script: 1: -' before the word in the errors that a script catches.
_FIRST_WORD: Final = re.compile(r"^(?:@\S+ \d+: )?-?([A-Z]+)\b")
_NO_STREAM: Final = "WRONGTYPE"
_NO_PERMISSION: Final = "user executing the script"
"""How Redis 7 says within a script that the user may not do this."""


class SinkDown(Exception):
    """Redis cannot be reached, did not answer in time, or cannot write now."""


class SinkRefused(Exception):
    """Redis answered that it will not take this, now or later."""


class Target(NamedTuple):
    """A stream, and who may write it."""

    key: str
    owner_key: str
    token: str


class Verdict(NamedTuple):
    """Why nothing was written."""

    outcome: str
    """fenced: another's by now; unowned: the owner key is gone; forgot: the stream ends too low."""
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What became of the records that were sent, in their order."""

    added: int
    doubled: int
    """Stood there already."""
    erased: int
    """Blobs of which nothing is left."""
    overtaken: tuple[int, ...]
    """Indices of records that were refused and do not stand there."""
    removed: int
    """Entries trimmed."""
    unread: int
    """Entries trimmed that some group had not been given."""
    length: int
    last: EntryId
    """Last id of the stream before the call."""
    failure: SinkDown | SinkRefused | None
    """About the record after the processed ones; nothing after it was tried."""

    @property
    def processed(self) -> int:
        """How many of the records have a fate."""
        return self.added + self.doubled + self.erased + len(self.overtaken)


class ServerMemory(NamedTuple):
    """How much a server may hold, and what it does then."""

    limit_bytes: int
    """0: none."""
    used_bytes: int
    policy: str


class RedisSink:
    """One connection to Redis for writing. Commands are awaited one at a time, by one task.

    redis-py's own retries are off: they would send a write again without anybody knowing. After a
    `SinkDown` call `disconnect`, and `connect` when it is time to try again.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Raises ValueError for a URL that redis-py does not understand."""
        self._client = client_of(url, timeout_s=timeout_s, max_connections=1)
        self._is_connected = False
        self.generation = 0
        """Counts the connections made; what was learned from an earlier one may be out of date."""
        self.max_bulk_bytes = MAX_BULK_BYTES
        self.can_trim_by_age = True

    def __repr__(self) -> str:
        return f"<RedisSink connection {self.generation}, connected: {self._is_connected}>"

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to write to, as far as is known."""
        return self._is_connected

    async def connect(self) -> None:
        """Connect, load the scripts and probe what the server can do, unless connected."""
        if not self._is_connected:
            with _translated():
                await self._client.script_load(CLAIM.source)
                await self._client.script_load(APPEND.source)
            self.max_bulk_bytes = await self._bulk_limit()
            self.can_trim_by_age = await self._trims_by_age()
            self._is_connected = True
            self.generation += 1

    async def ping(self) -> None:
        """Ask for a sign of life."""
        with _translated():
            await self._client.ping()

    async def claim(self, target: Target) -> Claim:
        """Take the name for our token, unless another has it, and learn where the stream ends."""
        with _translated():
            outcome, silent_ms, last, length, first, first_bytes, error = await self._call(
                CLAIM.sha, target.key, target.owner_key, target.token, fencing.STALE_MS
            )
            if error:
                raise _failure(_text(error))
            first_id = EntryId.parse(first) if first else None
            found = Outcome(_text(outcome))
            return Claim(found, silent_ms, EntryId.parse(last), length, first_id, first_bytes)

    async def append(
        self, target: Target, blocks: bytes, *, expected: EntryId, trim: Trim
    ) -> Appended | Verdict:
        """Write the records of whole blocks, give a sign of life, and trim; blocks may be empty.

        `expected` is an id that the stream has reached already; if it has not, Redis forgot.

        Raises:
            SinkDown: the records may nevertheless have been written, or may yet be.
            SinkRefused: the key is no stream.
        """
        # A script that is missing, which it is after every restart of Redis, ends as SinkDown:
        # connecting again loads it, and what was known about the streams is read anew.
        with _translated():
            arguments = (target.token, str(expected), blocks, *trim.arguments())
            answer = await self._call(APPEND.sha, target.key, target.owner_key, *arguments)
            outcome, added, doubled, erased, removed, unread, length, last, error, *rest = answer
            found, state, last_id = _text(error), _text(outcome), EntryId.parse(last)
        if state == "failed":
            raise _failure(found)
        if state != "ok":
            return Verdict(state, found)
        return Appended(
            added=added,
            doubled=doubled,
            erased=erased,
            overtaken=tuple(rest),
            removed=removed,
            unread=unread,
            length=length,
            last=last_id,
            failure=_failure_of_record(found) if found else None,
        )

    async def register(self, name: str, key: str, kind: StreamKind) -> None:
        """Enter a stream into the sets by which readers find it."""
        with _translated():
            await self._client.sadd(streams_key(name, kind), key)
            await self._client.sadd(NAMES_KEY, name)

    async def write_schemas(self, name: str, schemas: Mapping[bytes, bytes]) -> None:
        """Keep the names of a name's columns, by their digest."""
        if schemas:
            with _translated():
                await self._client.hset(schema_key(name), mapping=dict[Any, Any](schemas))

    async def names(self) -> set[str]:
        """Return the public names that have streams, of all replicas."""
        with _translated():
            return {_text(name) for name in await self._client.smembers(NAMES_KEY)}

    async def streams(self, name: str, kind: StreamKind) -> set[str]:
        """Return the keys of a name's streams of a kind, of all replicas."""
        with _translated():
            return {_text(key) for key in await self._client.smembers(streams_key(name, kind))}

    async def trim_orphan(self, name: str, replica: str, key: str, trim: Trim) -> int:
        """Trim another replica's stream if nobody has it any more; return how many went."""
        arguments = (key, owner_key(name, replica), str(fencing.STALE_MS))
        limits = [str(argument) for argument in trim.arguments()]
        with _translated():
            removed, _ = await self._client.eval(TRIM_ORPHAN.source, 2, *arguments, *limits)
        return int(removed)

    async def release(self, owner: str, token: str) -> None:
        """Give a name up, if it is ours."""
        with _translated():
            await self._client.eval(RELEASE.source, 1, owner, token)

    async def memory(self) -> ServerMemory | None:
        """Return what the server says about its memory; None: it does not tell."""
        with _translated():
            try:
                info = await self._client.info("memory")
            except redis_errors.ResponseError:
                return None
        policy = str(info.get("maxmemory_policy", ""))
        return ServerMemory(int(info.get("maxmemory", 0)), int(info.get("used_memory", 0)), policy)

    async def disconnect(self) -> None:
        """Give the connection up; a reply that is still under way goes with it."""
        self._is_connected = False
        with suppress(*DOWN):  # it may be broken already
            await self._client.connection_pool.disconnect()

    async def close(self) -> None:
        """Release the client. Idempotent."""
        await self.disconnect()
        await self._client.aclose()

    async def _call(self, sha: str, key: str, owner: str, *arguments: str | int | bytes) -> Any:
        # Any: the scripts' answers are lists of numbers and bytes
        return await self._client.evalsha(sha, 2, key, owner, *arguments)

    async def _bulk_limit(self) -> int:
        """Return the largest argument that the server reads; it may not be willing to say."""
        name = "proto-max-bulk-len"
        with _translated():
            try:
                return int((await self._client.config_get(name)).get(name) or MAX_BULK_BYTES)
            except redis_errors.ResponseError:
                return MAX_BULK_BYTES

    async def _trims_by_age(self) -> bool:
        """Return whether XTRIM knows MINID: on a key that is not there it changes nothing."""
        with _translated():
            try:
                await self._client.xtrim("pl:probe", minid="0-1", approximate=True)
            except redis_errors.NoPermissionError:
                return True
            except redis_errors.ResponseError as exc:
                return "syntax" not in str(exc).lower()
        return True


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what redis-py raises, and answers of a wrong shape, into SinkDown or SinkRefused."""
    try:
        yield
    except redis_errors.ResponseError as exc:
        raise _failure(str(exc), type(exc).__name__) from exc
    except DOWN as exc:
        raise SinkDown(f"{type(exc).__name__}: {exc}") from exc
    except (TypeError, ValueError, AttributeError) as exc:
        raise SinkDown(f"the server's answer makes no sense: {exc}") from exc


def _failure(text: str, kind: str = "") -> SinkDown | SinkRefused:
    if _NO_STREAM in text:
        return SinkRefused(text)
    return SinkDown(f"{kind}: {text}" if kind else text)


def _failure_of_record(text: str) -> SinkDown | SinkRefused:
    word = _FIRST_WORD.match(text)
    is_temporary = (word and word[1] in _TEMPORARY) or _NO_PERMISSION in text
    return SinkDown(text) if is_temporary else SinkRefused(text)


def _text(raw: bytes | str) -> str:
    return (raw.decode(errors="replace") if isinstance(raw, bytes) else raw).strip()
