"""Reads blocks back from segment files, and finds places in them.

Knows segments and blocks; knows neither what is shipped nor who asks. The quick way reads a window
of the file and takes the intact blocks from it. Where something is not intact the whole segment is
walked over, so that what is missing can be counted and laid to the streams that miss it.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.prediction_log.spool.block import (
    SHIPPED_KINDS,
    UNKNOWN,
    Block,
    BlockKind,
    Damage,
    Header,
    Position,
    Scanner,
    header_at,
    next_header,
)
from gateway.prediction_log.spool.segment import Segment

_MIN_WINDOW_BYTES: Final = 64 << 10


class Limits(NamedTuple):
    """Of one read."""

    max_bytes: int
    max_records: int


@dataclass(slots=True)
class Found:
    """What a read took from one segment."""

    next: int
    """Offset to read on from."""
    blocks: list[Block] = field(default_factory=list)
    corrupt: Counter[int] = field(default_factory=Counter)
    damage: list[tuple[Position, int, int]] = field(default_factory=list)
    """Where records were lost, of which stream, and how many."""
    size_bytes: int = 0
    records: int = 0

    def is_full(self, block: Block, limits: Limits) -> bool:
        """Whether a block must wait for the next read."""
        is_over = (
            self.size_bytes + len(block.data) > limits.max_bytes
            or self.records + block.count > limits.max_records
        )
        return is_over and bool(self.blocks)

    def lose(self, at: Position, stream: int, records: int) -> None:
        """Count records that damage has cost."""
        if records > 0:
            self.corrupt[stream] += records
            self.damage.append((at, stream, records))

    def take(self, block: Block) -> None:
        """Add a block."""
        self.blocks.append(block)
        self.size_bytes += len(block.data)
        self.records += block.count


Settled = Mapping[int, Position]
"""By stream: blocks before this are left out."""


def read_segment(segment: Segment, start: int, limits: Limits, settled: Settled) -> Found:
    """Return blocks from an offset on. Raises FileNotFoundError if the segment is gone.

    The file is opened each time: a segment that is deleted must give its room back at once.
    """
    found = Found(start)
    descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while found.next < segment.written and not found.blocks and not found.corrupt:
            at = found.next
            if not _take_intact(descriptor, segment, found, limits, settled):
                return found
            if found.next == at:
                _DamagedWalk(segment, found, limits, settled).run()
                return found
    finally:
        os.close(descriptor)
    return found


def _take_intact(
    descriptor: int, segment: Segment, found: Found, limits: Limits, settled: Settled
) -> bool:
    """Take what is intact from a window; return whether there is room for more."""
    base, end = found.next, segment.written
    size = min(end - base, max(limits.max_bytes, _MIN_WINDOW_BYTES))
    window = os.pread(descriptor, size, base)
    header = header_at(window, 0, segment.salt)
    if header is not None and size < header.block_bytes <= end - base:
        window = os.pread(descriptor, header.block_bytes, base)
    scanner = Scanner(window, segment=segment.number, salt=segment.salt, base=base)
    for item in scanner.walk(base, base + len(window), is_partial=True):
        if isinstance(item, Damage):
            return True  # at found.next, which did not move past it
        if _is_wanted(item, settled):
            if found.is_full(item, limits):
                return False
            found.take(item)
        found.next = scanner.offset
    return True


def _is_wanted(block: Block, settled: Settled) -> bool:
    if block.kind not in SHIPPED_KINDS:
        return False
    after = settled.get(block.stream)
    return after is None or block.at >= after


class _DamagedWalk:
    """Takes what a walk over a whole segment finds from `found.next` on, and counts the loss."""

    def __init__(self, segment: Segment, found: Found, limits: Limits, settled: Settled) -> None:
        self._segment = segment
        self._found = found
        self._limits = limits
        self._settled = settled
        self._readable: Counter[int] = Counter()
        """Records by stream that stand there, or whose loss is known by their header."""
        self._unknown: dict[int, int] = {}
        """Lost records by the offset of the damage, where no header says whose they were."""

    def run(self) -> None:
        segment, found, start = self._segment, self._found, self._found.next
        is_taking = True
        with mapped(segment) as data:
            end = min(segment.written, len(data))
            scanner = Scanner(data, segment=segment.number, salt=segment.salt, before=0)
            for item in scanner.walk(0, end):
                if item.stream != UNKNOWN and not self._is_counted(item.at.offset):
                    self._readable[item.stream] += _records(item)
                if is_taking and item.at.offset >= start:
                    is_taking = self._take(item)
                    if is_taking:
                        found.next = scanner.offset
            if is_taking:
                found.next = segment.written
                self._unknown[scanner.offset] = segment.total - scanner.before
        self._blame()

    def _take(self, item: Block | Damage) -> bool:
        """Take a block or count its loss; return False if it must wait for the next read."""
        if isinstance(item, Block):
            if _is_wanted(item, self._settled):
                if self._found.is_full(item, self._limits):
                    return False
                self._found.take(item)
        elif item.stream == UNKNOWN:
            self._unknown[item.at.offset] = item.records
        elif not self._is_counted(item.at.offset):
            self._found.lose(item.at, item.stream, item.records)
        return True

    def _blame(self) -> None:
        """Lay the loss that no header names to the streams that miss records."""
        for offset, records in self._unknown.items():
            if records <= 0 or self._is_counted(offset):
                continue
            at = Position(self._segment.number, offset)
            for stream, share in _blamed(self._segment.counts, self._readable, records):
                self._readable[stream] += share
                self._found.lose(at, stream, share)

    def _is_counted(self, offset: int) -> bool:
        return offset in self._segment.settled_damage


def _records(item: Block | Damage) -> int:
    if isinstance(item, Damage):
        return item.records
    return item.count if item.kind is BlockKind.RECORDS else 0


def _blamed(
    known: Mapping[int, int], readable: Mapping[int, int], lost: int
) -> Iterator[tuple[int, int]]:
    """Lay lost records to the streams that miss some; the sum is what was lost."""
    known = dict(known)  # the loop may be counting meanwhile
    likeliest = max(known, key=known.__getitem__, default=0)
    missing = {stream: records - readable.get(stream, 0) for stream, records in known.items()}
    for stream, records in missing.items():
        share = min(lost, records)
        if share > 0:
            yield stream, share
            lost -= share
    if lost > 0 and known:
        yield likeliest, lost


def headers(segment: Segment, start: int, end: int) -> Iterator[tuple[int, Header]]:
    """Yield the intact headers between two offsets, and where they are; payloads are not looked at.

    Raises FileNotFoundError if the segment is gone.
    """
    if start >= end:
        return
    with mapped(segment) as data:
        end = min(end, len(data))
        while 0 <= start < end:
            header = header_at(data, start, segment.salt)
            if header is None:
                start = next_header(data, start + 1, end, segment.salt)
            else:
                yield start, header
                start += header.block_bytes


def mapped(segment: Segment) -> mmap.mmap:
    """Map the file of a segment that is not empty. Raises FileNotFoundError if it is gone."""
    descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
