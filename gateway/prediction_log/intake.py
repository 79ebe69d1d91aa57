"""Takes records from the request path: samples, numbers, encodes, counts; one write per batch.

Knows lanes and the store, which is given to it once it is open; knows no Redis, no route and no
protocol. Read first: lane.py, spool/store.py. Event loop's thread only.

Theory. `offer` encodes a record and adds it to the pending ones of its lane. `commit` gives all
that is pending to the store, in one write, and calls back when they are as safe as `durability`
says; the pipeline sends a batch's answers in that callback. Whoever offers without committing (a
shadow) is served by a flush at the end of the loop's turn.

A record with tensors that are too large to be kept whole is *deferred*: what there is of it without
them is written at once as an intent, a thread reduces the tensors, and the record follows. If the
process ends between the two, the next start finds the intent and ships that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from gateway.memo import Memo
from gateway.prediction_log.capture.policy import Policies
from gateway.prediction_log.capture.reducer import Reducer
from gateway.prediction_log.encoder import Deferred, Finished
from gateway.prediction_log.labels import LabelInput
from gateway.prediction_log.lane import Lane
from gateway.prediction_log.record import (
    ERROR,
    LoggedAudit,
    Origin,
    PredictionRecord,
    encode_logged,
)
from gateway.prediction_log.spool.block import BlockKind
from gateway.prediction_log.spool.store import DropReason, Group, Store
from gateway.prediction_log.streams import StreamKind

MAX_ENTRY_BYTES: Final = 16 << 20
"""Largest encoded record. Redis breaks the connection of whoever sends more than its
proto-max-bulk-len (512 MiB, often less), and such a record would be sent again for ever."""
Done = Callable[[DropReason | None], None]
"""Told None once all is written, or why it was dropped."""
_MAX_ORIGINS: Final = 1024
_ERRORS: Final = 400
_SETTLE_POLL_S: Final = 0.005
_RECORDS: Final = BlockKind.RECORDS
_new = tuple.__new__
"""Makes a named tuple without the function that knows its fields' names."""

_log = logging.getLogger(__name__)


class _Append:
    """Records given to the store and not yet written, and who waits for that."""

    __slots__ = ("before", "has_keys", "is_over", "lanes", "waiters")

    def __init__(
        self,
        lanes: list[tuple[Lane, int]],
        waiters: list[Done],
        before: _Append | None,
        has_keys: bool,
    ) -> None:
        self.before = before
        """The one before it, if that was not written yet."""
        self.is_over = False
        self.lanes = lanes
        self.waiters = waiters
        self.has_keys = has_keys


