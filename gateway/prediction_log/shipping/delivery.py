"""Takes one chunk of the spool to Redis, stream by stream, and settles every record of it.

Knows blocks, ids and what Redis says of them; knows no task, no pause and no retry. Read first:
scripts.py (what can become of a record), fencing.py (whose streams they are).

Rules.
  - A chunk is settled as a whole, in one step with no await in it, or not at all. Whatever goes
    wrong before, the same blocks are read and sent again, and Redis says which of them it has.
  - Records that were overtaken are appended to the spool anew, where they get ids above what the
    stream has. Their old places are settled when the spool has taken them. Should the process end
    between the two, they come twice, with the same `rid`.
  - What Redis will never take is dropped as refused, and the other streams go on.
  - While a chunk is under way the spool may drop its oldest segment, and counts what it drops. Such
    blocks are not counted a second time here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Final

from gateway.prediction_log.shipping.capacity import history_per_s
from gateway.prediction_log.shipping.fencing import Claim, Fenced, Outcome, Producer
from gateway.prediction_log.shipping.hooks import Hooks, ShipBooks, run_hook
from gateway.prediction_log.shipping.outlets import Outlet, Outlets
from gateway.prediction_log.shipping.pieces import NOTHING, Piece, pieces
from gateway.prediction_log.shipping.retention import Retention
from gateway.prediction_log.shipping.scripts import MAX_ID_PART
from gateway.prediction_log.shipping.sink import Appended, RedisSink, SinkDown, SinkRefused
from gateway.prediction_log.shipping.statistics import ShipCounts
from gateway.prediction_log.spool.block import (
    MAX_SEQ,
    Block,
    BlockKind,
    Position,
    records_up_to,
)
from gateway.prediction_log.spool.store import Chunk, DropReason, Group, Lost, Store
from gateway.prediction_log.streams import BEFORE_ALL, EntryId

_ERASED_BYTE: Final = 0

_log = logging.getLogger(__name__)


class Rewound(Exception):
    """The spool was wound back: what was read of it is no longer what comes next."""


@dataclass(slots=True)
class _Trouble:
    """What became of the records of one block that were not simply shipped."""

    lost: list[Lost] = field(default_factory=list)
    moved: list[bytes] = field(default_factory=list)

    @property
    def records(self) -> int:
        return sum(lost.records for lost in self.lost) + len(self.moved)


@dataclass(slots=True)
class _Tally:
    """One chunk on its way."""

    began_at: Position
    troubles: dict[Position, _Trouble] = field(default_factory=dict)
    last_ids: dict[int, EntryId] = field(default_factory=dict)
    floor: EntryId = BEFORE_ALL

    def of(self, block: Block) -> _Trouble:
        return self.troubles.setdefault(block.at, _Trouble())

    def lose(self, block: Block, records: int, reason: DropReason) -> None:
        if records:
            self.of(block).lost.append(Lost(block.stream, records, reason))


class Delivery:
    """The one writer of a replica's streams. Used by one task."""

    def __init__(
        self,
        *,
        store: Store,
        sink: RedisSink,
        books: ShipBooks,
        retention: Retention,
        producer: Producer,
        hooks: Hooks,
    ) -> None:
        self._store = store
        self._sink = sink
        self._books = books
        self._retention = retention
        self._producer = producer
        self._hooks = hooks
        self.outlets = Outlets(store, replica=producer.replica, token=producer.token)
        self.counts = ShipCounts()
        self.owned: set[str] = set()
        """Owner keys that were claimed."""
        self.last_error = ""

    async def deliver(self, chunk: Chunk) -> int:
        """Send a chunk, read from the store's position, and settle it; return its records.

        Raises:
            SinkDown: nothing of it is settled.
            Fenced: the same; another gateway writes these streams.
            Rewound: the same; read again.
        """
        tally = _Tally(self._store.shipped)
        by_outlet: dict[Outlet, list[Block]] = {}
        stream, its_blocks = -1, list[Block]()
        for block in chunk.blocks:
            if block.kind is BlockKind.KEY:
                await self._deliver_keys(block)
                continue
            if block.stream != stream:
                stream = block.stream
                its_blocks = by_outlet.setdefault(self.outlets.of(stream), [])
            its_blocks.append(block)
        for outlet, blocks in by_outlet.items():
            await self._ship(outlet, blocks, tally)
        await self._finish(chunk, tally)
        return sum(block.count for block in chunk.blocks)

    def owns_all(self) -> bool:
        """Whether every stream was claimed on this connection."""
        generation = self._sink.generation
        return all(outlet.synced_generation == generation for outlet in self.outlets)

    def look_for_kept(self) -> None:
        """Know the streams that an earlier process shipped: Redis may forget them under us too."""
        for number in self._store.kept_streams():
            self.outlets.of(number)

    async def touch(self, outlet: Outlet) -> None:
        """Give a sign of life to an idle stream, trim it, and find out whether it is still whole.

        Raises: as `deliver`.
        """
        outlet.contact_s = asyncio.get_running_loop().time()
        try:
            await self._send(outlet, NOTHING, is_exact=True)
        except SinkRefused as exc:
            self._note_refused(outlet, exc)

    async def _deliver_keys(self, block: Block) -> None:
        blobs = [blob for blob in block.blobs() if blob and blob[0] != _ERASED_BYTE]
        if self._hooks.on_keys is not None and blobs:
            await run_hook(self._hooks.on_keys(blobs))

    async def _ship(self, outlet: Outlet, blocks: list[Block], tally: _Tally) -> None:
        """Send the records of one stream; what is refused is lost, and that alone."""
        sent = pieces(blocks, self._sink.max_bulk_bytes)
        refusal: SinkRefused | None = None
        outlet.reached = BEFORE_ALL
        for piece in sent:
            if piece.is_oversize:
                tally.lose(piece.blocks[0], 1, DropReason.OVERSIZE)
                continue
            processed = erased = 0
            if refusal is None:
                try:
                    answer = await self._send(outlet, piece)
                except SinkRefused as exc:
                    refusal = exc
                else:
                    processed, erased = answer.processed, answer.erased
                    self._note_overtaken(outlet, piece, answer, tally)
                    if isinstance(answer.failure, SinkDown):
                        raise answer.failure
                    refusal = answer.failure
            self._take_in(piece, processed, erased, tally)
            outlet.reached = max(tally.last_ids.get(n, BEFORE_ALL) for n in outlet.numbers)
        if refusal is None:
            outlet.is_refused = False
        else:
            self._note_refused(outlet, refusal)

    async def _send(self, outlet: Outlet, piece: Piece, *, is_exact: bool = False) -> Appended:
        """Call the script, as often as the stream has to be claimed and looked at first."""
        while True:
            if outlet.synced_generation != self._sink.generation:
                await self._sync(outlet)
            trim = self._retention.trim(
                outlet.kind, outlet.mean_bytes, self._producer.clock_ms(), is_exact=is_exact
            )
            began_s = time.perf_counter()
            expected = max(outlet.confirmed, outlet.reached)
            answer = await self._sink.append(
                outlet.target, piece.data, expected=expected, trim=trim
            )
            outlet.contact_s = asyncio.get_running_loop().time()
            if isinstance(answer, Appended):
                self._count(outlet, answer, piece, time.perf_counter() - began_s)
                return answer
            # It is another's, or Redis forgot: the claim says which, and where the stream ends.
            outlet.synced_generation = 0

    def _count(self, outlet: Outlet, answer: Appended, piece: Piece, seconds: float) -> None:
        counts = self.counts
        if piece.records:
            counts.batches += 1
            counts.batch_s += seconds
            outlet.records += piece.records
            outlet.record_bytes += piece.record_bytes
        counts.duplicates += answer.doubled
        counts.trimmed += answer.removed
        outlet.trimmed_unread += answer.unread
        outlet.length = answer.length

    def _take_in(self, piece: Piece, processed: int, erased: int, tally: _Tally) -> None:
        """Note of each block how far it got; what was not processed is refused."""
        if processed == piece.records and len(piece.blocks) > 1 and not erased:
            for block in {block.stream: block for block in piece.blocks}.values():
                tally.last_ids[block.stream] = block.last_id
            return
        for block, begin, count in piece.parts:
            done = min(processed, count)
            processed -= done
            end = begin + done
            if erased:  # a stream does not reach the id of what was not added to it
                end = _end_of_kept(block, end)
            if end > begin:
                last = EntryId(block.first_id.ms, block.first_id.seq + end - 1)
                tally.last_ids[block.stream] = last
            tally.lose(block, count - done, DropReason.REFUSED)

    def _note_overtaken(
        self, outlet: Outlet, piece: Piece, answer: Appended, tally: _Tally
    ) -> None:
        """Keep the records that met other ids, to be appended to the spool anew."""
        for index in answer.overtaken:
            block, number = piece.locate(index)
            tally.of(block).moved.append(block.blobs()[number])
        if answer.overtaken:
            tally.floor = max(tally.floor, answer.last)
            self.counts.collisions += len(answer.overtaken)
            if not outlet.has_collided:
                outlet.has_collided = True
                fields = {"stream": outlet.target.key, "records": len(answer.overtaken)}
                _log.error("another writer used this replica's stream", extra=fields)

    async def _finish(self, chunk: Chunk, tally: _Tally) -> None:
        """Have the spool take the overtaken records again, and settle the chunk."""
        moved: dict[int, list[bytes]] = {}
        for block in chunk.blocks if tally.troubles else ():
            trouble = tally.troubles.get(block.at)
            if trouble is not None and trouble.moved:
                moved.setdefault(block.stream, []).extend(trouble.moved)
        if not moved:
            self._settle(chunk, tally)
            return
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(reason: DropReason | None) -> None:
            if reason is not None:
                for stream, blobs in moved.items():
                    self._books.lost(Lost(stream, len(blobs), reason))
            self._settle(chunk, tally)
            if not taken.done():
                taken.set_result(None)

        self._store.raise_floor(tally.floor)
        groups = [Group(BlockKind.RECORDS, stream, blobs) for stream, blobs in moved.items()]
        self._store.append(groups, self._producer.clock_ms(), done)
        await taken

    def _settle(self, chunk: Chunk, tally: _Tally) -> None:
        """Count everything; no await, so nobody sees it half done."""
        store = self._store
        floor = store.shipped
        counts: dict[int, int] = {}
        shipped: dict[int, int] = {}
        losses: list[Lost] = []
        confirmed = {n: store.last_shipped(n) for n in {block.stream for block in chunk.blocks}}
        for block in chunk.blocks:
            kind, number, first_id, count, _, _, at = block
            if kind is not BlockKind.RECORDS or at < floor:
                continue
            if first_id <= confirmed[number]:
                count -= records_up_to(confirmed[number], block)
            counts[number] = counts.get(number, 0) + count
            trouble = tally.troubles.get(at) if tally.troubles else None
            if trouble is not None:
                losses += trouble.lost
                count -= trouble.records
            shipped[number] = shipped.get(number, 0) + count
        if floor == tally.began_at:
            for number, records in chunk.corrupt.items():
                counts[number] = counts.get(number, 0) + records
                losses.append(Lost(number, records, DropReason.CORRUPT))
        store.mark_shipped(max(chunk.next, floor), counts, tally.last_ids)
        for number, records in shipped.items():
            self._books.shipped(number, records)
        for lost in losses:
            self._books.lost(lost)
        for number, last in tally.last_ids.items():
            outlet = self.outlets.of(number)
            outlet.confirmed = max(outlet.confirmed, last)

    async def _sync(self, outlet: Outlet) -> None:
        """Claim a stream, learn where it ends, and make it known to readers.

        Once per connection, and whenever a write found that something is not as it was.
        """
        claim = await self._sink.claim(outlet.target)
        if claim.outcome is Outcome.FENCED:
            raise Fenced(outlet.name, claim.silent_ms)
        self.owned.add(outlet.target.owner_key)
        found, before = claim.last, outlet.confirmed
        if max(found) > MAX_ID_PART:
            raise SinkRefused(f"the stream ends at {found}, which is beyond {MAX_ID_PART}")
        if claim.outcome is Outcome.STALE:
            fields = {"stream": outlet.target.key, "silent_ms": claim.silent_ms}
            _log.warning("took over the streams of a gateway that is gone", extra=fields)
        self._look_back(outlet, claim)
        await self._introduce(outlet)
        if found < before:
            self._rewind(outlet, found, before)
        is_all_there, outlet.reached = found >= max(before, outlet.reached), BEFORE_ALL
        outlet.confirmed = found
        outlet.synced_generation = self._sink.generation
        if not is_all_there:
            raise Rewound
        if found > before:
            above = found if found.seq < MAX_SEQ else EntryId(found.ms + 1, 0)
            self._store.raise_floor(above)

    def _look_back(self, outlet: Outlet, claim: Claim) -> None:
        outlet.length = claim.length
        if claim.first is not None and not outlet.was_synced:
            outlet.history_per_s = history_per_s(claim.length, claim.first.ms, claim.last.ms)
            outlet.history_bytes = claim.first_bytes
        outlet.was_synced = True

    async def _introduce(self, outlet: Outlet) -> None:
        """Make a stream known to readers; a set that is no set costs no record."""
        try:
            await self._sink.register(outlet.name, outlet.target.key, outlet.kind)
            if self._hooks.schemas is not None:
                schemas = self._hooks.schemas(outlet.name)
                await self._sink.write_schemas(outlet.name, schemas)
        except SinkRefused as exc:
            self.last_error = str(exc)
            fields = {"stream": outlet.target.key, "error": str(exc)}
            _log.error("a stream cannot be made known to readers", extra=fields)

    def _rewind(self, outlet: Outlet, found: EntryId, before: EntryId) -> None:
        rewound = 0
        for number in outlet.numbers:
            records = self._store.rewind(number, found)
            rewound += records
            if records:
                self._books.respooled(number, records)
        self.counts.rewound += rewound
        self.counts.forgotten += 1
        fields = {
            "stream": outlet.target.key,
            "confirmed": str(before),
            "found": str(found),
            "sent_again": rewound,
        }
        _log.warning("Redis has forgotten prediction records that it had confirmed", extra=fields)

    def _note_refused(self, outlet: Outlet, exc: SinkRefused) -> None:
        self.last_error = str(exc)
        outlet.synced_generation = 0
        if not outlet.is_refused:
            outlet.is_refused = True
            fields = {"stream": outlet.target.key, "error": str(exc)}
            _log.error("Redis refuses prediction records", extra=fields)


def _end_of_kept(block: Block, end: int) -> int:
    """Return the number behind the last record before `end` that is not erased; 0: all are."""
    blobs = block.blobs()
    while end and (not blobs[end - 1] or blobs[end - 1][0] == _ERASED_BYTE):
        end -= 1
    return end
