"""The task that empties the spool into Redis, for as long as the gateway runs.

Knows waiting, reconnecting and closing; what is done with a chunk is in delivery.py, what is done
besides in upkeep.py. Read those first.

States, and what leads from one to the next:
    down      nothing answers, or it cannot write now: disconnect, pause (doubling, with jitter)
    up        chunk after chunk, without a pause while a whole batch is waiting
    idle      nothing waits: until something is appended, and LINGER or a batch after that
    replaying the oldest record is a second old: paced, see pacing.py
    fenced    another gateway writes under our name: nothing is sent, asked again every two seconds
    closing   as fast as Redis takes it, until nothing is left or the time is up

Position: there is none here. Every round reads from where the store says that all before is
settled, so whatever ends a round early, the next one begins in the right place.

Cancellation: only `close` cancels the task, at its limit, and as often as it takes. A wait is one
future and one timer. A read in a thread is waited for also when it was cancelled, because the spool
is closed after.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import partial
from typing import Final, TypeVar

from gateway.ending import end, in_thread
from gateway.prediction_log.shipping.delivery import Delivery, Rewound
from gateway.prediction_log.shipping.fencing import Fenced, Producer
from gateway.prediction_log.shipping.hooks import Hooks, ShipBooks, run_hook
from gateway.prediction_log.shipping.outlets import USUAL_RECORD_BYTES
from gateway.prediction_log.shipping.pacing import Pace
from gateway.prediction_log.shipping.retention import Retention
from gateway.prediction_log.shipping.sink import RedisSink, SinkDown
from gateway.prediction_log.shipping.statistics import ShipStatistics
from gateway.prediction_log.shipping.upkeep import Upkeep
from gateway.prediction_log.spool.store import Store
from gateway.prediction_log_config import PredictionLogConfig

FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 5.0
CLOSING_RETRY_S: Final = 0.1
"""Longest pause between attempts while `close` waits."""
FENCED_RETRY_S: Final = 2.0
FENCED_REMINDER_S: Final = 60.0
TICK_S: Final = 2.0
"""Longest wait before it is looked at what else is due."""
CHUNK_BYTES: Final = 4 << 20

T = TypeVar("T")

_log = logging.getLogger(__name__)


class _Wait(Enum):
    """What the task waits for."""

    NONE = auto()
    """It does not wait."""
    PAUSE = auto()
    """A time to pass."""
    FOR_RECORDS = auto()
    """Something to be appended."""
    LINGER = auto()
    """More to come, for as long as the first may wait."""


class Shipper:
    """Ships one store to one Redis. Use from the event loop's thread only."""

    def __init__(
        self,
        *,
        store: Store,
        sink: RedisSink,
        books: ShipBooks,
        config: PredictionLogConfig,
        producer: Producer,
        hooks: Hooks = Hooks(),  # noqa: B008  # frozen and empty
    ) -> None:
        self._store = store
        self._sink = sink
        self._hooks = hooks
        self._clock_ms = producer.clock_ms
        self._token = producer.token
        self._batch_records = config.batch_records
        self._linger_s = config.linger_ms / 1e3
        retention = Retention(config.retention)
        self._delivery = Delivery(
            store=store,
            sink=sink,
            books=books,
            retention=retention,
            producer=producer,
            hooks=hooks,
        )
        self._upkeep = Upkeep(
            sink=sink, delivery=self._delivery, retention=retention, clock_ms=self._clock_ms
        )
        self._pace = Pace(config.replay_factor)
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wait_is = _Wait.NONE
        self._is_closing = False
        self._round_lock = asyncio.Lock()
        self._next_tick_s = 0.0
        self._batch_bytes = self._batch_records * USUAL_RECORD_BYTES
        """About what a whole batch has."""
        self._shipped_bytes = 0
        self._shipped_records = 0
        self._is_up: bool | None = None
        self._is_fenced = False
        self._reminder_due_s = 0.0
        self._last_error = ""
        store.on_append = self._appended

    def __repr__(self) -> str:
        return f"<Shipper up: {self._is_up}, fenced: {self._is_fenced}, {self._sink!r}>"

    def start(self) -> None:
        """Begin, on the running event loop; once."""
        if self._task is not None:
            raise RuntimeError("the shipper was started before")
        self._task = asyncio.get_running_loop().create_task(self.run(), name="prediction log")

    def statistics(self) -> ShipStatistics:
        """Return a frozen copy of the counters."""
        counts = self._delivery.counts
        outlets = self._delivery.outlets
        return ShipStatistics(
            is_sink_up=bool(self._is_up),
            is_fenced=self._is_fenced,
            reconnects=max(0, self._sink.generation - 1),
            batches=counts.batches,
            batch_s=counts.batch_s,
            duplicates=counts.duplicates,
            collisions=counts.collisions,
            rewound=counts.rewound,
            forgotten=counts.forgotten,
            trimmed=counts.trimmed,
            trimmed_unread={(each.name, each.kind): each.trimmed_unread for each in outlets},
            orphans_trimmed=counts.orphans_trimmed,
            memory_need_bytes=counts.memory_need_bytes,
            last_error=self._last_error or self._delivery.last_error,
        )

    async def run(self) -> None:
        """Ship until `close` was called and nothing is left, whatever Redis does meanwhile."""
        if self._task is None:
            self._task = asyncio.current_task()
        delays = _retry_delays()
        while True:
            try:
                await self._connect()
                await self._ship()
                return
            except SinkDown as exc:
                error = str(exc)
            except Exception as exc:  # a bug: what is spooled stays, and is tried again
                _log.exception("shipping prediction records failed")
                error = f"{type(exc).__name__}: {exc}"
            if self._is_up:
                delays = _retry_delays()
            self._note_down(error)
            await self._sink.disconnect()
            limit_s = CLOSING_RETRY_S if self._is_closing else LONGEST_RETRY_S
            await self._wait(min(next(delays), limit_s), for_records=False)

    async def exclusive(self, job: Callable[[], T]) -> T:
        """Run a job in a thread while nothing is read from the store or under way to Redis."""
        async with self._round_lock:
            return await in_thread(job)

    async def close(self, timeout_s: float) -> None:
        """Ship what is left for at most this long, end the task, and disconnect. Idempotent.

        What is not shipped stays in the store.
        """
        self._is_closing = True
        self._wake()
        task = self._task
        if task is not None:
            try:
                # Neither cancels the task at its limit nor hides a cancellation of ours.
                await asyncio.wait({task}, timeout=timeout_s)
            finally:
                ended_by_itself = task.done() and not task.cancelled()
                await end(task)
            if ended_by_itself:
                await self._release()
        await self._sink.close()

    async def _release(self) -> None:
        """Let the next gateway of our name begin at once."""
        owned = self._delivery.owned
        try:
            while owned:
                await self._sink.release(owned.pop(), self._token)
        except SinkDown as exc:
            self._last_error = str(exc)

    async def _connect(self) -> None:
        await self._sink.connect()
        if self._hooks.on_connected is not None:
            await run_hook(self._hooks.on_connected())
        self._delivery.look_for_kept()
        await self._upkeep.begin(asyncio.get_running_loop().time())

    async def _ship(self) -> None:
        """Round after round on one connection; returns when closing and nothing is left."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with self._round_lock:
                    records, has_moved = await self._round()
                    self._note_up()
                    await self._upkeep.tend(loop.time(), has_exchanged=records > 0)
            except Rewound:
                self._pace.rebase(self._seen(), loop.time())
                continue
            except Fenced as exc:
                self._note_fenced(exc, loop.time())
                if self._is_closing:
                    return
                await self._tick(loop.time())
                await self._wait(FENCED_RETRY_S, for_records=False)
                continue
            if self._is_fenced and (records or self._delivery.owns_all()):
                self._note_unfenced()
            await self._tick(loop.time())
            if has_moved:
                await self._breathe(records, loop.time())
            elif self._is_closing:
                return
            else:
                await self._wait(self._next_tick_s - loop.time(), for_records=True)

    async def _round(self) -> tuple[int, bool]:
        """Ship the next chunk; return its records, and whether the store has moved on."""
        store = self._store
        at = store.shipped
        read = partial(store.read, at, max_bytes=CHUNK_BYTES, max_records=self._batch_records)
        chunk = read() if store.is_hot(at) else await in_thread(read)
        if not chunk.blocks and not chunk.corrupt and chunk.next <= at:
            return 0, False
        records = await self._delivery.deliver(chunk)
        self._shipped_records += records
        self._shipped_bytes += sum([len(block.data) for block in chunk.blocks])
        self._batch_bytes = self._batch_records * self._mean_bytes()
        return records, True

    async def _tick(self, now_s: float) -> None:
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_S
            if self._hooks.on_tick is not None:
                await run_hook(self._hooks.on_tick())

    async def _breathe(self, records: int, now_s: float) -> None:
        """Between two rounds: wait if a replay is too fast, or until a batch is together."""
        self._pace.note(self._seen(), now_s)
        oldest_ms = self._store.oldest_unshipped_ms
        age_ms = self._clock_ms() - oldest_ms if oldest_ms else 0
        delay_s = self._pace.delay_s(records, age_ms, now_s)
        if self._is_closing:
            await asyncio.sleep(0)
        elif delay_s > 0:
            await self._wait(delay_s, for_records=False)
        elif self._has_batch() or age_ms >= 1e3 * self._linger_s:
            await asyncio.sleep(0)
        else:
            await self._wait(self._next_tick_s - now_s, for_records=True)

    def _mean_bytes(self) -> float:
        records = self._shipped_records
        return self._shipped_bytes / records if records else USUAL_RECORD_BYTES

    def _seen(self) -> float:
        """Return about how many records there have been so far."""
        return self._shipped_records + self._store.spooled_bytes / self._mean_bytes()

    def _has_batch(self) -> bool:
        """Whether about a whole batch waits; counting it would cost every append more."""
        return self._store.spooled_bytes >= self._batch_bytes

    async def _wait(self, delay_s: float, *, for_records: bool) -> None:
        """Return after the delay, on `close`, or when records have waited or are a batch."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        self._timer = loop.call_later(max(0.0, delay_s), self._wake)
        self._wait_is = _Wait.FOR_RECORDS if for_records else _Wait.PAUSE
        if for_records and self._store.spooled_bytes:
            self._appended()
        try:
            await waiter
        finally:
            self._timer.cancel()
            self._waiter, self._wait_is = None, _Wait.NONE

    def _appended(self) -> None:
        """Something was appended to the store: see that it is sent soon."""
        wait = self._wait_is
        if wait is _Wait.NONE or wait is _Wait.PAUSE:
            return
        if self._store.spooled_bytes >= self._batch_bytes:
            self._wake()
        elif wait is _Wait.FOR_RECORDS and self._timer is not None:
            self._wait_is = _Wait.LINGER
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._linger_s, self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _note_up(self) -> None:
        if self._is_up is not True:
            self._is_up = True
            _log.info("prediction log sink up", extra={"connections": self._sink.generation})

    def _note_down(self, error: str) -> None:
        self._last_error = error
        if self._is_up is not False:
            self._is_up = False
            fields = {"error": error, "spooled_bytes": self._store.spooled_bytes}
            _log.warning("prediction log sink down", extra=fields)

    def _note_fenced(self, exc: Fenced, now_s: float) -> None:
        """Say it loudly, and again from time to time: records pile up here."""
        self._note_up()
        self._last_error = str(exc)
        if not self._is_fenced or now_s >= self._reminder_due_s:
            self._is_fenced = True
            self._reminder_due_s = now_s + FENCED_REMINDER_S
            fields = {
                "public_name": exc.name,
                "other_silent_ms": exc.silent_ms,
                "spooled_bytes": self._store.spooled_bytes,
            }
            _log.error(
                "another gateway writes under this replica's name: records are not shipped",
                extra=fields,
            )

    def _note_unfenced(self) -> None:
        self._is_fenced = False
        _log.warning("no other gateway writes under this replica's name any more")


def _retry_delays() -> Iterator[float]:
    """Yield pauses that double, each shortened by up to half so that gateways spread out."""
    delay_s = FIRST_RETRY_S
    while True:
        yield delay_s * random.uniform(0.5, 1.0)
        delay_s = min(2 * delay_s, LONGEST_RETRY_S)
