"""Makes the bytes of an append, and fixes where they go and which ids the records have.

Knows blocks, segments' plans, streams and ids; writes nothing. This is on the way of every answer:
per record there is only what `make_payload` does; the rest is per group.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.prediction_log.spool.appender import Write
from gateway.prediction_log.spool.block import (
    HEADER_BYTES,
    BlockKind,
    make_header,
    make_note,
    make_payload,
)
from gateway.prediction_log.spool.entry_ids import EntryIds
from gateway.prediction_log.spool.offsets import StreamTable
from gateway.prediction_log.spool.recovery import make_stream
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.spool.store import Done, Group
from gateway.prediction_log.streams import EntryId

_RECORDS = BlockKind.RECORDS
_INTENT = BlockKind.INTENT
_KEY = BlockKind.KEY


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
        """Return what a new segment has in front of these groups."""
        streams = {group.stream for group in groups}
        return self._life_bytes() + sum(map(self._declaration_bytes, streams))

    def undeclared_bytes(self, segment: Segment, groups: Sequence[Group]) -> int:
        """Return what declares the streams of groups that a segment does not know."""
        declared = segment.declared
        new = {group.stream for group in groups if group.stream not in declared}
        return sum(map(self._declaration_bytes, new)) if new else 0

    def plan(
        self,
        segment: Segment,
        groups: Sequence[Group],
        payloads: list[bytes],
        now_ms: int,
        done: Done,
    ) -> Write:
        """Return the write of groups at the end of what is planned of a segment."""
        write = Write(segment, done)
        buffers, counts = write.buffers, write.counts
        declared, salt, before = segment.declared, segment.salt, segment.records
        for (kind, stream, blobs, ref), payload in zip(groups, payloads, strict=True):
            if stream not in declared:
                declared.add(stream)
                buffers.append(self._declaration(stream, (0, before, salt)))
            count = len(blobs)
            rest = ref, before, salt
            if kind is _RECORDS:
                first = self._ids.give(count, now_ms)
                counts.append((stream, count, EntryId(first[0], first[1] + count - 1)))
                before += count
                if ref:
                    self.intents.pop(ref, None)
            else:
                first = now_ms, 0
                self._note(kind, segment, ref)
            buffers.append(make_header(kind, stream, first, count, payload, rest))
            buffers.append(payload)
        write.size_bytes = sum(map(len, buffers))
        segment.records = before
        segment.planned += write.size_bytes
        segment.pending += 1
        segment.last_ms = now_ms
        if not segment.first_ms:
            segment.first_ms = now_ms
        return write

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


def payloads_of(groups: Sequence[Group]) -> list[bytes]:
    """Return the payloads of groups."""
    return [make_payload(group.blobs) for group in groups]
