"""The prediction log: records are safe before answers leave, and in Redis as soon as it takes them.

Puts intake, store and shipper together, and knows the order of starting and stopping them. Knows no
route, no model and no protocol. Read first: intake.py (what is taken, and when it is written),
spool/store.py (where it is safe), shipping/shipper.py (how it gets to Redis).

Invariant, to the unit, of each name and kind, whenever nobody is inside a method:
    answered + recovered = sampled_out + shipped + spooled + sum(dropped)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from gateway.ending import end
from gateway.prediction_log.capture.policy import Policies
from gateway.prediction_log.capture.reducer import Reducer
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.counts import LogStatistics
from gateway.prediction_log.duties import Duties
from gateway.prediction_log.intake import Intake
from gateway.prediction_log.privacy.tap import Privacy
from gateway.prediction_log.shipping.audit import SpoolState, final_audits, make_audit
from gateway.prediction_log.shipping.fencing import Producer
from gateway.prediction_log.shipping.shipper import Shipper
from gateway.prediction_log.shipping.sink import RedisSink
from gateway.prediction_log.shipping.statistics import ShipStatistics
from gateway.prediction_log.spool.opening import open_store
from gateway.prediction_log.spool.orphans import orphans
from gateway.prediction_log.spool.recovery import Recovery
from gateway.prediction_log.spool.store import DropReason, Lost, Store
from gateway.prediction_log_config import PredictionLogConfig

HOUSEKEEPING_S: Final = 1.0
REDUCING_S: Final = 2.0
"""Longest wait, at the end, for large tensors to be reduced."""

_log = logging.getLogger(__name__)


class PredictionLog(Intake):
    """An intake, a store, and a shipper that empties it into Redis streams.

    Latency contract: with `append = "loop"` `commit` costs one write into the page cache; with
    "thread" or durability disk the answers wait for a thread. Redis being slow or away is felt by
    nobody but the shipper.

    At the limits of the store `on_full` decides; whatever is lost is counted by reason.

    Use from the event loop's thread only. Names of records must be of a bounded set: each makes a
    stream, and another one if it has shadows.
    """

    is_on = True

    def __init__(
        self,
        config: PredictionLogConfig,
        *,
        url: str,
        replica: str,
        base: Path,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Read the keys' files.

        Raises:
            ValueError: a URL that redis-py does not understand.
            ConfigError: a key file is not what it should be.
        """
        folder = base / config.spool.directory
        references = References(
            folder / config.capture.references,
            max_bytes=config.capture.references_max_bytes,
            min_free_bytes=config.spool.min_free_bytes,
            is_synced=config.durability == "disk",
        )
        self.privacy = Privacy.build(config, base, on_new_key=self._key_made, clock_ms=clock_ms)
        super().__init__(
            # Sequence numbers start anew with every process, so the name must be a new one.
            worker=f"{replica}@{clock_ms():x}",
            policies=Policies(
                config,
                privacy=self.privacy,
                references=references,
            ),
            reducer=Reducer(config.capture.queue_bytes),
            clock_ms=clock_ms,
        )
        self.subject_of = self.privacy.subject_of if config.privacy.subject else None
        self._config = config
        self._references = references
        self._replica = replica
        self._directory = folder / replica
        self._sink = RedisSink(url, timeout_s=config.timeout_s)
        self._shipper: Shipper | None = None
        self._duties = Duties(config, url=url, privacy=self.privacy, policies=self._policies)
        self._housekeeping: asyncio.Task[None] | None = None
        self._is_closed = False
        self._are_keys_lost = False

    async def start(self) -> None:
        """Open the store, take over what an earlier process left in it, begin to ship; once.

        Raises:
            SpoolInUse: another process has the spool of this replica.
        """
        if self._housekeeping is not None:
            raise RuntimeError("the prediction log was started before")
        opening = partial(
            open_store, self._config, self._directory, worker=self.worker, now_ms=self._clock_ms()
        )
        store, recovery = await asyncio.to_thread(opening)
        for orphan in await asyncio.to_thread(orphans, self._directory.parent, self._replica):
            extra = {"replica": orphan.replica, "records": orphan.records}
            _log.warning("records of another replica wait in its spool", extra=extra)
        store.on_lost = self.lost
        self.use(store)
        self._recover(recovery)
        self._shipper = Shipper(
            store=store,
            sink=self._sink,
            books=self,
            config=self._config,
            producer=Producer(replica=self._replica, token=store.token, clock_ms=self._clock_ms),
            hooks=self._duties.hooks(
                replica=self._replica,
                store=store,
                settle=self.settle,
                references=self._references,
            ),
        )
        self._shipper.start()
        housekeeping = self._keep_house()
        self._housekeeping = asyncio.create_task(housekeeping, name="prediction log housekeeping")

    def statistics(self) -> LogStatistics:
        """Return a frozen copy of the counters."""
        store = self._store
        spooled = store.spooled if store is not None else _nothing
        oldest_ms = store.oldest_unshipped_ms if store is not None else 0
        kinds = {at: lane.counts(spooled(lane.number)) for at, lane in self.lanes.items()}
        shipping = self._shipper.statistics() if self._shipper is not None else ShipStatistics()
        return LogStatistics(
            kinds=kinds,
            spooled_bytes=store.spooled_bytes if store is not None else 0,
            oldest_unshipped_s=max(0, self._clock_ms() - oldest_ms) / 1e3 if oldest_ms else 0.0,
            is_sink_up=shipping.is_sink_up,
            is_fenced=shipping.is_fenced,
            reconnects=shipping.reconnects,
            duplicates=shipping.duplicates,
            rewound=shipping.rewound,
            collisions=shipping.collisions,
            trimmed_unread=shipping.trimmed_unread,
            ship_batches=shipping.batches,
            ship_seconds=shipping.batch_s,
            memory_estimate_bytes=shipping.memory_need_bytes,
            last_error=self.last_error or shipping.last_error,
        )

    def shipped(self, stream: int, records: int) -> None:
        """Count records that Redis has now."""
        self.numbered(stream).shipped += records

    def lost(self, lost: Lost) -> None:
        """Count records that were spooled and will never be shipped."""
        self.numbered(lost.stream).dropped[lost.reason] += lost.records
        if lost.reason in (DropReason.OLDEST_SEGMENT, DropReason.CORRUPT):
            self.keys_lost()

    def respooled(self, stream: int, records: int) -> None:
        """Count records that are to be shipped once more: Redis forgot them."""
        self.numbered(stream).recovered += records

    def keys_lost(self) -> None:
        """Have the wrapped keys in use written again: without them what they seal is lost.

        With the next housekeeping: where there is no room for them they are lost again at once.
        In memory they would only take the room of records; whenever Redis is back it is given them.
        """
        self._are_keys_lost = self._config.durability != "memory"

    async def close(self, timeout_s: float) -> None:
        """Ship what is spooled for at most `timeout_s`, then stop. Idempotent.

        Order: refuse new records, let the reducer finish, write the final audits, ship with a
        limit, stop the tasks, close the files. What is left in a spool the next start ships; what
        is left in memory is counted as dropped.
        """
        self.refuse_new()
        if self._is_closed:
            return
        self._is_closed = True
        store, shipper = self._store, self._shipper
        if store is None or shipper is None:
            await self._duties.close()
            await self._sink.close()
            return
        await self._reducer.close(REDUCING_S)
        self._write_audits(is_final=True)
        try:
            # A thread may have to write them first: else nothing would be left to be shipped.
            await asyncio.wait({asyncio.ensure_future(self.settle())}, timeout=REDUCING_S)
        finally:
            await self._end(store, shipper, timeout_s)
        total = self.statistics().total
        if lost := total.dropped[DropReason.SHUTDOWN]:
            extra = {"dropped": lost}
            _log.warning("prediction log closed with records in memory", extra=extra)
        if total.spooled:
            extra = {"spooled": total.spooled}
            _log.warning("prediction log closed before all was shipped", extra=extra)

    async def _end(self, store: Store, shipper: Shipper, timeout_s: float) -> None:
        try:
            await shipper.close(timeout_s)
        finally:
            if self._housekeeping is not None:
                await end(self._housekeeping)
            await store.close()
            await self._duties.close()

    def _key_made(self, tag: bytes, key_id: bytes, blob: bytes) -> None:
        """Have a subject's new key written before the records that it seals."""
        self.keys([blob])

    def _recover(self, recovery: Recovery) -> None:
        """Take over what earlier processes wrote and did not ship, and end their audits."""
        for number, records in recovery.records.items():
            self.numbered(number).recovered += records
        for number, records in recovery.corrupt.items():
            lane = self.numbered(number)
            lane.recovered += records
            lane.dropped[DropReason.CORRUPT] += records
        for group in recovery.intents:
            self.take_over(group)
        for life in recovery.ended:
            for audit in final_audits(life.worker, life.sequences, self._clock_ms()):
                self.audit(audit)
        self.flush()

    def _write_audits(self, *, is_final: bool = False) -> None:
        """Write what was counted into the stream of every name."""
        statistics, now_ms = self.statistics(), self._clock_ms()
        for name, kinds in statistics.by_name().items():
            state = SpoolState(
                trimmed_unread=statistics.trimmed_unread_of(name),
                spool_bytes=statistics.spooled_bytes,
                oldest_unshipped_ms=self._opened().oldest_unshipped_ms,
            )
            self.audit(
                make_audit(self.worker, name, now_ms, kinds=kinds, state=state, is_final=is_final)
            )

    async def _keep_house(self) -> None:
        """Once a second: files, keys; once in a while: audits."""
        audit_at_s = time.monotonic() + self._config.audit_s
        while True:
            await asyncio.sleep(min(HOUSEKEEPING_S, self._config.audit_s))
            try:
                await self._opened().housekeeping(self._clock_ms())
                self.privacy.reload_if_changed()
                self._renew_keys()
                if time.monotonic() >= audit_at_s and not self._is_closed:  # the last word is said
                    audit_at_s = time.monotonic() + self._config.audit_s
                    self._write_audits()
            except Exception:  # whatever it is, the log goes on
                _log.exception("prediction log housekeeping failed")

    def _renew_keys(self) -> None:
        if self._are_keys_lost:
            self._are_keys_lost = False
            if blobs := self.privacy.key_blobs():
                self.keys(blobs)


def _nothing(stream: int) -> int:
    return 0
