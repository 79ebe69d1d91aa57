"""Appends that wait for room, in order and for a bounded time: `on_full = "block"`.

Knows no files: it is handed what to try again. Event loop's thread only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Final, NamedTuple

from gateway.prediction_log.spool.store import Done, DropReason, Group

RETRY_S: Final = 0.01
"""How often room is looked for while somebody waits for it."""

FOR_WANT_OF_ROOM: Final = (DropReason.DISK_FULL, DropReason.SPOOL_CAP)
"""Reasons for which waiting may help."""
Try = Callable[[Sequence[Group], int, Done], DropReason | None]
"""Append, or return why not."""


class _Waiter(NamedTuple):
    groups: Sequence[Group]
    now_ms: int
    done: Done
    deadline_s: float
    records: int
    size_bytes: int


class Waiting:
    """The queue of those that wait. Bounded by records and bytes: over it they are refused."""

    def __init__(
        self,
        attempt: Try,
        *,
        max_s: float,
        max_records: int,
        max_bytes: int,
        waited_for: Container[DropReason] = FOR_WANT_OF_ROOM,
    ) -> None:
        self._attempt = attempt
        self._waited_for = waited_for
        self._max_s = max_s
        self._room_records = max_records
        self._room_bytes = max_bytes
        self._queue: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, groups: Sequence[Group], now_ms: int, done: Done) -> None:
        """Let an append wait for its turn, or tell it that the queue is full."""
        records = sum(len(group.blobs) for group in groups)
        size_bytes = sum(len(blob) for group in groups for blob in group.blobs)
        if records > self._room_records:
            done(DropReason.QUEUE_RECORDS)
        elif size_bytes > self._room_bytes:
            done(DropReason.QUEUE_BYTES)
        else:
            loop = asyncio.get_running_loop()
            deadline_s = loop.time() + self._max_s
            waiter = _Waiter(groups, now_ms, done, deadline_s, records, size_bytes)
            self._queue.append(waiter)
            self._room_records -= records
            self._room_bytes -= size_bytes
            self._arm(loop)

    def shut(self) -> None:
        """Tell all that wait that the end has come."""
        if self._timer is not None:
            self._timer.cancel()
        while self._queue:
            self._pop().done(DropReason.SHUTDOWN)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and self._queue:
            self._timer = loop.call_later(min(RETRY_S, self._max_s), self._again, loop)

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._queue:
            waiter = self._pop()  # first: whoever is told may append or shut this
            reason = self._attempt(waiter.groups, waiter.now_ms, waiter.done)
            if reason is None:
                continue
            if reason not in self._waited_for:
                waiter.done(reason)
            elif loop.time() >= waiter.deadline_s:
                waiter.done(DropReason.BLOCK_TIMEOUT)
            else:
                self._unpop(waiter)
                break
        self._arm(loop)

    def _pop(self) -> _Waiter:
        waiter = self._queue.popleft()
        self._room_records += waiter.records
        self._room_bytes += waiter.size_bytes
        return waiter

    def _unpop(self, waiter: _Waiter) -> None:
        self._queue.appendleft(waiter)
        self._room_records -= waiter.records
        self._room_bytes -= waiter.size_bytes
