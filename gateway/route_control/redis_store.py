"""Routes in Redis: documents, history and audit, and the board on which replicas report.

One Lua script makes a change: it compares, then writes document, history, audit entry and names,
then publishes. Redis runs a script alone, and what it may refuse (memory, disk, being a read-only
replica) it refuses at the script's first write, so a change is made wholly or not at all. Works on
one Redis 6.2 or later, or Valkey; not on a cluster, where the keys of a route and the set of names
live in different slots.

redis-py's own retries are off: nothing is ever sent twice, except a script that the server says it
does not know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis import exceptions as redis_errors

from gateway.redis_client import client_of
from gateway.route_control import frame, redis_scripts
from gateway.route_control.redis_scripts import Script
from gateway.route_control.revision import (
    Change,
    Position,
    StoredRevision,
    is_route_name,
    number_in,
)
from gateway.route_control.store import (
    FORGOTTEN_AFTER_S,
    KEPT_AUDIT_ENTRIES,
    KEPT_REVISIONS,
    CorruptRevision,
    Head,
    Stale,
    StoreDown,
)

NAMES_KEY: Final = "rt:names"
"""Set of the names of all routes."""
REPLICAS_KEY: Final = "rt:replicas"
"""Hash: replica -> milliseconds of the server's clock, a space, the report."""
CHANNEL: Final = "rt:changed"
"""Where changes are announced: "name generation revision"."""
AUDIT_FIELD: Final = b"e"
"""The one field of an entry in an audit stream."""
_CONNECTIONS: Final = 8
_HEAD_FIELDS: Final = ("generation", "rev", "digest")
_FIELDS: Final = (*_HEAD_FIELDS, "body", "audit")

_WRONG_TYPE: Final = "WRONGTYPE"

_Reply = Any  # what redis-py returns depends on the command; each caller knows its own


def doc_key(name: str) -> str:
    """Return the key of the hash that is a route's current revision."""
    return f"rt:{{{name}}}:doc"


def history_key(name: str) -> str:
    """Return the key of the hash of a route's revisions, by "generation-revision"."""
    return f"rt:{{{name}}}:hist"


def audit_key(name: str) -> str:
    """Return the key of the stream of a route's audit entries."""
    return f"rt:{{{name}}}:audit"


_log = logging.getLogger(__name__)


class RedisRouteStore:
    """Implements RouteStore and ReplicaBoard. May be used by many tasks of one event loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 1.0,
        kept_revisions: int = KEPT_REVISIONS,
        kept_audit_entries: int = KEPT_AUDIT_ENTRIES,
    ) -> None:
        """Connects at its first command. Raises ValueError for a URL that redis-py does not know.

        Args:
            url: of one Redis server.
            timeout_s: the longest that any one call takes, waiting for a connection included.
            kept_revisions: newest revisions of each route that stay in its history.
            kept_audit_entries: newest audit entries of each route; Redis keeps up to some more.
        """
        self._client = client_of(url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._kept = (kept_revisions, kept_audit_entries)
        self._connections = asyncio.Semaphore(_CONNECTIONS)
        self._known: list[str] = []

    async def heads(self) -> dict[str, Head]:
        """See RouteStore. One round trip, and a second one when there are new names."""
        async with self._translated():
            asked = self._known
            members, *found = await self._members_and_heads(asked)
            if isinstance(members, Exception):
                raise members
            names = sorted(name for raw in members if is_route_name(name := _text(raw)))
            by_name = dict(zip(asked, found, strict=True))
            new = [name for name in names if name not in by_name]
            if new:
                _, *found = await self._members_and_heads(new)
                by_name |= zip(new, found, strict=True)
            self._known = names
            heads = {name: _head(by_name[name]) for name in names}
        return {name: head for name, head in heads.items() if head is not None}

    async def read(self, name: str) -> StoredRevision | None:
        """See RouteStore."""
        async with self._translated(name):
            found: _Reply = await self._client.hmget(doc_key(name), list(_FIELDS))
        return _stored(name, found)

    async def write(self, change: Change) -> None:
        """See RouteStore."""
        after, expected = change.after, change.expected
        arguments: list[str | bytes | int] = [
            "" if expected is None else _field(expected),
            *(after.name, after.generation, after.revision, after.digest, after.body),
            *(after.audit_digest, frame.encode(after), change.audit, *self._kept, CHANNEL),
        ]
        keys = (doc_key(after.name), history_key(after.name), audit_key(after.name), NAMES_KEY)
        async with self._translated(after.name):
            outcome, *details = await self._run(redis_scripts.WRITE, keys, arguments)
        if outcome == b"stale":
            raise Stale(_stored(after.name, details[0]))
        if outcome == b"type":
            key, found = map(_text, details)
            raise CorruptRevision(after.name, f"key {key} is a {found}")

    async def revision(self, name: str, number: int) -> StoredRevision | None:
        """See RouteStore."""
        async with self._translated(name):
            positions = await self._positions(name)
            at = max((p for p in positions if p[1] == number), default=None)
            if at is None:
                return None
            data: _Reply = await self._client.hget(history_key(name), _field(at))
        return None if data is None else _kept(name, at, data)

    async def history(self, name: str, limit: int) -> list[StoredRevision]:
        """See RouteStore."""
        async with self._translated(name):
            positions = sorted(await self._positions(name), reverse=True)[: max(0, limit)]
            if not positions:
                return []
            fields = [_field(at) for at in positions]
            found: _Reply = await self._client.hmget(history_key(name), fields)
        # A revision that a newer one has pushed out since is None.
        return _intact(name, {at: d for at, d in zip(positions, found, strict=True) if d})

    async def audit(self, name: str, *, limit: int) -> list[bytes]:
        """See RouteStore."""
        if limit < 1:
            return []
        async with self._translated(name):
            found: _Reply = await self._client.xrevrange(audit_key(name), count=limit)
        return [entry for _, fields in reversed(found) if (entry := fields.get(AUDIT_FIELD))]

    async def report(self, replica: str, report: bytes) -> None:
        """See ReplicaBoard."""
        async with self._translated():
            await self._run(redis_scripts.REPORT, (REPLICAS_KEY,), (replica, report))

    async def replicas(self) -> dict[str, tuple[float, bytes]]:
        """See ReplicaBoard."""
        async with self._translated():
            limit_ms = int(FORGOTTEN_AFTER_S * 1_000)
            found = await self._run(redis_scripts.REPLICAS, (REPLICAS_KEY,), (limit_ms,))
        triples = zip(found[::3], found[1::3], found[2::3], strict=True)
        return {_text(who): (int(age_ms) / 1e3, report) for who, age_ms, report in triples}

    async def withdraw(self, replica: str) -> None:
        """See ReplicaBoard."""
        async with self._translated():
            await self._client.hdel(REPLICAS_KEY, replica)

    async def close(self) -> None:
        """Release the connections. Idempotent."""
        await self._client.aclose()

    async def _members_and_heads(self, names: Sequence[str]) -> _Reply:
        """Ask for all names, and for the heads of some; what fails stands in its place."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.smembers(NAMES_KEY)
        for name in names:
            pipeline.hmget(doc_key(name), list(_HEAD_FIELDS))
        return await pipeline.execute(raise_on_error=False)

    async def _positions(self, name: str) -> list[Position]:
        fields: _Reply = await self._client.hkeys(history_key(name))
        found = (_position(_text(field)) for field in fields)
        return [at for at in found if at is not None]

    async def _run(
        self, script: Script, keys: Sequence[str], arguments: Iterable[str | bytes | int]
    ) -> _Reply:
        """Run a script by its hash; by its text where a restart made the server forget it."""
        given = (*keys, *arguments)
        try:
            return await self._client.evalsha(script.sha, len(keys), *given)
        except redis_errors.NoScriptError:
            return await self._client.eval(script.text, len(keys), *given)

    @asynccontextmanager
    async def _translated(self, name: str | None = None) -> AsyncIterator[None]:
        """Keep a call to its time; turn what redis-py raises into our own errors."""
        try:
            async with asyncio.timeout(self._timeout_s), self._connections:
                yield
        except redis_errors.ResponseError as exc:
            if name is not None and _WRONG_TYPE in str(exc):
                raise CorruptRevision(name, "a key of it holds something else") from exc
            raise StoreDown(f"{type(exc).__name__}: {exc}") from exc
        except TimeoutError as exc:
            raise StoreDown(f"no answer within {self._timeout_s:g} s") from exc
        except (redis_errors.RedisError, OSError) as exc:
            raise StoreDown(f"{type(exc).__name__}: {exc}") from exc


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _field(at: Position) -> str:
    return f"{at[0]}-{at[1]}"


