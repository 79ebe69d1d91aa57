"""What a start finds in the segments of earlier processes.

Knows segments, blocks and, of records, their worker and sequence number; writes nothing. One walk
over all that is kept tells: where each segment's data end, what is not yet shipped, what is
damaged, which intents nobody has settled, and which lives ended without their last word.

A life ended well if an audit that says so stands in the spool, of its own or of a successor. For
the others the last blocks of each of their streams are decoded, for the highest sequence number:
reduced records may come a little late, so not the very last block alone.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.prediction_log.record import (
    ERASED,
    Logged,
    LoggedAudit,
    LoggedLabel,
    LoggedPrediction,
    MalformedRecord,
    decode_any,
)
from gateway.prediction_log.spool.block import (
    HEADER_BYTES,
    UNKNOWN,
    Block,
    BlockKind,
    Damage,
    Position,
    Scanner,
    records_up_to,
    split_payload,
)
from gateway.prediction_log.spool.offsets import Offsets, StreamTable
from gateway.prediction_log.spool.reading import mapped
from gateway.prediction_log.spool.segment import Segment, found_in
from gateway.prediction_log.spool.store import Group
from gateway.prediction_log.streams import BEFORE_ALL, EntryId, StreamKind

INTENT_REF: Final = 1 << 63
"""Bit of a ref that names an intent of an earlier life by its place."""
NEVER: Final = Position(1 << 62, 0)
"""Behind everything: blocks of a stream that nobody knows are settled until there."""
_LAST_BLOCKS: Final = 32
_Sequences = dict[tuple[str, StreamKind], int]


@dataclass(frozen=True, slots=True)
class EndedLife:
    """A worker that ended without its final audits."""

    worker: str
    sequences: _Sequences
    """The highest sequence number by name and kind that stands in the files."""


@dataclass(slots=True)
class Recovery:
    """What an earlier process left."""

    records: dict[int, int] = field(default_factory=dict)
    """Not yet shipped, by stream; with the intents that were completed."""
    corrupt: dict[int, int] = field(default_factory=dict)
    """Lost since they were written, by stream; not in `records`."""
    torn_bytes: int = 0
    """Of writes that a crash cut short: nobody was told that they were done."""
    nameless: int = 0
    """Lost records where no stream at all is known any more."""
    intents: list[Group] = field(default_factory=list)
    """What completes the intents that nobody has settled, where the spool had no room for it: to be
    appended as it is."""
    ended: list[EndedLife] = field(default_factory=list)


@dataclass(slots=True)
class Scan:
    """The walk over all segments, oldest first, and what it learned."""

    directory: Path
    offsets: Offsets
    streams: StreamTable
    segments: list[Segment] = field(default_factory=list)
    recovery: Recovery = field(default_factory=Recovery)
    last_id: EntryId = BEFORE_ALL
    _intents: dict[tuple[str, int], tuple[Position, int, list[bytes]]] = field(default_factory=dict)
    """By life and ref: place, stream and blobs."""
    _last_blocks: defaultdict[tuple[str, int], deque[tuple[Segment, int, int]]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_LAST_BLOCKS))
    )
    """Segment, offset and end, by life and stream: not the bytes, which may be many."""
    _ended: set[tuple[str, str]] = field(default_factory=set)
    """Worker and name of final audits."""
    _audited: defaultdict[tuple[str, str], dict[StreamKind, int]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """The last numbers that audits tell, by worker and name."""
    _worker: str = ""
    """Of the segment under the walk."""
    _last_stream: int = 0

    def run(self) -> None:
        """Walk; files without anything in them that matters are deleted."""
        self.last_id = self.offsets.floor
        for segment in found_in(self.directory):
            self._walk(segment)
            if segment.total or segment.has_keys or segment.first_ms:
                self.segments.append(segment)
            else:
                segment.remove()
        self.recovery.ended = self._lives()
        nameless = self.recovery.corrupt.pop(0, 0)
        if nameless and self.streams.names:
            self._lose(min(self.streams.names), nameless)
        self.recovery.nameless = 0 if self.streams.names else nameless

    def intents(self) -> list[Group]:
        """Return the records that complete the intents that nobody has settled."""
        return [
            Group(BlockKind.RECORDS, stream, blobs, INTENT_REF | at.segment << 32 | at.offset)
            for at, stream, blobs in self._intents.values()
            if blobs and stream in self.streams.names
        ]

    def _walk(self, segment: Segment) -> None:
        self._worker = ""
        if segment.size_bytes == 0:
            return
        with mapped(segment) as data:
            scanner = Scanner(data, segment=segment.number, salt=segment.salt, before=0)
            for item in scanner.walk(0, len(data)):
                if isinstance(item, Damage):
                    if item.is_tail:
                        self.recovery.torn_bytes += item.size_bytes
                        break
                    self._damage(segment, item)
                else:
                    self._block(segment, item)
                segment.written = scanner.offset
                segment.total = segment.records = scanner.before
        segment.planned = segment.written
        if segment.size_bytes > segment.written:
            segment.truncate()

    def _damage(self, segment: Segment, damage: Damage) -> None:
        segment.settled_damage.add(damage.at.offset)
        stream = self._last_stream if damage.stream == UNKNOWN else damage.stream
        if damage.records > 0 and damage.at >= self._unshipped_from(stream):
            self._lose(stream, damage.records)

    def _lose(self, stream: int, records: int) -> None:
        corrupt = self.recovery.corrupt
        corrupt[stream] = corrupt.get(stream, 0) + records

    def _block(self, segment: Segment, block: Block) -> None:
        kind, stream = block.kind, block.stream
        if kind is BlockKind.LIFE:
            self._worker = block.blobs()[0].decode("utf-8", "replace")
            self._tail_of_last(segment.number, block.ref)
            return
        if kind is BlockKind.STREAM:
            self.streams.learn(*parse_stream(block.blobs()[0]))
            return
        segment.first_ms = segment.first_ms or block.first_id.ms
        segment.last_ms = max(segment.last_ms, block.first_id.ms)
        if kind is BlockKind.KEY:
            segment.has_keys = True
        elif kind is BlockKind.INTENT:
            self._intents[self._worker, block.ref] = block.at, stream, _kept(block)
        else:
            self._records(segment, block)

    def _records(self, segment: Segment, block: Block) -> None:
        stream = block.stream
        if stream not in self.streams.names and not self._guess(block):
            segment.settled_damage.add(block.at.offset)
            self._lose(self._last_stream, block.count)
            return
        self._last_stream = stream
        segment.counts[stream] = segment.counts.get(stream, 0) + block.count
        segment.last_ids[stream] = block.last_id
        self.last_id = max(self.last_id, block.last_id)
        if block.at >= self._unshipped_from(stream):
            records = self.recovery.records
            # Redis may have forgotten a part of a block only.
            less = records_up_to(self.streams.last_shipped.get(stream, BEFORE_ALL), block)
            records[stream] = records.get(stream, 0) + block.count - less
        if block.ref & INTENT_REF:
            self._settle(Position(block.ref >> 32 & 0x7FFFFFFF, block.ref & 0xFFFFFFFF))
        elif block.ref:
            self._intents.pop((self._worker, block.ref), None)
        self._look_into(segment, block)

    def _guess(self, block: Block) -> bool:
        """Tell a stream by its records where the block that declared it is lost."""
        for blob in block.blobs():
            try:
                self.streams.learn(block.stream, *_stream_of(decode_any(blob)))
            except MalformedRecord:
                continue
            return True
        # Never given again, and never read.
        self.streams.reserve(block.stream)
        self.streams.settled[block.stream] = NEVER
        return False

    def _unshipped_from(self, stream: int) -> Position:
        return max(self.offsets.position, self.streams.settled.get(stream, self.offsets.position))

    def _settle(self, place: Position) -> None:
        for key, (at, _, _) in self._intents.items():
            if at == place:
                del self._intents[key]
                return

    def _tail_of_last(self, number: int, ref: int) -> None:
        """Count what is missing at the end of the segment before; its successor says how many."""
        if not ref or not self.segments:
            return
        before = self.segments[-1]
        missing = ref - 1 - before.total
        if before.number != number - 1 or missing <= 0:
            return
        if before.end >= self.offsets.position:
            self._lose(max(before.counts, key=before.counts.__getitem__, default=0), missing)

    def _look_into(self, segment: Segment, block: Block) -> None:
        """Keep what may tell the last number of a life, and read the audits."""
        name_and_kind = self.streams.names.get(block.stream)
        if name_and_kind is None:
            return
        if name_and_kind[1] is not StreamKind.AUDIT:
            place = segment, block.at.offset, block.end.offset
            self._last_blocks[self._worker, block.stream].append(place)
            return
        for blob in block.blobs():
            try:
                logged = decode_any(blob)
            except MalformedRecord:  # erased, or of a later version
                continue
            if isinstance(logged, LoggedAudit):
                self._audit(logged)

    def _audit(self, audit: LoggedAudit) -> None:
        if audit.is_final:
            self._ended.add((audit.worker, audit.name))
        told = self._audited[audit.worker, audit.name]
        for kind in StreamKind:
            if kind in audit.kinds:
                told[kind] = max(audit.kinds[kind].sequence, told.get(kind, 0))

    def _lives(self) -> list[EndedLife]:
        by_worker: defaultdict[str, _Sequences] = defaultdict(dict)

        def note(worker: str, name: str, kind: StreamKind, seq: int) -> None:
            if (worker, name) not in self._ended:
                by_worker[worker][name, kind] = max(seq, by_worker[worker].get((name, kind), 0))

        for (worker, name), told in self._audited.items():
            for kind, seq in told.items():
                note(worker, name, kind, seq)
        for group in self.intents():
            for found, seq in _numbers_of(group.blobs):
                note(found, *self.streams.names[group.stream], seq)
        for (worker, stream), blocks in self._last_blocks.items():
            name, kind = self.streams.names[stream]
            if worker and (worker, name) in self._ended:
                continue
            for found, seq in _numbers(blocks):
                note(found, name, kind, seq)
        return [EndedLife(worker, found) for worker, found in by_worker.items() if found]


def _kept(block: Block) -> list[bytes]:
    return [blob for blob in block.blobs() if not blob.startswith(ERASED)]


def _stream_of(logged: Logged) -> tuple[str, StreamKind]:
    if isinstance(logged, LoggedAudit):
        return logged.name, StreamKind.AUDIT
    if isinstance(logged, LoggedLabel):
        return logged.name, StreamKind.LABELS
    return logged.name, StreamKind.SHADOW if logged.is_shadow else StreamKind.LIVE


def _numbers(places: Iterable[tuple[Segment, int, int]]) -> Iterator[tuple[str, int]]:
    """Yield worker and sequence number of the records in intact blocks."""
    for segment, start, end in places:
        with mapped(segment) as data:
            blobs = split_payload(data[start:end], HEADER_BYTES)
        yield from _numbers_of(blobs)


def _numbers_of(blobs: Iterable[bytes]) -> Iterator[tuple[str, int]]:
    for blob in blobs:
        try:
            logged = decode_any(blob)
        except MalformedRecord:  # erased, or of a later version
            continue
        if isinstance(logged, LoggedPrediction | LoggedLabel):
            yield logged.worker, logged.seq


def make_stream(number: int, name: str, kind: StreamKind) -> bytes:
    """Return the blob of a STREAM block."""
    return f"{number} {kind} {name}".encode()


def parse_stream(blob: bytes) -> tuple[int, str, StreamKind]:
    """Read the blob of a STREAM block."""
    number, kind, name = blob.decode().split(" ", 2)
    return int(number), name, StreamKind(kind)