class Intake:
    """Lanes, and the way from them into the store.

    Args:
        worker: one life of one process; in every record.
        policies: what is kept of whose records.
        reducer: where large tensors are reduced.
        clock_ms: wall time.
    """

    def __init__(
        self,
        *,
        worker: str,
        policies: Policies,
        reducer: Reducer,
        clock_ms: Callable[[], int],
    ) -> None:
        self.worker = worker
        self.last_error = ""
        self.lanes: dict[tuple[str, StreamKind], Lane] = {}
        self._policies = policies
        self._reducer = reducer
        self._clock_ms = clock_ms
        self._store: Store | None = None
        self._by_number: dict[int, Lane] = {}
        self._by_origin: Memo[Origin, Lane] = Memo(_MAX_ORIGINS // 2)
        self._dirty: list[Lane] = []
        """Lanes with pending records."""
        self._groups: list[Group] = []
        """Keys, intents and finished records that are pending."""
        self._finished: list[tuple[Lane, int]] = []
        """Lanes of the finished ones."""
        self._last_append: _Append | None = None
        """The last one that is not written; they are written in order."""
        # Unlike those of any earlier life, whose intents may stand in the same files.
        self._next_ref = clock_ms() << 20
        self._reductions_begun = self._reductions_ended = 0
        self._is_flush_due = False
        self._is_shut = False
        self._has_warned = False

    def __repr__(self) -> str:
        return f"<Intake {self.worker} {list(self.lanes.values())}>"

    def use(self, store: Store) -> None:
        """Take the store into use; what was offered before was dropped."""
        self._store = store
        for (name, kind), lane in self.lanes.items():
            lane.number = store.stream(name, kind)
            self._by_number[lane.number] = lane

    def refuse_new(self) -> None:
        """From now on drop what is offered, as `shutdown`; what is pending or deferred stays."""
        self._is_shut = True

    def offer(self, record: PredictionRecord, is_committed: bool = False) -> None:
        """Take a record to be written, or drop and count it. Never raises, never waits.

        The tensors' data are read before this returns, or kept by the reducer until it has. With
        `is_committed` the caller calls `commit` in this turn of the loop, which saves a callback.
        """
        origin = record.origin
        lane = self._by_origin.recent.get(origin) or self._lane_of(origin)
        lane.answered += 1
        if record.status >= _ERRORS:
            record.sampled_as = ERROR
        elif lane.is_partial and not _is_sampled(lane, record):
            lane.sampled_out += 1
            return
        # A record that is dropped has used its number: the gap is how a reader sees the loss.
        lane.seq += 1
        try:
            encoded = lane.encode(record, lane.seq)
        except Exception as exc:  # a record that breaks its type must not cost its caller anything
            self._note_encode_error(exc)
            lane.dropped[DropReason.ENCODE_ERROR] += 1
            return
        if isinstance(encoded, bytes):
            self._add(lane, encoded, is_committed)
        else:
            self._defer(lane, encoded)

    def label(self, label: LabelInput) -> bool:
        """Take ground truth to be written, or drop and count it."""
        lane = self.lane(label.name, StreamKind.LABELS)
        lane.answered += 1
        lane.seq += 1
        return self._add(lane, encode_logged(label.to_logged(self.worker, lane.seq)))

    def audit(self, audit: LoggedAudit) -> None:
        """Write an audit into the live stream of its name; also after `refuse_new`."""
        lane = self.lane(audit.name, StreamKind.AUDIT)
        lane.answered += 1
        lane.seq += 1
        self._append(lane, encode_logged(audit))

    def take_over(self, group: Group) -> None:
        """Complete the intent of an earlier process, as far as it goes."""
        lane, records = self.numbered(group.stream), len(group.blobs)
        lane.recovered += records
        lane.under_way += records
        self._groups.append(group)
        self._finished.append((lane, records))
        self._write_soon()

    def keys(self, blobs: list[bytes]) -> None:
        """Have subjects' wrapped keys written before the next records."""
        self._groups.append(Group(BlockKind.KEY, 0, blobs))
        self._write_soon()

    def keys_lost(self) -> None:
        """Hear that wrapped keys may not have been written; the log writes them again."""

    def commit(self, done: Done) -> None:
        """Have everything offered so far written, then call `done`, once, on the event loop.

        It is called also where records could not be written: they are counted as dropped, and it
        is told why.
        """
        if self._dirty or self._groups:
            self._write([done])
        elif self._last_append is not None:
            self._last_append.waiters.append(done)
        else:
            done(None)

    def flush(self) -> None:
        """Write what nobody committed."""
        self._is_flush_due = False
        if self._dirty or self._groups:
            self._write([])

    async def settle(self) -> None:
        """Return when everything offered before now stands in the store, or was dropped."""
        begun = self._reductions_begun
        while self._reductions_ended < begun:  # noqa: ASYNC110  # rare: an erasure waits for this
            await asyncio.sleep(_SETTLE_POLL_S)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.commit(lambda reason: None if written.done() else written.set_result(None))
        await written

    def lane(self, name: str, kind: StreamKind) -> Lane:
        """Return the lane of a name and kind, making it if there is none."""
        lane = self.lanes.get((name, kind))
        if lane is None:
            number = 0 if self._store is None else self._store.stream(name, kind)
            policy = self._policies.of(name)
            lane = Lane(name, kind, number, worker=self.worker, policy=policy)
            self.lanes[name, kind] = self._by_number[number] = lane
        return lane

    def numbered(self, number: int) -> Lane:
        """Return the lane of a stream of the store."""
        return self._by_number.get(number) or self.lane(*self._opened().stream_of(number))

    def _add(self, lane: Lane, blob: bytes, is_committed: bool = False) -> bool:
        """Put an encoded record where the next write takes it, or drop and count it."""
        if len(blob) > MAX_ENTRY_BYTES:
            lane.dropped[DropReason.OVERSIZE] += 1
            return False
        if self._is_shut or self._store is None:
            lane.dropped[DropReason.SHUTDOWN] += 1
            return False
        self._append(lane, blob, is_committed)
        return True

    def _append(self, lane: Lane, blob: bytes, is_committed: bool = False) -> None:
        """Put an encoded record where the next write takes it."""
        if not lane.pending:
            self._dirty.append(lane)
            if not is_committed:
                self._write_soon()
        lane.pending.append(blob)

    def _write_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _write(self, waiters: list[Done]) -> None:
        """Give everything pending to the store as one write."""
        groups, self._groups = self._groups, []
        has_keys = False
        if groups:
            has_keys = any(group.kind is BlockKind.KEY for group in groups)
        lanes, self._finished = self._finished, []
        for lane in self._dirty:
            records = len(lane.pending)
            groups.append(_new(Group, (_RECORDS, lane.number, lane.pending, 0)))
            lanes.append((lane, records))
            lane.under_way += records
            lane.pending = []
        self._dirty = []
        append = _Append(lanes, waiters, self._last_append, has_keys)
        self._last_append = append
        store = self._store or self._opened()
        store.append(groups, self._clock_ms(), partial(self._written, append))

    def _written(self, append: _Append, reason: DropReason | None) -> None:
        """Take the store's word for a write, and go on with whoever waited for it."""
        for lane, records in append.lanes:
            lane.under_way -= records
            if reason is not None:
                lane.dropped[reason] += records
        append.is_over = True
        before = append.before
        if self._last_append is append:
            while before is not None and before.is_over:
                before = before.before
            self._last_append = before  # it waits for the thread, where this was refused at once
        append.before = before if before is not None and not before.is_over else None
        if append.has_keys and reason is not None:
            self.keys_lost()
        for waiter in append.waiters:
            waiter(reason)

    def _defer(self, lane: Lane, deferred: Deferred) -> None:
        """Write the intent of a record now and have its large tensors reduced in the thread."""
        if self._is_shut or self._store is None:
            lane.dropped[DropReason.SHUTDOWN] += 1
            return
        big: Lane | None = None
        if deferred.wants_whole:
            big = self.lane(lane.name, StreamKind.BIG)
            big.answered += 1
            big.seq += 1
            deferred.whole_seq = big.seq
        ref = self._next_ref
        if not self._reducer.submit(deferred, partial(self._reduced, lane, big, ref, deferred)):
            self._add(lane, deferred.skipped())
            if big is not None:
                big.dropped[DropReason.QUEUE_BYTES] += 1
            return
        self._next_ref = ref + 1
        self._reductions_begun += 1
        lane.under_way += 1
        self._groups.append(Group(BlockKind.INTENT, lane.number, [deferred.intent], ref))
        self._write_soon()

    def _reduced(
        self, lane: Lane, big: Lane | None, ref: int, deferred: Deferred, finished: Finished | None
    ) -> None:
        """Complete a deferred record; None: it could not be reduced."""
        self._reductions_ended += 1
        blob = deferred.skipped() if finished is None else finished.blob
        if len(blob) > MAX_ENTRY_BYTES:
            blob = deferred.skipped()
        self._groups.append(Group(_RECORDS, lane.number, [blob], ref))
        self._finished.append((lane, 1))
        self._write_soon()
        if big is None:
            return
        if finished is None or finished.whole is None:
            big.dropped[DropReason.ENCODE_ERROR] += 1
        elif len(finished.whole) > MAX_ENTRY_BYTES:
            big.dropped[DropReason.OVERSIZE] += 1
        else:
            self._append(big, finished.whole)

    def _lane_of(self, origin: Origin) -> Lane:
        known = self._by_origin.get(origin)
        if known is not None:
            return known
        kind = StreamKind.SHADOW if origin.is_shadow else StreamKind.LIVE
        return self._by_origin.put(origin, self.lane(origin.name, kind))

    def _opened(self) -> Store:
        if self._store is None:
            raise RuntimeError("the prediction log was not started")
        return self._store

    def _note_encode_error(self, exc: Exception) -> None:
        self.last_error = f"{type(exc).__name__}: {exc}"
        if not self._has_warned:
            self._has_warned = True
            _log.error("prediction record cannot be encoded", exc_info=exc)


def _is_sampled(lane: Lane, record: PredictionRecord) -> bool:
    """Decide whether an answer is logged, and note its weight in the record."""
    key = record.parent_rid or record.rid
    weight, reason = lane.policy.sampler.weigh(key, record.status, record.total_us)
    record.weight, record.sampled_as = weight, reason
    return weight > 0
