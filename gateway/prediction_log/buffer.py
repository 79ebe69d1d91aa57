"""The bounded buffer between the request path and the writer, and the count of every record.

Pure: knows no event loop, no clock and no Redis. Used from the event loop's thread only.

Invariants, to the unit, whenever nobody is inside a method:
  - offered = written + sum(dropped) + buffered, where buffered = queued + in flight;
  - buffered <= limit_records, and the tensor bytes of what is buffered <= limit_bytes.

A record moves once: queued, then in flight (taken by the writer), then written or dropped.
`written` means that Redis confirmed it; a record that was sent and never confirmed is dropped in
this count, although it may stand in the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import StrEnum

from gateway.prediction_log.record import PredictionRecord, nbytes
from gateway.prediction_log.streams import EntryId


class DropReason(StrEnum):
    """Why a record was not written."""

    BUFFER_RECORDS = "buffer_records"
    """The buffer held as many records as it may."""
    BUFFER_BYTES = "buffer_bytes"
    """The buffer held as many bytes of tensor data as it may."""
    ENCODE_ERROR = "encode_error"
    """The record could not be made into bytes."""
    OVERSIZE = "oversize"
    """The encoded record is larger than an entry may be."""
    REFUSED = "refused"
    """Redis will never take it, such as WRONGTYPE: the key is no stream."""
    SHUTDOWN = "shutdown"
    """Not written when the process stopped, or offered after."""


class Entry:
    """One accepted record on its way to the stream. Identity matters, so it is no value."""

    __slots__ = ("_record", "blob", "held_bytes", "id", "seq")

    def __init__(self, record: PredictionRecord, seq: int, held_bytes: int) -> None:
        self._record: PredictionRecord | None = record
        self.seq = seq
        self.held_bytes = held_bytes
        """Counted against the buffer until written or dropped."""
        self.blob = b""
        self.id: EntryId | None = None
        """Entry id in the stream, from the first delivery on."""

    def release(self) -> PredictionRecord:
        """Give the record up to be encoded, once; its tensors are then free to go."""
        record, self._record = self._record, None
        if record is None:
            raise RuntimeError("the record was released before")
        return record


class RecordBuffer:
    """The queue, what the writer took out of it, and the counters of both.

    At the limit the new record is dropped and counted; what is buffered is never displaced.
    """

    def __init__(self, *, limit_records: int, limit_bytes: int) -> None:
        self._limit_records = limit_records
        self._limit_bytes = limit_bytes
        self._queue: deque[Entry] = deque()
        self._in_flight = 0
        self._held_bytes = 0
        self._sequences: dict[tuple[str, bool], int] = {}
        self._is_shut = False
        self.offered = 0
        self.written = 0
        self.dropped: dict[DropReason, int] = dict.fromkeys(DropReason, 0)

    def __repr__(self) -> str:
        return f"<RecordBuffer {len(self._queue)} queued, {self._in_flight} in flight>"

    @property
    def queued(self) -> int:
        """Records that the writer has not yet taken."""
        return len(self._queue)

    @property
    def buffered(self) -> int:
        """Records queued or in flight."""
        return len(self._queue) + self._in_flight

    @property
    def held_bytes(self) -> int:
        """Tensor bytes counted against the limit."""
        return self._held_bytes

    def offer(self, record: PredictionRecord) -> None:
        """Queue a record, or drop and count it; O(1), never raises."""
        self.offered += 1
        # A dropped record has used its number: the gap is how a reader sees the loss.
        origin = record.origin
        stream = origin.name, origin.is_shadow
        seq = self._sequences.get(stream, 0) + 1
        self._sequences[stream] = seq
        try:
            held_bytes = nbytes(record)
        except Exception:  # a record that breaks its type must not cost its caller the answer
            self.dropped[DropReason.ENCODE_ERROR] += 1
            return
        if self._is_shut:
            self.dropped[DropReason.SHUTDOWN] += 1
        elif self.buffered >= self._limit_records:
            self.dropped[DropReason.BUFFER_RECORDS] += 1
        elif self._held_bytes + held_bytes > self._limit_bytes:
            self.dropped[DropReason.BUFFER_BYTES] += 1
        else:
            self._queue.append(Entry(record, seq, held_bytes))
            self._held_bytes += held_bytes

    def take(self, *, max_records: int, max_bytes: int) -> list[Entry]:
        """Move the oldest records to in flight, within both limits but at least one if any."""
        taken: list[Entry] = []
        room_bytes = max_bytes
        while self._queue and len(taken) < max_records:
            room_bytes -= self._queue[0].held_bytes
            if room_bytes < 0 and taken:
                break
            taken.append(self._queue.popleft())
        self._in_flight += len(taken)
        return taken

    def settle_written(self, entries: Iterable[Entry]) -> None:
        """Count records in flight as written."""
        self.written += self._release(entries)

    def settle_dropped(self, entries: Iterable[Entry], reason: DropReason) -> None:
        """Count records in flight as dropped."""
        self.dropped[reason] += self._release(entries)

    def refuse_new(self) -> None:
        """From now on drop what is offered, as `shutdown`; what is buffered stays."""
        self._is_shut = True

    def abandon(self) -> None:
        """Drop everything buffered, as `shutdown`. Nothing in flight may be settled after."""
        self.refuse_new()
        self.dropped[DropReason.SHUTDOWN] += self.buffered
        self._queue.clear()
        self._in_flight = self._held_bytes = 0

    def _release(self, entries: Iterable[Entry]) -> int:
        count = 0
        for entry in entries:
            count += 1
            self._held_bytes -= entry.held_bytes
        self._in_flight -= count
        return count
