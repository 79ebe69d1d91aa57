"""The books of a spool's segments: what is spooled, what is shipped, and what may go.

Knows segments and positions; writes no file and knows no time. Event loop's thread only.

Rules, for each stream:
  - What stands before `shipped` is settled. After a rewind `shipped` is further back than most
    streams need: what stands before a stream's entry in `streams.settled` is settled too.
  - A block behind that may be settled in part: ids up to `last_shipped`.
  - `spooled` is the sum over all segments of records that are not settled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from gateway.prediction_log.spool.block import START, Block, BlockKind, Header, Position
from gateway.prediction_log.spool.offsets import Offsets, StreamTable
from gateway.prediction_log.spool.reading import headers
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.streams import BEFORE_ALL, EntryId

Damaged = tuple[Position, int, int]
"""Where, stream, records."""


class Books:
    """See the module."""

    def __init__(self, streams: StreamTable, offsets: Offsets) -> None:
        self.streams = streams
        self.shipped = offsets.position
        self.segments: dict[int, Segment] = {}
        """By number, oldest first."""
        self.spooled: Counter[int] = Counter()
        self.next_number = max(1, offsets.next_segment)
        self._damage: dict[tuple[Position, int], int] = {}
        """Read and not yet settled: records lost, by where and of which stream."""

    def add(self, segment: Segment) -> None:
        """Take in a segment that is newer than all others."""
        self.segments[segment.number] = segment
        self.next_number = max(self.next_number, segment.number + 1)

    @property
    def held_bytes(self) -> int:
        """Bytes of all files."""
        return sum(segment.size_bytes for segment in self.segments.values())

    @property
    def spooled_bytes(self) -> int:
        """Bytes behind `shipped`."""
        return self.bytes_from(self.shipped)

    def bytes_from(self, position: Position) -> int:
        """Return the bytes written from a position on."""
        total = 0
        for segment in reversed(self.segments.values()):
            if segment.number < position.segment:
                break
            at = position.offset if segment.number == position.segment else 0
            total += max(0, segment.written - at)
        return total

    def front(self) -> Segment | None:
        """Return the oldest segment with something that is not settled."""
        for segment in self.segments.values():
            if segment.end > self.shipped and segment.written:
                return segment
        return None

    def oldest_unshipped_ms(self) -> int:
        """Return the time of the oldest record that is not settled; 0: there is none."""
        if not any(self.spooled.values()):
            return 0
        for segment in self.segments.values():
            start = self._offset_in(segment, self.shipped)
            for offset, header in headers(segment, start, segment.written):
                if header.records and not self._is_settled(header, segment, offset):
                    return header.first_id.ms
        return 0

    def met(self, damage: list[Damaged]) -> None:
        """Note what a read has found damaged, until it is settled."""
        for at, stream, records in damage:
            self._damage[at, stream] = records

    def written(self, segment: Segment, blocks: Iterable[Block]) -> None:
        """Count the records of blocks that were written."""
        counts, spooled = segment.counts, self.spooled
        for block in blocks:
            kind, stream, first_id, records, _, _, _ = block
            if kind is BlockKind.RECORDS:
                segment.total += records
                counts[stream] = counts.get(stream, 0) + records
                segment.last_ids[stream] = first_id if records == 1 else block.last_id
                spooled[stream] += records

    def mark_shipped(
        self, position: Position, counts: Mapping[int, int], last_ids: Mapping[int, EntryId]
    ) -> None:
        """Settle records; see Store."""
        streams, spooled = self.streams, self.spooled
        for stream, records in counts.items():
            spooled[stream] -= records
        for stream, last in last_ids.items():
            streams.last_shipped[stream] = max(last, streams.last_shipped.get(stream, BEFORE_ALL))
        if position <= self.shipped:
            return
        self.shipped = position
        if streams.settled:
            streams.settled = {s: at for s, at in streams.settled.items() if at > position}
        if self._damage:
            self._settle_damage(position)

    def is_settled(self, segment: Segment) -> bool:
        """Whether a segment is only kept for a Redis that forgets."""
        return segment.is_quiet and segment.end <= self.shipped

    def forget(self, segment: Segment) -> None:
        """Take a segment out of the books."""
        del self.segments[segment.number]

    def droppable(self, in_hand: int) -> Segment | None:
        """Return the oldest segment that is not settled and may be dropped: not the one in hand.

        Of that one nobody can say what will become of its records.
        """
        for segment in self.segments.values():
            if segment.is_quiet and segment.number != in_hand and segment.end > self.shipped:
                return segment
        return None

    def drop(self, segment: Segment) -> dict[int, int]:
        """Take a segment out of the books with what is not settled of it, and return that."""
        lost = self._unsettled(segment)
        for stream, records in lost.items():
            self.spooled[stream] -= records
        if segment is self.front():
            self.shipped = Position(segment.number + 1, 0)
        self.forget(segment)
        return lost

    def kept_streams(self) -> set[int]:
        """Return the streams of the records that are kept, shipped or not."""
        known = self.streams.names
        return {
            stream
            for segment in self.segments.values()
            for stream in segment.counts
            if stream in known
        }

    def rewind(self, stream: int, above: EntryId) -> int:
        """Go back to where ids above begin; see Store."""
        last = self.streams.last_shipped.get(stream, BEFORE_ALL)
        settled_to = self._settled_to(stream)
        first: Position | None = None
        records = 0
        for segment in list(self.segments.values()):
            if first is not None and segment.end <= settled_to and segment.first_ms > above.ms:
                records += segment.counts.get(stream, 0)  # all of it: there may be many segments
                continue
            for offset, header in self._above(segment, stream, above):
                at = Position(segment.number, offset)
                limit = header.last_id if at < settled_to else last
                found = _between(header, above, limit)
                if found and offset not in segment.settled_damage:
                    first = first or at
                    records += found
                elif at >= settled_to and header.first_id > last:
                    break
        self.streams.last_shipped[stream] = min(above, last)
        if first is not None:
            self.spooled[stream] += records
            self._go_back(stream, first)
        return records

    def _settled_to(self, stream: int) -> Position:
        return max(self.shipped, self.streams.settled.get(stream, START))

    def _is_settled(self, header: Header, segment: Segment, offset: int) -> bool:
        return Position(segment.number, offset) < self._settled_to(header.stream)

    def _above(self, segment: Segment, stream: int, above: EntryId) -> Iterator[tuple[int, Header]]:
        """Yield the blocks of a stream in a segment that have an id above."""
        if segment.last_ids.get(stream, BEFORE_ALL) > above:
            for offset, header in headers(segment, 0, segment.written):
                is_its = header.kind is BlockKind.RECORDS and header.stream == stream
                if is_its and header.last_id > above:
                    yield offset, header

    def _go_back(self, stream: int, first: Position) -> None:
        """Have a stream read again from a block on, and the others from where they were."""
        settled, was = self.streams.settled, self.shipped
        for other in self.streams.names:
            settled[other] = max(was, settled.get(other, was))
        settled[stream] = first
        start = first
        for segment in self.segments.values():
            if segment.has_keys and segment.number <= first.segment:
                start = Position(segment.number, 0)  # who forgot the records forgot the keys
                break
        self.shipped = min(was, start)
        self.streams.settled = {s: at for s, at in settled.items() if at > self.shipped}

    def _unsettled(self, segment: Segment) -> dict[int, int]:
        """Return the records of a segment that are not settled, by stream."""
        if segment is self.front():  # it may be settled in part
            later = Counter[int]()
            for other in self.segments.values():
                if other.number > segment.number:
                    later.update(self._unsettled(other))
            left = {s: records - later[s] for s, records in self.spooled.items()}
        else:
            left = {stream: self._count(segment, stream) for stream in segment.counts}
        return {stream: records for stream, records in left.items() if records > 0}

    def _count(self, segment: Segment, stream: int) -> int:
        """Return the records of a stream in a segment, from where it is not settled."""
        settled_to = self.streams.settled.get(stream, START)
        start = self._offset_in(segment, settled_to)
        if start == 0:
            return segment.counts[stream]
        found = headers(segment, start, segment.written)
        return sum(header.records for _, header in found if header.stream == stream)

    def _offset_in(self, segment: Segment, position: Position) -> int:
        """Return where in a segment a position is: its start, its end, or in between."""
        if position.segment == segment.number:
            return position.offset
        return segment.written if position.segment > segment.number else 0

    def _settle_damage(self, position: Position) -> None:
        for (at, stream), records in list(self._damage.items()):
            if at < position:
                del self._damage[at, stream]
                segment = self.segments.get(at.segment)
                if segment is not None:
                    segment.settled_damage.add(at.offset)
                    segment.counts[stream] = max(0, segment.counts.get(stream, 0) - records)


def _between(header: Header, above: EntryId, limit: EntryId) -> int:
    """Return how many ids of a block are above one and not above another."""
    first, last = header.first_id, header.last_id
    low = max(first.seq, above.seq + 1) if above.ms == first.ms else first.seq
    high = min(last.seq, limit.seq) if limit.ms == first.ms else last.seq
    if above.ms > first.ms or limit.ms < first.ms:
        return 0
    return max(0, high - low + 1)
