"""What the log appends to and the shipper reads from: the interface of every spool.

Knows blocks and streams, and neither files nor Redis. Implemented by FileSpool (spool.py) and
MemoryStore (memory.py). Every method is called on the event loop's thread, except `read` where
`is_hot` is false or with `is_all`, and `erase`; never two of these at the same time.

What is counted, to the unit, for each stream and at every instant:
  - `spooled` = appended or recovered - shipped or settled - lost. A record is appended when `done`
    is told None, not while it waits for a thread or for room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from gateway.prediction_log.spool.block import Block, BlockKind, Position
from gateway.prediction_log.streams import EntryId, StreamKind


class DropReason(StrEnum):
    """Why a record was not written, or was lost before it was shipped."""

    QUEUE_RECORDS = "queue_records"
    """As many records as may waited for the writing thread, for room, or in memory."""
    QUEUE_BYTES = "queue_bytes"
    """The same for bytes."""
    DISK_FULL = "disk_full"
    """The file system had no room, or would have been left with less than `min_free_bytes`."""
    SPOOL_CAP = "spool_cap"
    """The segments have `max_bytes`."""
    BLOCK_TIMEOUT = "block_timeout"
    """There was no room within `block_max_ms`."""
    OLDEST_SEGMENT = "oldest_segment"
    """Its segment was dropped to make room for newer ones."""
    CORRUPT = "corrupt"
    """The file no longer holds what was written."""
    OVERSIZE = "oversize"
    """Larger than an entry, or than the whole spool, may be."""
    ENCODE_ERROR = "encode_error"
    """It could not be made into bytes."""
    REFUSED = "refused"
    """Redis will never take it, such as WRONGTYPE: the key is no stream."""
    WRITE_ERROR = "write_error"
    """The file could not be written, and not for want of room."""
    SHUTDOWN = "shutdown"
    """Offered after the end, or held in memory at the end."""


class Erased(NamedTuple):
    """A blob as it was before it was overwritten."""

    stream: int
    blob: bytes


class Group(NamedTuple):
    """Blobs that are appended as one block."""

    kind: BlockKind
    stream: int
    """0: none, for KEY."""
    blobs: list[bytes]
    ref: int = 0


class Chunk(NamedTuple):
    """What one read found."""

    blocks: list[Block]
    """RECORDS and KEY only."""
    next: Position
    """Where to read on."""
    corrupt: dict[int, int]
    """Records lost by stream number; where a header is broken the total is exact and the stream
    the likeliest. They are settled like shipped ones: pass them to `mark_shipped` too."""


class Lost(NamedTuple):
    """Spooled records that are gone."""

    stream: int
    records: int
    reason: DropReason


Done = Callable[[DropReason | None], None]
"""Told once how an append went; None: all of it was written."""


class Store(Protocol):
    """See the module."""

    on_append: Callable[[], None]
    """Called after something was appended; set by the shipper."""
    on_lost: Callable[[Lost], None]
    """Called when spooled records are gone that no chunk names; set by the log."""
    token: str
    """The identity of this store, the same after a restart: the fencing token of its streams."""

    @property
    def shipped(self) -> Position:
        """All before it is shipped or settled."""

    @property
    def spooled_bytes(self) -> int:
        """Bytes of blocks that are not yet shipped."""

    @property
    def oldest_unshipped_ms(self) -> int:
        """When the oldest record that is not yet shipped was appended; 0: there is none."""

    def stream(self, name: str, kind: StreamKind) -> int:
        """Return the number of a stream in this store, from 1."""

    def stream_of(self, number: int) -> tuple[str, StreamKind]:
        """Return name and kind of a stream. Raises KeyError for a number never given."""

    def append(self, groups: Sequence[Group], now_ms: int, done: Done) -> None:
        """Write all groups, or none, with one write, and call `done` exactly once, on the loop.

        At once where the loop itself writes, later where a thread does or where there is a wait
        for room. Ids never go back, whatever the time given does.
        """

    def spooled(self, stream: int) -> int:
        """Return the records that wait to be shipped."""

    def read(
        self, after: Position, *, max_bytes: int, max_records: int, is_all: bool = False
    ) -> Chunk:
        """Return blocks from a position on, oldest first: at least one, if there is one.

        After a rewind blocks that are settled are left out. With `is_all` they are not; that is for
        somebody else than the shipper, changes nothing, and may be called in any thread.
        """

    def is_hot(self, position: Position) -> bool:
        """Whether reading there is quick enough for the event loop."""

    def mark_shipped(
        self, position: Position, counts: Mapping[int, int], last_ids: Mapping[int, EntryId]
    ) -> None:
        """Settle everything before a position.

        `counts` are all records of the chunks that led there, by stream: shipped, refused, erased
        and corrupt ones. `last_ids` are the greatest ids that Redis confirmed.
        """

    def kept_streams(self) -> set[int]:
        """Return the streams of which something is kept that Redis may forget."""

    def last_shipped(self, stream: int) -> EntryId:
        """Return the greatest id that Redis confirmed, also before the last restart."""

    def rewind(self, stream: int, above: EntryId) -> int:
        """Go back to the first kept block of a stream that has an id above: Redis forgot.

        Only what is forgotten is read again: blocks of other streams that are shipped stay so.
        Returns how many records of this stream with an id above, settled before, count as spooled
        again; `last_shipped` is then `above`.
        """

    def raise_floor(self, floor: EntryId) -> None:
        """Give only ids above this one from now on."""

    def erase(self, needles: Sequence[bytes]) -> tuple[int, list[Erased]]:
        """Overwrite with zeros every blob that holds one of the needles; in a thread.

        Returns how many, and what they were. They count as spooled until settled.
        """

    async def housekeeping(self, now_ms: int) -> None:
        """Do what need not be done on the way of an answer; to be called once a second."""

    async def close(self) -> None:
        """Make durable what is written, and let go."""
