"""Supplies a spool with segments: allocates them ahead of need, and lets old ones go.

Knows limits, files and the books; knows neither blocks nor who waits. Event loop's thread only,
while a thread of its own allocates. A spare has no number until it is needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from gateway.prediction_log.spool.books import Books
from gateway.prediction_log.spool.room import Room, reason_of
from gateway.prediction_log.spool.segment import Segment, Spare
from gateway.prediction_log.spool.store import DropReason, Lost
from gateway.prediction_log_config import PredictionLogConfig

_log = logging.getLogger(__name__)
_MS_PER_S: Final = 1_000


class Supply:
    """Where segments come from and where they go."""

    def __init__(
        self,
        config: PredictionLogConfig,
        directory: Path,
        books: Books,
        on_lost: Callable[[Lost], None],
    ) -> None:
        limits = config.spool
        self.in_hand = -1
        """Segment that must not be dropped: what was read of it is neither settled nor lost."""
        self._limits = limits
        self._is_dropping = config.on_full == "drop_oldest_segment"
        self._directory = directory
        self._books = books
        self._on_lost = on_lost
        self._room = Room(
            directory, max_bytes=limits.max_bytes, min_free_bytes=limits.min_free_bytes
        )
        self._allocator = ThreadPoolExecutor(1, thread_name_prefix="spool allocator")
        self._spare: Future[Spare] | None = None
        """The next segment, allocated or about to be."""
        self._refused: DropReason | None = None
        """Why there was none when one was last needed; asked again once something changed."""

    def fresh(self, need_bytes: int) -> Segment | DropReason:
        """Return a new segment with room for this much, or why there is none."""
        if self._refused is not None:
            return self._refused
        if need_bytes > self._limits.max_bytes // 2:
            return DropReason.OVERSIZE
        spare = self._take_spare(need_bytes)
        if spare is None:
            got = self._make_room(max(need_bytes, self._limits.segment_bytes))
            if isinstance(got, DropReason):
                return self._refuse(got)
            spare = got
        try:
            segment = Segment.adopt(spare, self._books.next_number)
        except OSError as exc:
            spare.discard()
            return self._refuse(reason_of(exc))
        self._books.add(segment)
        return segment

    def reconsider(self) -> None:
        """Something changed: there may be room."""
        self._refused = None

    def prepare(self) -> None:
        """Have the next segment allocated, if there is room for it."""
        if self._spare is not None:
            return
        size = self._limits.segment_bytes
        while (reason := self._room.refusal(self._books.held_bytes, size)) is not None:
            if reason is not DropReason.SPOOL_CAP or not self._forget_oldest():
                return
        self._spare = self._allocator.submit(Spare.make, self._directory, size)

    def retire(self, now_ms: int, kept_from: int) -> None:
        """Delete shipped segments that are too old or too many, up to a number that is kept."""
        limits = self._limits
        settled = [s for s in self._books.segments.values() if self._books.is_settled(s)]
        left_bytes = sum(segment.size_bytes for segment in settled)
        for segment in settled:
            is_old = segment.last_ms + limits.retain_s * _MS_PER_S < now_ms
            if segment.number >= kept_from or not (is_old or left_bytes > limits.retain_bytes):
                break
            left_bytes -= segment.size_bytes
            self._forget(segment)

    async def close(self) -> None:
        """Give the spare back."""
        await asyncio.to_thread(self._allocator.shutdown)
        spare = self._take_spare(0)
        if spare is not None:
            spare.discard()

    def _take_spare(self, need_bytes: int) -> Spare | None:
        """Return the spare if it is large enough; waits for one that is just being allocated."""
        future = self._spare
        if future is None or need_bytes > self._limits.segment_bytes:
            return None
        self._spare = None
        try:
            return future.result()
        except OSError:  # the caller tries once more, and learns why
            return None

    def _make_room(self, size_bytes: int) -> Spare | DropReason:
        """Allocate a file; as long as there is no room for it, let the oldest segment go."""
        while True:
            reason = self._room.refusal(self._held_bytes(), size_bytes)
            if reason is None:
                try:
                    return Spare.make(self._directory, size_bytes)
                except OSError as exc:
                    reason = reason_of(exc)
            if reason is DropReason.WRITE_ERROR or not (self._forget_oldest() or self._drop()):
                return reason

    def _held_bytes(self) -> int:
        spare_bytes = 0 if self._spare is None else self._limits.segment_bytes
        return self._books.held_bytes + spare_bytes

    def _refuse(self, reason: DropReason) -> DropReason:
        self._refused = reason
        _log.warning("prediction log has no room for a segment", extra={"reason": str(reason)})
        return reason

    def _forget_oldest(self) -> bool:
        """Delete the oldest segment that is shipped; return whether there was one."""
        for segment in self._books.segments.values():
            if self._books.is_settled(segment):
                self._forget(segment)
                return True
        return False

    def _forget(self, segment: Segment) -> None:
        self._books.forget(segment)
        segment.remove()

    def _drop(self) -> bool:
        """Drop the oldest segment that is not shipped, if that is the policy and there is one."""
        segment = self._books.droppable(self.in_hand) if self._is_dropping else None
        if segment is None:
            return False
        lost = self._books.drop(segment)
        segment.remove()
        _log.warning("prediction log dropped its oldest segment", extra={"records": lost})
        for stream, records in lost.items():
            self._on_lost(Lost(stream, records, DropReason.OLDEST_SEGMENT))
        return True