def _position(field: str) -> Position | None:
    generation, _, revision = field.partition("-")
    numbers = number_in(generation), number_in(revision)
    return None if numbers[0] is None or numbers[1] is None else (numbers[0], numbers[1])


def _head(found: list[bytes | None] | Exception) -> Head | None:
    """Return what HMGET of _HEAD_FIELDS says; None: no such route."""
    if isinstance(found, Exception):
        if _WRONG_TYPE not in str(found):
            raise found
        return Head(generation=0, revision=0, digest="")
    generation, revision, digest = found
    if generation is revision is digest is None:
        return None
    return Head(
        generation=number_in(_text(generation or b"")) or 0,
        revision=number_in(_text(revision or b"")) or 0,
        digest=_text(digest or b""),
    )


def _stored(name: str, found: list[bytes | None]) -> StoredRevision | None:
    """Return the revision that the values of _FIELDS make. Raises CorruptRevision."""
    if all(value is None for value in found):
        return None
    missing = [field for field, value in zip(_FIELDS, found, strict=True) if value is None]
    if missing:
        raise CorruptRevision(name, f"without {', '.join(missing)}")
    generation, revision, digest, body, audit = (value or b"" for value in found)
    numbers = number_in(_text(generation)), number_in(_text(revision))
    if numbers[0] is None or numbers[1] is None:
        raise CorruptRevision(name, f"revision {revision!r} of generation {generation!r}")
    stored = StoredRevision(
        name=name,
        generation=numbers[0],
        revision=numbers[1],
        digest=_text(digest),
        body=body,
        audit_digest=_text(audit),
    )
    if not stored.is_intact:
        raise CorruptRevision(name, f"the body of {stored.etag} contradicts its digest")
    return stored


def _kept(name: str, at: Position, data: bytes) -> StoredRevision:
    """Return a revision out of the history. Raises CorruptRevision."""
    try:
        stored = frame.decode(data)
    except (frame.Torn, frame.Broken) as exc:
        raise CorruptRevision(name, f"{_field(at)} in its history: {exc}") from exc
    if (stored.name, stored.position) != (name, at):
        raise CorruptRevision(name, f"{_field(at)} in its history is {stored.name} {stored.etag}")
    return stored


def _intact(name: str, found: Mapping[Position, bytes]) -> list[StoredRevision]:
    intact = []
    for at, data in found.items():
        try:
            intact.append(_kept(name, at, data))
        except CorruptRevision as exc:
            _log.warning("corrupt revision in the history", extra={"route": name, "why": exc.why})
    return intact
