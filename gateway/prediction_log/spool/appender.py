"""Writes what is planned into segments, in the event loop or in a thread of its own.

Knows writes, and nothing of rooms, streams or ids. Whoever plans a write has given it its place; a
write that fails ends its segment there, and those that are planned behind it fail as well.

The thread takes all that is queued, writes neighbours with one call, syncs once if it is to, and
reports the round with one wake-up of the loop. Under load one round's sync takes the next round's
writes together by itself; `pause_s` keeps syncs at least that far apart, so that a slow trickle
shares them too. A single write after a pause waits for nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from gateway.prediction_log.spool.block import Block, BlockKind
from gateway.prediction_log.spool.offsets import sync_folder
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.spool.store import Done

_MAX_ROUND_BYTES: Final = 8 << 20
_segment_of: Final = attrgetter("segment")


class Write:
    """Blocks and their place. Identity matters, so it is no value."""

    __slots__ = (
        "blocks",
        "buffers",
        "done",
        "error",
        "offset",
        "segment",
        "size_bytes",
    )

    def __init__(self, segment: Segment, offset: int, done: Done) -> None:
        self.segment = segment
        self.offset = offset
        self.size_bytes = 0
        self.blocks: list[Block] = []
        self.buffers: list[bytes] = []
        """Of the blocks, one behind the other from the offset on."""
        self.done = done
        self.error: OSError | None = None

    @property
    def records(self) -> int:
        """How many it holds."""
        return sum(block.count for block in self.blocks if block.kind is BlockKind.RECORDS)


Complete = Callable[[Write], None]
"""Told, on the loop, of each write that is done or has its error set."""


class Appender(Protocol):
    """Who writes."""

    def submit(self, write: Write) -> None:
        """Write it, now or soon."""

    @property
    def queued_records(self) -> int:
        """Records of writes submitted and not completed."""

    @property
    def queued_bytes(self) -> int:
        """Bytes of the same."""

    def close(self) -> None:
        """Write all that was submitted; blocks. The last completions come on the loop."""


class LoopAppender:
    """Writes at once, where it is called."""

    queued_records = 0
    queued_bytes = 0

    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def submit(self, write: Write) -> None:
        """Write it now."""
        try:
            write.segment.write(write.buffers, write.offset, write.size_bytes)
        except OSError as exc:
            write.error = exc
        self._complete(write)

    def close(self) -> None:
        """Do nothing: all is written."""


class ThreadAppender:
    """Writes in a thread, and syncs there if `is_synced`.

    Ownership: the loop submits and completes; the thread has what lies between. A segment's file
    stays open as long as it has pending writes, so the thread never meets a closed one.
    """

    def __init__(self, complete: Complete, *, is_synced: bool, pause_s: float) -> None:
        self._complete = complete
        self._is_synced = is_synced
        self._pause_s = pause_s if is_synced else 0.0
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="spool appender", daemon=True)
        self._synced_at_s = 0.0
        self._known: Segment | None = None
        """The last segment whose name is synced."""
        self.queued_records = 0
        self.queued_bytes = 0

    def submit(self, write: Write) -> None:
        """Have it written by the thread."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        self.queued_records += write.records
        self.queued_bytes += write.size_bytes
        self._queue.put(write)

    def close(self) -> None:
        """Let the thread write what is queued, and end it."""
        if self._loop is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            writes, is_open = self._take()
            if writes:
                self._write(writes)
                self._report(writes)

    def _take(self) -> tuple[list[Write], bool]:
        """Wait for writes; return all that are there, and whether more may come."""
        first = self._queue.get()
        if first is None:
            return [], False
        rest_s = self._synced_at_s + self._pause_s - time.monotonic()
        if rest_s > 0:
            time.sleep(rest_s)
        writes, size_bytes = [first], first.size_bytes
        while size_bytes < _MAX_ROUND_BYTES:
            try:
                write = self._queue.get_nowait()
            except Empty:
                break
            if write is None:
                return writes, False
            writes.append(write)
            size_bytes += write.size_bytes
        return writes, True

    def _write(self, writes: list[Write]) -> None:
        for segment, group in groupby(writes, _segment_of):
            neighbours = list(group)
            error = self._write_neighbours(segment, neighbours)
            for write in neighbours:
                write.error = error
        self._synced_at_s = time.monotonic()

    def _write_neighbours(self, segment: Segment, writes: list[Write]) -> OSError | None:
        """Write what stands one behind the other: all of it, or none."""
        if segment.failure is not None:
            return segment.failure
        offset = writes[0].offset
        buffers = [buffer for write in writes for buffer in write.buffers]
        try:
            segment.write(buffers, offset, sum(write.size_bytes for write in writes))
            if self._is_synced:
                self._sync(segment, offset)
        except OSError as exc:
            return exc
        return None

    def _sync(self, segment: Segment, offset: int) -> None:
        try:
            segment.sync()
            if self._known is not segment:
                sync_folder(segment.path.parent)
                self._known = segment
        except OSError as exc:
            segment.cut(offset, exc)  # who is told that it failed must not find it there
            raise

    def _report(self, writes: list[Write]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return  # nobody is left who waits
        loop.call_soon_threadsafe(self._completed, writes)

    def _completed(self, writes: list[Write]) -> None:
        for write in writes:
            self.queued_records -= write.records
            self.queued_bytes -= write.size_bytes
        for write in writes:
            self._complete(write)
