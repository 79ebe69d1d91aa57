"""The spool on disk: appends to segment files, and gives back what is not yet shipped.

Puts together: layout.py (bytes and places), appender.py (who writes), supply.py (segments, and
the limits), books.py (what is counted), reading.py, waiting.py. Read store.py first.

The way of an append, all on the event loop: make the payloads, so that the size is known; if the
segment has no room for it, seal it and begin the next one; plan the write, which fixes ids and
headers; submit it. Where the loop writes that is all, one system call. Where a thread does, the
plan cannot change any more, and `_completed` hears how it went.

Segments. A new one is allocated in a thread when the one in use is half full, so an append hardly
ever waits for it. When there is no room for it, shipped segments go first; then `on_full` decides.

A write that fails is dropped and counted, and ends its segment; the next append begins another.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from gateway.prediction_log.spool.appender import Appender, LoopAppender, ThreadAppender, Write
from gateway.prediction_log.spool.block import START, Position
from gateway.prediction_log.spool.books import Books
from gateway.prediction_log.spool.entry_ids import EntryIds
from gateway.prediction_log.spool.erasing import Needles, erase_in
from gateway.prediction_log.spool.layout import Layout
from gateway.prediction_log.spool.lock import FolderLock, token_of
from gateway.prediction_log.spool.offsets import Offsets, save
from gateway.prediction_log.spool.reading import Limits, read_segment
from gateway.prediction_log.spool.recent import Recent
from gateway.prediction_log.spool.room import reason_of
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.spool.store import Chunk, Done, DropReason, Erased, Group, Lost
from gateway.prediction_log.spool.supply import Supply
from gateway.prediction_log.spool.waiting import FOR_WANT_OF_ROOM, Waiting
from gateway.prediction_log.streams import BEFORE_ALL, EntryId, StreamKind
from gateway.prediction_log_config import PredictionLogConfig

HOT_BYTES: Final = 8 << 20
"""What was written last is in the page cache."""
MIN_AGE_S: Final = 60
"""A segment in use is not sealed for its age before this."""

_log = logging.getLogger(__name__)


class FileSpool:
    """A Store in a folder of its own; made by opening.open_spool."""

    def __init__(
        self,
        config: PredictionLogConfig,
        lock: FolderLock,
        books: Books,
        ids: EntryIds,
        *,
        worker: str,
    ) -> None:
        self.on_append: Callable[[], None] = _nothing
        self.on_lost: Callable[[Lost], None] = _nothing
        self.token = token_of(lock.directory)
        self._config = config
        self._directory = lock.directory
        self._lock = lock
        self._books = books
        self._streams = books.streams
        self._ids = ids
        self._layout = Layout(books.streams, ids, worker)
        self._supply = Supply(config, lock.directory, books, self._lost)
        front = books.front()
        if front is not None:  # an earlier process may have sent it and heard nothing more of it
            self._supply.in_hand = front.number
        self._appender = self._make_appender()
        self._is_waiting_allowed = config.on_full == "block"
        self._waiting = Waiting(
            self._place,
            max_s=config.block_max_ms / 1e3,
            max_records=config.buffer_records,
            max_bytes=config.buffer_bytes,
        )
        self._read_to: Position | None = None
        """Where the last read ended, until that is settled."""
        self._own_from = books.next_number
        """Segments from here on are of this process."""
        self._recent = Recent(Position(self._own_from, 0) if books.segments else START)
        self._last = next(reversed(books.segments.values()), None)
        """The segment before the current one."""
        self._current: Segment | None = None
        self._is_closed = False
        self._saving = threading.Lock()
        self._is_saved = False
        """For the last time."""

    def __repr__(self) -> str:
        return f"<FileSpool {self._directory.name} shipped {self.shipped}>"

    @property
    def shipped(self) -> Position:
        """All before it is shipped or settled."""
        return self._books.shipped

    @property
    def spooled_bytes(self) -> int:
        """Bytes of blocks that are not yet shipped."""
        current, (segment, offset) = self._current, self._books.shipped
        if current is not None and current.number == segment:  # nearly always, and asked often
            return current.written - offset
        return self._books.spooled_bytes

    @property
    def oldest_unshipped_ms(self) -> int:
        """When the oldest record that is not yet shipped was appended; 0: there is none."""
        known_ms = 0 if self._streams.settled else self._recent.oldest_ms(self.shipped)
        return known_ms or self._books.oldest_unshipped_ms()

    def stream(self, name: str, kind: StreamKind) -> int:
        """Return the number of a stream, from 1; the same after a restart."""
        return self._streams.number(name, kind)

    def stream_of(self, number: int) -> tuple[str, StreamKind]:
        """Return name and kind of a stream. Raises KeyError for a number never given."""
        return self._streams.names[number]

    def append(self, groups: Sequence[Group], now_ms: int, done: Done) -> None:
        """Write all groups or none; see Store."""
        if self._is_waiting_allowed and self._waiting:
            self._waiting.add(groups, now_ms, done)
            return
        reason = self._place(groups, now_ms, done)
        if reason is None:
            return
        self._layout.give_up(groups)
        if self._is_waiting_allowed and reason in FOR_WANT_OF_ROOM:
            self._waiting.add(groups, now_ms, done)
        else:
            done(reason)

    def spooled(self, stream: int) -> int:
        """Return the records that wait to be shipped."""
        return self._books.spooled[stream]

    def read(
        self, after: Position, *, max_bytes: int, max_records: int, is_all: bool = False
    ) -> Chunk:
        """Return blocks from a position on; see Store."""
        settled = {} if is_all else self._streams.settled
        limits = Limits(max_bytes, max_records)
        if not is_all and not settled:
            chunk = self._recent.read(after, limits, self._books.segments)
            if chunk is not None:
                self._supply.in_hand = chunk.next.segment
                self._read_to = chunk.next
                return chunk
        position = after
        for segment in list(self._books.segments.values()):
            start = after.offset if segment.number == after.segment else 0
            if segment.number < after.segment or start >= segment.written:
                continue
            if not is_all:
                self._supply.in_hand = segment.number
            try:
                found = read_segment(segment, start, limits, settled)
            except FileNotFoundError:  # dropped meanwhile
                continue
            position = Position(segment.number, found.next)
            if not is_all:
                self._books.met(found.damage)
                self._read_to = position
            if found.blocks or found.corrupt:
                return Chunk(found.blocks, position, dict(found.corrupt))
        return Chunk([], position, {})

    def is_hot(self, position: Position) -> bool:
        """Whether reading there is quick enough for the event loop."""
        return position.segment >= self._own_from and (
            self._books.bytes_from(position) <= HOT_BYTES
        )

    def mark_shipped(
        self, position: Position, counts: Mapping[int, int], last_ids: Mapping[int, EntryId]
    ) -> None:
        """Settle everything before a position; see Store."""
        self._books.mark_shipped(position, counts, last_ids)
        self._recent.shipped(position)
        self._supply.reconsider()
        if self._read_to is None or position >= self._read_to:
            self._supply.in_hand = -1

    def kept_streams(self) -> set[int]:
        """Return the streams of which something is kept that Redis may forget."""
        return self._books.kept_streams()

    def last_shipped(self, stream: int) -> EntryId:
        """Return the greatest id that Redis confirmed, also before the last restart."""
        return self._streams.last_shipped.get(stream, BEFORE_ALL)

    def rewind(self, stream: int, above: EntryId) -> int:
        """Go back to the first kept block of a stream that has an id above; see Store."""
        return self._books.rewind(stream, above)

    def raise_floor(self, floor: EntryId) -> None:
        """Give only ids above this one from now on."""
        self._ids.raise_floor(floor)

    def erase(self, needles: Sequence[bytes]) -> tuple[int, list[Erased]]:
        """Overwrite every blob that holds one of the needles; see Store. In a thread."""
        wanted = Needles(needles)
        erased: list[Erased] = []
        for segment in list(self._books.segments.values()):
            with suppress(FileNotFoundError):  # shipped and deleted meanwhile
                erased += erase_in(segment, wanted)
        return len(erased), erased

    async def housekeeping(self, now_ms: int) -> None:
        """Once a second: allocate ahead, let old segments go, write the offset file."""
        if self._is_closed:
            return
        self._supply.reconsider()
        self._seal_if_old(now_ms)
        # What an intent stands in is kept until its record is written, unless room is needed.
        kept_from = min(self._layout.intents.values(), default=sys.maxsize)
        self._supply.retire(now_ms, kept_from)
        if self._is_half_full():
            self._supply.prepare()
        await asyncio.to_thread(self._save, self._offsets())

    async def close(self) -> None:
        """Refuse what comes, write what is queued, and leave files that the next start can read."""
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting.shut()
        try:
            await asyncio.to_thread(self._appender.close)
            await asyncio.sleep(0)  # the thread's last completions
            await self._supply.close()
            await self._end_segment()
            await asyncio.to_thread(partial(self._save, self._offsets(), is_last=True))
        finally:
            self._lock.release()

    def begin(self, groups: Sequence[Group], now_ms: int) -> DropReason | None:
        """Begin the first segment, with these groups in it; blocks, before any other call.

        Returns why the groups were not written. Without room the first append tries again.
        """
        got = self._next_segment(groups)
        if isinstance(got, DropReason):
            return got
        if not groups:
            return None
        reasons: list[DropReason | None] = []
        write = self._layout.plan(got, groups, now_ms, reasons.append)
        LoopAppender(self._completed).submit(write)
        return reasons[0]

    def _make_appender(self) -> Appender:
        config = self._config
        is_synced = config.durability == "disk"
        if config.append == "loop" and not is_synced:
            return LoopAppender(self._completed)
        pause_s = config.spool.fsync_ms / 1e3
        return ThreadAppender(self._completed, is_synced=is_synced, pause_s=pause_s)

    def _place(self, groups: Sequence[Group], now_ms: int, done: Done) -> DropReason | None:
        """Have groups written, or return why not; then `done` was not and will not be called."""
        if self._is_closed:
            return DropReason.SHUTDOWN
        appender, layout = self._appender, self._layout
        if appender.queued_records > self._config.buffer_records:
            return DropReason.QUEUE_RECORDS
        if appender.queued_bytes > self._config.buffer_bytes:
            return DropReason.QUEUE_BYTES
        segment = self._current
        if segment is None or (
            segment.planned + layout.need_bytes(segment, groups) > segment.size_bytes
        ):
            got = self._next_segment(groups)
            if isinstance(got, DropReason):
                return got
            segment = got
        was = segment.planned
        write = layout.plan(segment, groups, now_ms, done)
        appender.submit(write)
        half = segment.size_bytes >> 1
        if was <= half < segment.planned:
            self._supply.prepare()
        return None

    def _next_segment(self, groups: Sequence[Group]) -> Segment | DropReason:
        """Seal the segment in use and begin another with room for groups."""
        self._seal()
        got = self._supply.fresh(self._layout.beginning_bytes(groups))
        if isinstance(got, DropReason):
            return got
        try:
            self._layout.begin(got, self._last)
        except OSError as exc:
            self._discard(got)
            return reason_of(exc)
        self._current = got
        return got

    def _discard(self, segment: Segment) -> None:
        segment.seal()
        self._books.forget(segment)
        segment.remove()

    def _seal(self) -> None:
        """Write no more to the segment in use."""
        if self._current is not None:
            self._last, self._current = self._current, None
            self._last.seal()

    async def _end_segment(self) -> None:
        """Sync and seal the segment in use; delete it if nobody wrote to it."""
        current = self._current
        if current is None:
            return
        await asyncio.to_thread(current.sync)
        self._seal()
        if not current.first_ms:
            self._books.forget(current)
            current.remove()

    def _completed(self, write: Write) -> None:
        """Take note of how a write went, and tell who waits for it."""
        segment = write.segment
        segment.pending -= 1
        reason = None
        if write.error is None:
            segment.written = write.offset + write.size_bytes
            self._books.written(segment, write.blocks)
            self._recent.add(write.blocks, write.size_bytes)
        else:
            reason = self._failed(segment, write.error)
        if segment.is_sealed:
            segment.seal()
        write.done(reason)
        if reason is None:
            self.on_append()

    def _failed(self, segment: Segment, error: OSError) -> DropReason:
        """End a segment where a write failed."""
        if segment is self._current:
            _log.error("prediction log cannot write", exc_info=error)
            segment.planned, segment.records = segment.written, segment.total
            self._seal()
        return reason_of(error)

    def _is_half_full(self) -> bool:
        current = self._current
        return current is not None and current.planned > current.size_bytes >> 1

    def _seal_if_old(self, now_ms: int) -> None:
        """Seal a shipped segment that fills slowly, so that its records do not stay for ever."""
        current = self._current
        if current is None or not current.first_ms or current.end > self.shipped:
            return
        if current.first_ms + max(MIN_AGE_S, self._config.spool.retain_s) * 1_000 < now_ms:
            self._seal()

    def _offsets(self) -> Offsets:
        books = self._books
        states = self._streams.states()
        return Offsets(books.shipped, self._ids.last, books.next_number, states)

    def _save(self, offsets: Offsets, *, is_last: bool = False) -> None:
        """Write the offset file, in a thread: it may have outlived who waited for it."""
        with self._saving:
            if not self._is_saved:
                self._is_saved = is_last
                save(self._directory, offsets, is_synced=is_last)

    def _lost(self, lost: Lost) -> None:
        self.on_lost(lost)


def _nothing(*_: object) -> None:
    """Stand in for a callback that nobody has set."""
