"""Delivers one batch at a time to its Redis stream: once, however often it has to be sent.

Knows streams, ids, retries and the sink's health; knows no event to wait for but a pause that is
handed in, and settles every record with the buffer. Read first: sink.py (why the same ids may be
sent again).

Theory. A batch gets its ids at its first delivery and keeps them through every retry. Of each
record Redis says, or fails to say, one of these:
  - added now, or found in the stream under its id with the same bytes: written;
  - refused, and not found there: another writer has overtaken us, or the stream holds ids of a
    clock that ran ahead; the record gets a new id above what Redis has, and goes again. Had a
    consumer deleted the entry meanwhile this makes a repeat, which consumers drop by `rid`; the
    other mistake, a loss, could not be repaired;
  - an error about the server's state, no answer, no connection: the batch is kept and sent again;
  - any other error: what is left of the batch is dropped as `refused`, it would fail for ever.

Invariant: a record leaves `batch.entries` in the same step in which the buffer settles it, with no
await between, so the buffer's counters hold whenever somebody can look.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.prediction_log.buffer import DropReason, Entry, RecordBuffer
from gateway.prediction_log.sink import RedisSink, SinkDown, SinkRefused
from gateway.prediction_log.streams import EntryId, Stream, stream_key

FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """Records of one stream that are not settled yet, ids ascending, those without one last."""

    stream: Stream
    entries: list[Entry]


class Shipper:
    """The one writer of a replica's streams. Used by one task."""

    def __init__(
        self,
        sink: RedisSink,
        buffer: RecordBuffer,
        *,
        replica: str,
        max_entries: int,
        clock_ms: Callable[[], int],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._sink = sink
        self._buffer = buffer
        self._replica = replica
        self._max_entries = max_entries
        self._clock_ms = clock_ms
        self._pause = pause
        self._streams: dict[tuple[str, bool], Stream] = {}
        self._forgotten_generation = 0
        self.is_sink_up: bool | None = None
        """None: not tried yet."""
        self.collisions = 0
        self.forgotten_restarts = 0
        self.last_error = ""

    def __repr__(self) -> str:
        return f"<Shipper {len(self._streams)} streams, up: {self.is_sink_up}>"

    async def ship(self, name: str, entries: list[Entry], *, is_shadow: bool) -> None:
        """Deliver records of one stream, in order; returns when every one of them is settled."""
        stream = self._streams.get((name, is_shadow))
        if stream is None:
            key = stream_key(name, self._replica, is_shadow=is_shadow)
            stream = self._streams[name, is_shadow] = Stream(name, key, is_shadow)
        batch = _Batch(stream, entries)
        delays = _retry_delays()
        while batch.entries:
            try:
                await self._deliver(batch)
            except SinkDown as exc:
                self._note_down(exc)
                await self._sink.disconnect()
                await self._pause(next(delays))
            except SinkRefused as exc:
                self._refuse(batch, exc)
            except Exception as exc:  # a bug, or a server that talks nonsense: go on with the next
                _log.exception("prediction log batch failed", extra={"stream": stream.key})
                self._refuse(batch, exc)
            else:
                self._note_up()

    async def probe(self) -> None:
        """Find out whether Redis is there, while there is nothing to ship."""
        try:
            await self._sink.connect()
            await self._sink.ping()
        except SinkDown as exc:
            self._note_down(exc)
            await self._sink.disconnect()
        except SinkRefused as exc:
            self.last_error = str(exc)
        else:
            self._note_up()

    async def _deliver(self, batch: _Batch) -> None:
        """Send a batch once and settle what became of its records; the rest stays in it."""
        stream = batch.stream
        await self._sink.connect()
        if stream.synced_generation != self._sink.generation:
            await self._sync(stream)
        now_ms = self._clock_ms()
        numbered = []
        for entry in batch.entries:
            if entry.id is None:
                entry.id = stream.next_id(now_ms)
            numbered.append((entry.id, entry.blob))
        appended = await self._sink.append(stream.key, numbered, max_entries=self._max_entries)
        end = appended.refused + appended.added
        suspects = batch.entries[: appended.refused]
        added = batch.entries[appended.refused : end]
        batch.entries = suspects + batch.entries[end:]
        self._settle_written(stream, added)
        if suspects:
            # If the look-up fails, the suspects go again with the same ids and are judged then.
            await self._judge(batch, suspects)
        if appended.failure is not None:
            raise appended.failure
        stream.is_refused = False

    def _id_of(self, entry: Entry, stream: Stream) -> EntryId:
        if entry.id is None:
            entry.id = stream.next_id(self._clock_ms())
        return entry.id

    async def _sync(self, stream: Stream) -> None:
        """Learn where the stream ends and make it known to readers; once per connection."""
        found = await self._sink.last_id(stream.key)
        await self._sink.register(stream.name, stream.key, is_shadow=stream.is_shadow)
        confirmed = stream.confirmed
        generation = self._sink.generation
        if stream.sync(found, generation) and self._forgotten_generation != generation:
            self._forgotten_generation = generation
            self.forgotten_restarts += 1
            _log.warning(
                "Redis has forgotten prediction records that it had confirmed",
                extra={"stream": stream.key, "confirmed": str(confirmed), "found": str(found)},
            )

    async def _judge(self, batch: _Batch, suspects: list[Entry]) -> None:
        """Tell refused records that an earlier delivery wrote from those that another writer met.

        The former are written; the latter move to the end of the batch and lose their id.
        """
        stream = batch.stream
        ids = [self._id_of(entry, stream) for entry in suspects]
        standing = await self._sink.blobs(stream.key, ids[0], ids[-1])
        ours = [e for e, i in zip(suspects, ids, strict=True) if standing.get(i) == e.blob]
        overtaken = [e for e, i in zip(suspects, ids, strict=True) if standing.get(i) != e.blob]
        batch.entries = batch.entries[len(suspects) :] + overtaken
        self._settle_written(stream, ours)
        if overtaken:
            for entry in overtaken:
                entry.id = None
            stream.synced_generation = 0
            self._note_collision(stream, len(overtaken))

    def _settle_written(self, stream: Stream, entries: list[Entry]) -> None:
        self._buffer.settle_written(entries)
        if entries and entries[-1].id is not None:
            stream.confirm(entries[-1].id)

    def _refuse(self, batch: _Batch, exc: Exception) -> None:
        self.last_error = str(exc)
        self._buffer.settle_dropped(batch.entries, DropReason.REFUSED)
        batch.entries = []
        stream = batch.stream
        if not stream.is_refused:
            stream.is_refused = True
            fields = {"stream": stream.key, "error": str(exc)}
            _log.error("Redis refuses prediction records", extra=fields)

    def _note_collision(self, stream: Stream, count: int) -> None:
        self.collisions += count
        if not stream.has_collided:
            stream.has_collided = True
            _log.error("another writer uses this replica's stream", extra={"stream": stream.key})

    def _note_up(self) -> None:
        if self.is_sink_up is not True:
            self.is_sink_up = True
            _log.info("prediction log sink up", extra={"connections": self._sink.generation})

    def _note_down(self, exc: SinkDown) -> None:
        self.last_error = str(exc)
        if self.is_sink_up is not False:
            self.is_sink_up = False
            fields = {"error": str(exc), "buffered": self._buffer.buffered}
            _log.warning("prediction log sink down", extra=fields)


def _retry_delays() -> Iterator[float]:
    """Yield pauses that double, each shortened by up to half so that gateways spread out."""
    delay_s = FIRST_RETRY_S
    while True:
        yield delay_s * random.uniform(0.5, 1.0)
        delay_s = min(2 * delay_s, LONGEST_RETRY_S)
