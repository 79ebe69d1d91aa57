"""The store of durability `memory`: blocks in a bounded queue, gone when the process ends.

Knows no files. A position is (1, how many blocks were appended before). What is shipped is let go
at once, so a Redis that forgot is sent nothing again. Event loop's thread only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from gateway.prediction_log.spool.block import (
    HEADER_BYTES,
    Block,
    BlockKind,
    Position,
    make_block,
    split_payload,
)
from gateway.prediction_log.spool.entry_ids import EntryIds
from gateway.prediction_log.spool.erasing import Needles, erase_blobs
from gateway.prediction_log.spool.offsets import StreamTable
from gateway.prediction_log.spool.store import Chunk, Done, DropReason, Erased, Group, Lost
from gateway.prediction_log.spool.waiting import Waiting
from gateway.prediction_log.streams import BEFORE_ALL, EntryId, StreamKind
from gateway.prediction_log_config import PredictionLogConfig

_SEGMENT = 1
_WAITED_FOR = (DropReason.QUEUE_RECORDS, DropReason.QUEUE_BYTES)


class MemoryStore:
    """A Store in memory, bounded by `buffer_records` and `buffer_bytes`."""

    def __init__(
        self,
        config: PredictionLogConfig,
        *,
        token: str,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_append: Callable[[], None] = _nothing
        self.on_lost: Callable[[Lost], None] = _nothing
        self.token = token
        self.spooled_bytes = 0
        self._config = config
        self._on_close = on_close
        self._streams = StreamTable()
        self._ids = EntryIds()
        self._blocks: dict[int, list[Block]] = {}
        """By number, oldest first, each in a cell of its own: an erasure changes what is in it."""
        self._next = 0
        self._first = 0
        """All before this number are settled."""
        self._read_to = 0
        """Those before this number may be in somebody's hands, and are not dropped."""
        self._records = 0
        self._spooled: Counter[int] = Counter()
        self._waiting = Waiting(
            self._place,
            max_s=config.block_max_ms / 1e3,
            max_records=config.buffer_records,
            max_bytes=config.buffer_bytes,
            waited_for=_WAITED_FOR,
        )
        self._is_closed = False

    @property
    def shipped(self) -> Position:
        """All before it is shipped or settled."""
        return Position(_SEGMENT, self._first)

    @property
    def oldest_unshipped_ms(self) -> int:
        """When the oldest record was appended; 0: there is none."""
        for (block,) in self._blocks.values():
            if block.kind is BlockKind.RECORDS:
                return block.first_id.ms
        return 0

    def stream(self, name: str, kind: StreamKind) -> int:
        """Return the number of a stream, from 1."""
        return self._streams.number(name, kind)

    def stream_of(self, number: int) -> tuple[str, StreamKind]:
        """Return name and kind of a stream. Raises KeyError for a number never given."""
        return self._streams.names[number]

    def append(self, groups: Sequence[Group], now_ms: int, done: Done) -> None:
        """Keep all groups, or none; see Store."""
        if self._waiting:
            self._waiting.add(groups, now_ms, done)
            return
        reason = self._place(groups, now_ms, done)
        if reason is None:
            return
        if self._config.on_full == "block" and reason in _WAITED_FOR:
            self._waiting.add(groups, now_ms, done)
        else:
            done(reason)

    def spooled(self, stream: int) -> int:
        """Return the records that wait to be shipped."""
        return self._spooled[stream]

    def read(
        self, after: Position, *, max_bytes: int, max_records: int, is_all: bool = False
    ) -> Chunk:
        """Return blocks from a position on; see Store."""
        blocks: list[Block] = []
        following = max(after.offset, self._first)
        for number, (block,) in list(self._blocks.items()):
            if number < following:
                continue
            max_bytes -= len(block.data)
            max_records -= block.count
            if blocks and (max_bytes < 0 or max_records < 0):
                break
            blocks.append(block)
            following = number + 1
        if not is_all:
            self._read_to = max(self._read_to, following)
        return Chunk(blocks, Position(_SEGMENT, following), {})

    def is_hot(self, position: Position) -> bool:
        """Return True: it is in memory."""
        return True

    def mark_shipped(
        self, position: Position, counts: Mapping[int, int], last_ids: Mapping[int, EntryId]
    ) -> None:
        """Let go of everything before a position; see Store."""
        for stream, records in counts.items():
            self._spooled[stream] -= records
        for stream, last in last_ids.items():
            self._streams.last_shipped[stream] = max(last, self.last_shipped(stream))
        while self._first < min(position.offset, self._next):
            self._forget(self._first)
            self._first += 1

    def kept_streams(self) -> set[int]:
        """Return none: what is shipped is no longer here."""
        return set()

    def last_shipped(self, stream: int) -> EntryId:
        """Return the greatest id that Redis confirmed."""
        return self._streams.last_shipped.get(stream, BEFORE_ALL)

    def rewind(self, stream: int, above: EntryId) -> int:
        """Return 0: what is shipped is no longer here."""
        self._streams.last_shipped[stream] = min(above, self.last_shipped(stream))
        return 0

    def raise_floor(self, floor: EntryId) -> None:
        """Give only ids above this one from now on."""
        self._ids.raise_floor(floor)

    def erase(self, needles: Sequence[bytes]) -> tuple[int, list[Erased]]:
        """Put zeros in place of every blob that holds one of the needles; see Store."""
        wanted = Needles(needles)
        erased: list[Erased] = []
        for cell in list(self._blocks.values()):
            block = cell[0]
            if wanted.are_in(block.data):
                kept, found = erase_blobs(split_payload(block.data, HEADER_BYTES), wanted)
                cell[0] = _with_blobs(block, kept)
                erased += (Erased(block.stream, blob) for blob in found)
        return len(erased), erased

    async def housekeeping(self, now_ms: int) -> None:
        """Do nothing: there are no files."""

    async def close(self) -> None:
        """Count what is still here as lost."""
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting.shut()
        self._blocks.clear()
        left, self._spooled = self._spooled, Counter()
        self.spooled_bytes = self._records = 0
        for stream, records in left.items():
            if records:
                self.on_lost(Lost(stream, records, DropReason.SHUTDOWN))
        self._on_close()

    def _place(self, groups: Sequence[Group], now_ms: int, done: Done) -> DropReason | None:
        """Keep groups, or return why not."""
        if self._is_closed:
            return DropReason.SHUTDOWN
        records = sum(len(group.blobs) for group in groups)
        size_bytes = sum(len(blob) for group in groups for blob in group.blobs)
        refused = self._refusal(records, size_bytes)
        while refused is not None:
            if self._config.on_full != "drop_oldest_segment" or not self._drop_oldest():
                return refused
            refused = self._refusal(records, size_bytes)
        for group in groups:
            if group.kind is not BlockKind.INTENT:  # nobody will find it
                self._keep(group, now_ms)
        done(None)
        self.on_append()
        return None

    def _refusal(self, records: int, size_bytes: int) -> DropReason | None:
        if self._records + records > self._config.buffer_records:
            return DropReason.QUEUE_RECORDS
        if self.spooled_bytes + size_bytes > self._config.buffer_bytes:
            return DropReason.QUEUE_BYTES
        return None

    def _keep(self, group: Group, now_ms: int) -> None:
        kind, stream, blobs, ref = group
        count = len(blobs)
        is_records = kind is BlockKind.RECORDS
        first = self._ids.give(count, now_ms) if is_records else EntryId(now_ms, 0)
        data = make_block(kind, stream, first, blobs, ref)
        at = Position(_SEGMENT, self._next)
        self._blocks[self._next] = [Block(kind, stream, first, count, ref, data, at)]
        self._next += 1
        self.spooled_bytes += len(data)
        if is_records:
            self._spooled[stream] += count
            self._records += count

    def _forget(self, number: int) -> Block | None:
        cell = self._blocks.pop(number, None)
        if cell is None:  # it was dropped
            return None
        block = cell[0]
        self.spooled_bytes -= len(block.data)
        if block.kind is BlockKind.RECORDS:
            self._records -= block.count
        return block

    def _drop_oldest(self) -> bool:
        """Drop the oldest block that is in nobody's hands; return whether there was one."""
        number = next((n for n in self._blocks if n >= self._read_to), None)
        block = None if number is None else self._forget(number)
        if block is None:
            return False
        if block.kind is BlockKind.RECORDS:
            self._spooled[block.stream] -= block.count
            self.on_lost(Lost(block.stream, block.count, DropReason.OLDEST_SEGMENT))
        return True


def _with_blobs(block: Block, blobs: list[bytes]) -> Block:
    data = make_block(block.kind, block.stream, block.first_id, blobs, block.ref)
    return block._replace(data=data)


def _nothing(*_: object) -> None:
    """Stand in for a callback that nobody has set."""
