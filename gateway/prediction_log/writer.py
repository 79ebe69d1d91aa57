"""The prediction log: takes records from the request path, writes them to Redis in the background.

Knows the buffer, encoding and waiting; knows no route, no model and no protocol. Read first:
buffer.py (what is counted), shipper.py (how a record comes to be written once).

One task takes records off the buffer, encodes them, and has them shipped stream by stream; it does
not go on to the next batch before Redis confirmed or refused this one. So order within a stream is
the order of `offer`, and at most `batch_records` records are in flight.

Cancellation: only `close` cancels the task, at its limit; what is then buffered is counted as
`shutdown`. A wait is one future and one timer, no wait_for: nothing can swallow a cancellation.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway.config import PredictionLogConfig
from gateway.prediction_log.buffer import DropReason, Entry, RecordBuffer
from gateway.prediction_log.encoder import RecordEncoder
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.shipper import Shipper
from gateway.prediction_log.sink import RedisSink

MAX_ENTRY_BYTES: Final = 16 << 20
"""Largest encoded record. Redis breaks the connection of whoever sends more than its
proto-max-bulk-len (512 MiB, often less), and such a record would be sent again for ever."""
MAX_BATCH_BYTES: Final = 4 << 20
"""Tensor bytes encoded without giving way to the event loop; one larger record goes alone."""
CLOSING_RETRY_S: Final = 0.1
"""Longest pause between attempts while `close` waits."""
PROBE_S: Final = 5.0
"""How often an idle writer asks Redis for a sign of life."""
_NEVER: Final = sys.maxsize

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatistics:
    """Conservation, at every instant: offered = written + sum(dropped) + buffered.

    Live and shadow records are counted together: they share the buffer.
    """

    offered: int = 0
    written: int = 0
    """Confirmed by Redis."""
    dropped: Mapping[DropReason, int] = field(default_factory=dict)
    buffered: int = 0
    """Queued or in flight."""
    buffered_bytes: int = 0
    """Tensor bytes of what is buffered."""
    is_sink_up: bool = False
    """Whether the last exchange with Redis went well."""
    reconnects: int = 0
    """Connections made after the first."""
    collisions: int = 0
    """Records that met another writer's ids and were given new ones."""
    forgotten_restarts: int = 0
    """Times that Redis came back with less than it had confirmed; the rest is lost."""
    last_error: str = ""
    """Empty: none so far."""


class RecordSink(Protocol):
    """Where the pipeline puts records; a prediction log or none."""

    is_on: bool
    """Whether records are taken at all; False: none need be made."""

    def start(self) -> None:
        """Begin to write, on the running event loop."""

    def offer(self, record: PredictionRecord) -> None:
        """Take a record; never raises and never waits."""

    def statistics(self) -> LogStatistics:
        """Return a frozen copy of the counters."""

    async def close(self, timeout_s: float) -> None:
        """Write what is buffered for at most this long, then stop."""


class NoPredictionLog:
    """Serving without a prediction log: records are not taken and not counted."""

    is_on = False

    def start(self) -> None:
        """Do nothing."""

    def offer(self, record: PredictionRecord) -> None:
        """Forget the record."""

    def statistics(self) -> LogStatistics:
        """Return zeros."""
        return LogStatistics()

    async def close(self, timeout_s: float) -> None:
        """Do nothing."""


