"""The blocks that were appended last, so that the shipper need not find them in the file again.

Knows blocks and segments; knows neither what is shipped nor who asks. Event loop's thread only.

The shipper asks for a block within milliseconds of its being written, when its parts are still at
hand: they are kept, up to MAX_BYTES, until they are shipped. What is in the file is read all the
same and compared with them, which is one comparison in place of every block's checks. Where it is
not the same, after an erasure or on a bad disk, nothing of this is believed any more, and the file
is walked over as one that another process has written.

What is remembered has no gap: every block from `_begin` to the last one that was written.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping
from operator import attrgetter
from typing import Final

from gateway.prediction_log.spool.block import SHIPPED_KINDS, Block, BlockKind, Position
from gateway.prediction_log.spool.reading import Limits
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.spool.store import Chunk

MAX_BYTES: Final = 4 << 20
_place_of: Final = attrgetter("at")


class Recent:
    """Of one store. `begin` is where the next block will stand at the earliest."""

    def __init__(self, begin: Position) -> None:
        self._begin = begin
        self._blocks: list[Block] = []
        self._size_bytes = 0

    def add(self, blocks: list[Block], size_bytes: int) -> None:
        """Remember blocks that were written behind all others."""
        self._blocks += blocks
        self._size_bytes += size_bytes
        if self._size_bytes > MAX_BYTES:
            self._forget(len(self._blocks) // 2 + 1)

    def shipped(self, position: Position) -> None:
        """Forget what stands before a position: nobody will ask for it."""
        if position > self._begin:
            self._forget(bisect_left(self._blocks, position, key=_place_of))
            self._begin = position

    def read(
        self, after: Position, limits: Limits, segments: Mapping[int, Segment]
    ) -> Chunk | None:
        """Return blocks of one segment from a position on; None: they must be read."""
        blocks = self._blocks
        if after < self._begin or not blocks or after > blocks[-1].at:
            return None
        start = 0 if after <= blocks[0].at else bisect_left(blocks, after, key=_place_of)
        number, offset = blocks[start].at
        taken: list[Block] = []
        parts: list[bytes] = []
        size_bytes = records = 0
        for block in blocks[start:] if start else blocks:
            kind, _, _, count, _, data, at = block
            if at[0] != number:
                break
            if kind in SHIPPED_KINDS:
                size_bytes += len(data)
                records += count
                is_full = size_bytes > limits.max_bytes or records > limits.max_records
                if is_full and taken:
                    break
                taken.append(block)
            parts.append(data)
        segment, data = segments.get(number), b"".join(parts)
        if segment is None or not _stands_there(segment, offset, data):
            self._forget(len(blocks))
            return None
        return Chunk(taken, Position(number, offset + len(data)), {}) if taken else None

    def oldest_ms(self, after: Position) -> int:
        """Return when the first record from a position on was appended; 0: it is not known here."""
        if after >= self._begin:
            for block in self._blocks:
                if block.kind is BlockKind.RECORDS and block.at >= after:
                    return block.first_id.ms
        return 0

    def _forget(self, count: int) -> None:
        """Forget the oldest ones."""
        blocks = self._blocks
        if not count:
            return
        self._begin = blocks[count - 1].end
        self._size_bytes -= sum([len(block.data) for block in blocks[:count]])
        del blocks[:count]


def _stands_there(segment: Segment, offset: int, data: bytes) -> bool:
    try:
        descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # dropped meanwhile
        return False
    try:
        return os.pread(descriptor, len(data), offset) == data
    finally:
        os.close(descriptor)
