"""Routes in the files of one folder, for a gateway without Redis; the same contract as in Redis.

One process at a time has the folder. All file work runs in one thread of the store's own, one call
after the other, so that comparing and setting cannot come apart; the event loop never waits for a
disk. A write has been made when it is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from gateway.route_control import durable
from gateway.route_control.journal import Journal, Kept, route_of
from gateway.route_control.revision import Change, StoredRevision
from gateway.route_control.store import (
    FORGOTTEN_AFTER_S,
    KEPT_AUDIT_ENTRIES,
    KEPT_REVISIONS,
    Head,
    StoreDown,
)

_LOCK: Final = "lock"
_P = ParamSpec("_P")
_T = TypeVar("_T")


class StoreLocked(Exception):
    """Another gateway keeps its routes in this folder."""

    def __init__(self, folder: Path, owner: str) -> None:
        by = f" (process {owner})" if owner else ""
        super().__init__(f"{folder} is in use by another gateway{by}; give each one its own")
        self.folder = folder


class FileRouteStore:
    """Implements RouteStore. Made by `open`; may be used by many tasks.

    Cancellation: whoever is cancelled while it waits for a write does not know whether it was made,
    as after StoreDown.
    """

    def __init__(self, folder: Path, kept: Kept) -> None:
        """Touches nothing; see `open`."""
        self._folder = folder
        self._kept = kept
        self._journals: dict[str, Journal] = {}
        self._lock: int | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="route-store")

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        kept_revisions: int = KEPT_REVISIONS,
        kept_audit_entries: int = KEPT_AUDIT_ENTRIES,
    ) -> FileRouteStore:
        """Make the folder, lock it, and read what is there.

        Raises:
            StoreLocked: another gateway has it.
            StoreDown: it cannot be made, read or written.
        """
        store = cls(folder, Kept(revisions=kept_revisions, audit_entries=kept_audit_entries))
        try:
            await store._in_thread(store._take_folder)
        except BaseException:  # cancelled as well: nobody else could give the folder back
            await store.close()
            raise
        return store

    async def heads(self) -> dict[str, Head]:
        """See RouteStore."""
        return await self._in_thread(self._heads)

    async def read(self, name: str) -> StoredRevision | None:
        """See RouteStore."""
        return await self._in_thread(self._read, name)

    async def write(self, change: Change) -> None:
        """See RouteStore."""
        await self._in_thread(self._write, change)

    async def revision(self, name: str, number: int) -> StoredRevision | None:
        """See RouteStore."""
        return await self._in_thread(self._revision, name, number)

    async def history(self, name: str, limit: int) -> list[StoredRevision]:
        """See RouteStore."""
        return await self._in_thread(self._history, name, limit)

    async def audit(self, name: str, *, limit: int) -> list[bytes]:
        """See RouteStore."""
        return await self._in_thread(self._audit, name, limit)

    async def close(self) -> None:
        """Finish what is under way and give the folder back. Idempotent."""
        try:
            with contextlib.suppress(StoreDown):  # closed already
                await self._in_thread(self._give_folder_back)
        finally:
            self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            future = self._thread.submit(work, *args, **kwargs)
        except RuntimeError as exc:
            raise StoreDown("the store is closed") from exc
        try:
            return await asyncio.wrap_future(future)
        except OSError as exc:
            raise StoreDown(f"{self._folder}: {exc}") from exc

    # In the thread.

    def _take_folder(self) -> None:
        durable.make_folder(self._folder)
        path = self._folder / _LOCK
        try:
            self._lock = durable.lock(path, wait=False)
        except BlockingIOError as exc:
            owner = path.read_text(encoding="utf-8", errors="replace").strip()
            raise StoreLocked(self._folder, owner) from exc
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        for file in sorted(self._folder.iterdir()):
            if file.name.endswith(durable.PARTIAL):
                file.unlink()
            elif (name := route_of(file.name)) is not None:
                self._journals[name] = Journal(self._folder, name, self._kept)

    def _give_folder_back(self) -> None:
        self._journals.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _heads(self) -> dict[str, Head]:
        found = {name: journal.head for name, journal in self._journals.items()}
        return {name: head for name, head in sorted(found.items()) if head is not None}

    def _read(self, name: str) -> StoredRevision | None:
        journal = self._journals.get(name)
        return journal.current() if journal else None

    def _write(self, change: Change) -> None:
        name = change.after.name
        journal = self._journals.get(name) or Journal(self._folder, name, self._kept)
        journal.write(change)
        self._journals[name] = journal

    def _revision(self, name: str, number: int) -> StoredRevision | None:
        journal = self._journals.get(name)
        return journal.revision(number) if journal else None

    def _history(self, name: str, limit: int) -> list[StoredRevision]:
        journal = self._journals.get(name)
        return journal.history(limit) if journal else []

    def _audit(self, name: str, limit: int) -> list[bytes]:
        journal = self._journals.get(name)
        return journal.audit(limit) if journal else []


class InProcessBoard:
    """Implements ReplicaBoard for the replicas of one process: usually the one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds that only grow."""
        self._clock = clock
        self._reports: dict[str, tuple[float, bytes]] = {}

    async def report(self, replica: str, report: bytes) -> None:
        """See ReplicaBoard."""
        self._reports[replica] = (self._clock(), report)

    async def replicas(self) -> dict[str, tuple[float, bytes]]:
        """See ReplicaBoard."""
        now_s = self._clock()
        ages = {who: (now_s - at_s, what) for who, (at_s, what) in self._reports.items()}
        return {who: aged for who, aged in ages.items() if aged[0] <= FORGOTTEN_AFTER_S}

    async def withdraw(self, replica: str) -> None:
        """See ReplicaBoard."""
        self._reports.pop(replica, None)


class NoHints:
    """Implements ChangeHints where changes come from this process only, which says so."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Say that something changed. Call it on the event loop."""
        self._changed.set()

    async def next(self, timeout_s: float) -> bool:
        """See ChangeHints."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True
