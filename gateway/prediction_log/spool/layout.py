"""Makes the bytes of an append, and fixes where they go and which ids the records have.

Knows blocks, segments' plans, streams and ids; writes nothing. This is on the way of every answer:
per record there is only what `make_payload` does; the rest is per group.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.prediction_log.spool.appender import Write
from gateway.prediction_log.spool.block import (
    HEADER_BYTES,
    Block,
    BlockKind,
    Position,
    make_header,
    make_note,
    make_payload,
    payload_bytes,
)
from gateway.prediction_log.spool.entry_ids import EntryIds
from gateway.prediction_log.spool.offsets import StreamTable
from gateway.prediction_log.spool.recovery import make_stream
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.spool.store import Done, Group
from gateway.prediction_log.streams import BEFORE_ALL, EntryId

_RECORDS = BlockKind.RECORDS
_INTENT = BlockKind.INTENT
_KEY = BlockKind.KEY
_STREAM = BlockKind.STREAM
_SMALLEST_BYTES = HEADER_BYTES + payload_bytes((b"",))
_new = tuple.__new__
"""Makes a named tuple without the function that knows its fields' names."""


class Layout:
    """Of one life of a spool."""

    def __init__(self, streams: StreamTable, ids: EntryIds, worker: str) -> None:
        self._streams = streams
        self._ids = ids
        self._worker = worker.encode()
        self.intents: dict[int, int] = {}
        """By ref of an intent that is not settled: its segment, which is to be kept."""

    def begin(self, segment: Segment, before: Segment | None) -> None:
        """Write the first block of a segment: whose it is, and how many records went before.

        Only written ones count: this block may be there before those that wait for a thread.

        Raises:
            OSError: as writing does.
        """
        is_next = before is not None and before.number == segment.number - 1
        ref = before.total + 1 if before is not None and is_next else 0
        block = make_note(BlockKind.LIFE, self._worker, (ref, 0, segment.salt))
        segment.write([block], 0, len(block))
        segment.planned = segment.written = len(block)

    def beginning_bytes(self, groups: Sequence[Group]) -> int:
        """Return what a new segment has of its own, and with these groups."""
        size = self._life_bytes()
        for group in groups:
            blobs_bytes = HEADER_BYTES + payload_bytes(group.blobs)
            size += blobs_bytes + self._declaration_bytes(group.stream)
        return size

    def need_bytes(self, segment: Segment, groups: Sequence[Group]) -> int:
        """Return the most that these groups take in a segment."""
        declared = segment.declared
        size = 0
        for _, stream, blobs, _ in groups:
            if len(blobs) == 1:
                size += _SMALLEST_BYTES + len(blobs[0])
            else:
                size += HEADER_BYTES + payload_bytes(blobs)
            if stream not in declared:
                size += self._declaration_bytes(stream)
        return size

    def plan(
        self,
        segment: Segment,
        groups: Sequence[Group],
        now_ms: int,
        done: Done,
    ) -> Write:
        """Return the write of groups at the end of what is planned of a segment."""
        declared, salt, before = segment.declared, segment.salt, segment.records
        offset, number = segment.planned, segment.number
        write = Write(segment, offset, done)
        blocks, buffers = write.blocks, write.buffers
        for kind, stream, blobs, ref in groups:
            if stream not in declared:
                declared.add(stream)
                data = self._declaration(stream, (0, before, salt))
                at = Position(number, offset)
                blocks.append(Block(_STREAM, 0, BEFORE_ALL, 1, 0, data, at))
                buffers.append(data)
                offset += len(data)
            count = len(blobs)
            rest = ref, before, salt
            if kind is _RECORDS:
                first = self._ids.give(count, now_ms)
                before += count
                if ref:
                    self.intents.pop(ref, None)
            else:
                first = EntryId(now_ms, 0)
                self._note(kind, segment, ref)
            payload = make_payload(blobs)
            data = make_header(kind, stream, first, count, payload, rest) + payload
            at = _new(Position, (number, offset))
            blocks.append(_new(Block, (kind, stream, first, count, ref, data, at)))
            buffers.append(data)
            offset += len(data)
        write.size_bytes = offset - write.offset
        segment.records = before
        segment.planned = offset
        segment.pending += 1
        segment.last_ms = now_ms
        if not segment.first_ms:
            segment.first_ms = now_ms
        return write

    def give_up(self, groups: Sequence[Group]) -> None:
        """Keep no intent for records that there was no room for: they are counted as dropped."""
        for group in groups:
            self.intents.pop(group.ref, None)

    def _note(self, kind: BlockKind, segment: Segment, ref: int) -> None:
        if kind is _INTENT:
            self.intents[ref] = segment.number
        elif kind is _KEY:
            segment.has_keys = True

    def _declaration(self, stream: int, rest: tuple[int, int, int]) -> bytes:
        name, kind = self._streams.names[stream]
        blob = make_stream(stream, name, kind)
        return make_note(BlockKind.STREAM, blob, rest)

    def _declaration_bytes(self, stream: int) -> int:
        if stream == 0:
            return 0
        name, kind = self._streams.names[stream]
        return HEADER_BYTES + 4 + len(make_stream(stream, name, kind))

    def _life_bytes(self) -> int:
        return HEADER_BYTES + 4 + len(self._worker)
