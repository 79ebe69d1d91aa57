"""Route stores for tests: the real ones, and the changes that are written into them."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

import redis

from gateway.demo.redis_server import RedisServer
from gateway.route_control.file_store import FileRouteStore
from gateway.route_control.journal import file_name
from gateway.route_control.redis_store import RedisRouteStore, doc_key
from gateway.route_control.revision import Change, Position, StoredRevision
from gateway.route_control.store import Head, RouteStore, StoreDown

NAME: Final = "digits"
_T = TypeVar("_T")


def change(
    revision: int,
    *,
    name: str = NAME,
    generation: int = 1,
    expected: Position | None = None,
    body: bytes | None = None,
    by: str = "ann",
) -> Change:
    """Return a change; without `body` one that says where it stands and who made it."""
    text = f'{{"at": "{generation}-{revision}", "by": "{by}"}}'.encode()
    return Change.of(
        name,
        (generation, revision),
        text if body is None else body,
        expected=expected,
        audit=f'{{"by": "{by}", "to": {revision}, "generation": {generation}}}'.encode(),
    )


def following(current: StoredRevision, *, by: str = "ann") -> Change:
    """Return a change to the next revision."""
    return change(
        current.revision + 1,
        name=current.name,
        generation=current.generation,
        expected=current.position,
        by=by,
    )


async def write_row(store: RouteStore, last: int, *, name: str = NAME) -> list[Change]:
    """Write revisions 1 to `last`, one after the other."""
    changes = [
        change(number, name=name, expected=(1, number - 1) if number > 1 else None)
        for number in range(1, last + 1)
    ]
    for each in changes:
        await store.write(each)
    return changes


class Place(Protocol):
    """Where one test keeps its routes; outlives the store that is opened on it."""

    def open(
        self, *, kept_revisions: int = 1_000, kept_audit_entries: int = 10_000
    ) -> AsyncIterator[RouteStore]:
        """Yield a store on what is there. (Made a context manager by `opened`.)"""
        ...

    def damage(self, name: str) -> None:
        """Change one byte of the body of a route's current revision, behind the store's back."""
        ...


class RedisPlace:
    """A real Redis server."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def open(
        self, *, kept_revisions: int = 1_000, kept_audit_entries: int = 10_000
    ) -> AsyncIterator[RouteStore]:
        """See Place."""
        store = RedisRouteStore(
            self._server.url,
            timeout_s=5.0,
            kept_revisions=kept_revisions,
            kept_audit_entries=kept_audit_entries,
        )
        try:
            yield store
        finally:
            await store.close()

    def damage(self, name: str) -> None:
        """See Place."""
        with redis.Redis.from_url(self._server.url) as client:
            body = client.hget(doc_key(name), "body")
            assert isinstance(body, bytes)
            client.hset(doc_key(name), "body", bytes([body[0] ^ 1]) + body[1:])


class FilePlace:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def open(
        self, *, kept_revisions: int = 1_000, kept_audit_entries: int = 10_000
    ) -> AsyncIterator[RouteStore]:
        """See Place."""
        store = await FileRouteStore.open(
            self._folder, kept_revisions=kept_revisions, kept_audit_entries=kept_audit_entries
        )
        try:
            yield store
        finally:
            await store.close()

    def damage(self, name: str) -> None:
        """See Place."""
        path = self._folder / file_name(name)
        data = bytearray(path.read_bytes())
        line_at = data.rindex(b"sluice-route/1 ")
        data[data.index(b"\n", line_at) + 1] ^= 1
        path.write_bytes(data)


@asynccontextmanager
async def opened(
    place: Place, *, kept_revisions: int = 1_000, kept_audit_entries: int = 10_000
) -> AsyncIterator[RouteStore]:
    """Open a store on a place for the block."""
    opening = asynccontextmanager(place.open)
    async with opening(
        kept_revisions=kept_revisions, kept_audit_entries=kept_audit_entries
    ) as store:
        yield store


def allow(client: redis.Redis, user: str, *rules: str) -> None:
    """Make a user with the password "secret" who may do all but what the rules take away."""
    rest = ("on", ">secret", "~*", "&*", "+@all", *rules)
    client.execute_command("ACL", "SETUSER", user, "reset", *rest)  # type: ignore[no-untyped-call]


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Make the kernel refuse to let files of this process grow further: the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TroubledStore:
    """A real store, and between it and its caller whatever a test wants to go wrong.

    Implements RouteStore.
    """

    def __init__(self, store: RouteStore) -> None:
        self.store = store
        self.calls: list[str] = []
        """Names of the methods that were called, in order."""
        self.down: set[str] = set()
        """Methods that cannot reach the store; "*": none can."""
        self.loses_replies = False
        """Writes are made, and then nobody hears of it."""
        self.fault: Exception | None = None
        """Raised by `heads`."""
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        """Waited for before a method reaches the store."""
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        """Waited for before the store's answer reaches the caller."""

    async def _pass(self, method: str, answer: Callable[[], Awaitable[_T]]) -> _T:
        self.calls.append(method)
        if method in self.before:
            await self.before[method]()
        if self.down & {method, "*"}:
            raise StoreDown("the test cut the line")
        found = await answer()
        if method in self.after:
            await self.after[method]()
        return found

    async def heads(self) -> dict[str, Head]:
        """See RouteStore."""
        if self.fault is not None:
            raise self.fault
        return await self._pass("heads", self.store.heads)

    async def read(self, name: str) -> StoredRevision | None:
        """See RouteStore."""
        return await self._pass("read", lambda: self.store.read(name))

    async def write(self, change: Change) -> None:
        """See RouteStore."""
        await self._pass("write", lambda: self.store.write(change))
        if self.loses_replies:
            raise StoreDown("the reply was lost")

    async def revision(self, name: str, number: int) -> StoredRevision | None:
        """See RouteStore."""
        return await self._pass("revision", lambda: self.store.revision(name, number))

    async def history(self, name: str, limit: int) -> list[StoredRevision]:
        """See RouteStore."""
        return await self._pass("history", lambda: self.store.history(name, limit))

    async def audit(self, name: str, *, limit: int) -> list[bytes]:
        """See RouteStore."""
        return await self._pass("audit", lambda: self.store.audit(name, limit=limit))