class PredictionLog:
    """A bounded buffer and one background task that empties it into Redis streams.

    Latency contract: `offer` is O(1) and does nothing but count and append. A record is on its way
    after at most ``linger_ms`` plus one write, while Redis is up.

    At the limit: new records are dropped and counted by reason; nothing accepted is displaced.
    Redis down: records wait in the buffer, for as long as it has room.

    Use from the event loop's thread only. Names of records must be of a bounded set: each makes a
    stream, and another one if it has shadows.
    """

    is_on = True

    def __init__(
        self,
        settings: PredictionLogConfig,
        *,
        url: str,
        replica: str,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Raises ValueError for a URL that redis-py does not understand."""
        self._settings = settings
        # Sequence numbers start anew with every process, so the worker's name must be a new one.
        self._worker = f"{replica}@{clock_ms():x}"
        self._encoder = RecordEncoder(
            worker=self._worker, capture_max_bytes=settings.capture_max_bytes
        )
        self._buffer = RecordBuffer(
            limit_records=settings.buffer_records, limit_bytes=settings.buffer_bytes
        )
        self._sink = RedisSink(url, timeout_s=settings.timeout_s)
        self._shipper = Shipper(
            self._sink,
            self._buffer,
            replica=replica,
            max_entries=settings.max_entries,
            clock_ms=clock_ms,
            pause=self._pause,
        )
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._wake_at_records = _NEVER
        self._is_closing = False
        self._has_warned = False

    def __repr__(self) -> str:
        return f"<PredictionLog {self._worker} {self._buffer!r}>"

    def start(self) -> None:
        """Begin to write, on the running event loop; once."""
        if self._task is not None:
            raise RuntimeError("the prediction log was started before")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="prediction log")

    def offer(self, record: PredictionRecord) -> None:
        """Take a record to be written, or drop and count it. Never raises, never waits.

        The record and the buffers that its tensors view must not change afterwards.
        """
        self._buffer.offer(record)
        if self._buffer.queued >= self._wake_at_records:
            self._wake()

    def statistics(self) -> LogStatistics:
        """Return a frozen copy of the counters."""
        buffer = self._buffer
        return LogStatistics(
            offered=buffer.offered,
            written=buffer.written,
            dropped=dict(buffer.dropped),
            buffered=buffer.buffered,
            buffered_bytes=buffer.held_bytes,
            is_sink_up=bool(self._shipper.is_sink_up),
            reconnects=max(0, self._sink.generation - 1),
            collisions=self._shipper.collisions,
            forgotten_restarts=self._shipper.forgotten_restarts,
            last_error=self._shipper.last_error,
        )

    async def close(self, timeout_s: float) -> None:
        """Write what is buffered for at most `timeout_s`, drop the rest, disconnect. Idempotent.

        Order: refuse new records, flush with a limit, cancel the writer, count what is left.
        """
        self._buffer.refuse_new()
        self._is_closing = True
        self._wake()
        try:
            if self._task is not None:
                # Neither cancels the task at its limit nor hides a cancellation of ours.
                await asyncio.wait({self._task}, timeout=timeout_s)
        finally:
            await self._stop()

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        left = self._buffer.buffered
        self._buffer.abandon()
        if left:
            _log.warning("prediction log closed before it was flushed", extra={"dropped": left})
        await self._sink.close()

    async def _run(self) -> None:
        """Ship batch after batch until `close` was called and nothing is queued."""
        await self._shipper.probe()
        batch_records = self._settings.batch_records
        while True:
            if not self._buffer.queued:
                if self._is_closing:
                    return
                await self._wait(PROBE_S, wake_at_records=1)
                if not self._buffer.queued and not self._is_closing:
                    await self._shipper.probe()
                continue
            if self._buffer.queued < batch_records and not self._is_closing:
                await self._wait(self._settings.linger_ms / 1e3, wake_at_records=batch_records)
            taken = self._buffer.take(max_records=batch_records, max_bytes=MAX_BATCH_BYTES)
            for (name, is_shadow), entries in self._encoded(taken).items():
                await self._shipper.ship(name, entries, is_shadow=is_shadow)
            await asyncio.sleep(0)  # gives way also where nothing was left to ship

    async def _pause(self, delay_s: float) -> None:
        """Wait between two attempts; `close` ends the wait and keeps the next ones short."""
        limit_s = CLOSING_RETRY_S if self._is_closing else delay_s
        await self._wait(min(delay_s, limit_s), wake_at_records=_NEVER)

    async def _wait(self, delay_s: float, *, wake_at_records: int) -> None:
        """Return after the delay, or as soon as that many records are queued, or on `close`."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        self._wake_at_records = wake_at_records
        timer = loop.call_later(delay_s, self._wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
            self._wake_at_records = _NEVER

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _encoded(self, taken: list[Entry]) -> dict[tuple[str, bool], list[Entry]]:
        """Encode what was taken and sort it by stream; drop what cannot be encoded."""
        by_stream: dict[tuple[str, bool], list[Entry]] = {}
        for entry in taken:
            record = entry.release()
            try:
                entry.blob = self._encoder.encode(record, entry.seq)
            except Exception as exc:  # whatever it is, it must cost this record only
                self._note_encode_error(exc)
                self._buffer.settle_dropped((entry,), DropReason.ENCODE_ERROR)
                continue
            if len(entry.blob) > MAX_ENTRY_BYTES:
                self._buffer.settle_dropped((entry,), DropReason.OVERSIZE)
                continue
            by_stream.setdefault((record.origin.name, record.origin.is_shadow), []).append(entry)
        return by_stream

    def _note_encode_error(self, exc: Exception) -> None:
        self._shipper.last_error = f"{type(exc).__name__}: {exc}"
        if not self._has_warned:
            self._has_warned = True
            _log.error("prediction record cannot be encoded", exc_info=exc)
