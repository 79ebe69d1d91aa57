"""Cuts blocks into arguments that Redis takes: nearly always all of them are one.

Pure. Only a block larger than LIMIT_BYTES, which is one batch of very large records, is taken apart
record by record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gateway.prediction_log.spool.block import HEADER_BYTES, Block, make_block
from gateway.prediction_log.streams import EntryId

LIMIT_BYTES: Final = 4 << 20
"""Most bytes per call, unless one record has more: a call holds the server."""
MAX_RECORD_BYTES: Final = 16 << 20
"""Largest record. Redis breaks the connection of whoever sends more than its proto-max-bulk-len
(512 MiB, often less), and such a record would be sent again for ever."""
_LENGTH_BYTES: Final = 4
_ROOM_BYTES: Final = 1_024
"""For what stands around a record in an argument."""


class Part(NamedTuple):
    """Some neighbouring records of a block."""

    block: Block
    begin: int
    records: int


class Piece(NamedTuple):
    """What one call sends, or one record that is too large to be sent."""

    data: bytes
    blocks: list[Block]
    """Where the records stand: whole blocks, or some neighbouring records of a single one."""
    begin: int
    """Number of the first record in the first block."""
    records: int
    """How many there are."""
    is_oversize: bool = False

    @property
    def parts(self) -> Iterator[Part]:
        """Yield what it has of each block."""
        if len(self.blocks) == 1:
            yield Part(self.blocks[0], self.begin, self.records)
        else:
            for block in self.blocks:
                yield Part(block, 0, block.count)

    @property
    def record_bytes(self) -> int:
        """Size of the records alone."""
        return len(self.data) - HEADER_BYTES * len(self.blocks) - _LENGTH_BYTES * self.records

    def locate(self, index: int) -> tuple[Block, int]:
        """Return the block of a record, and the record's number in it."""
        for part in self.parts:
            if index < part.records:
                return part.block, part.begin + index
            index -= part.records
        raise IndexError(index)


NOTHING: Final = Piece(b"", [], 0, 0)
"""A call that sends no record."""


def pieces(blocks: Sequence[Block], max_bulk_bytes: int) -> Iterator[Piece]:
    """Yield blocks of one stream in their order, joined as far as the limits allow."""
    limit_bytes = min(LIMIT_BYTES, max_bulk_bytes - _ROOM_BYTES)
    record_limit_bytes = min(MAX_RECORD_BYTES, max_bulk_bytes - _ROOM_BYTES)
    run: list[Block] = []
    size = 0
    for block in blocks:
        block_bytes = len(block.data)
        if run and size + block_bytes > limit_bytes:
            yield _joined(run)
            run, size = [], 0
        if block_bytes > limit_bytes:
            yield from _taken_apart(block, limit_bytes, record_limit_bytes)
        else:
            run.append(block)
            size += block_bytes
    if run:
        yield _joined(run)


def _joined(blocks: list[Block]) -> Piece:
    data = blocks[0].data if len(blocks) == 1 else b"".join([block.data for block in blocks])
    return Piece(data, blocks, 0, sum([block.count for block in blocks]))


def _taken_apart(block: Block, limit_bytes: int, record_limit_bytes: int) -> Iterator[Piece]:
    begin, size = 0, 0
    blobs = block.blobs()
    for number, blob in enumerate(blobs):
        is_oversize = len(blob) > record_limit_bytes
        if number > begin and (is_oversize or size + len(blob) > limit_bytes):
            yield _some(block, blobs, begin, number)
            begin, size = number, 0
        size += len(blob) + _LENGTH_BYTES
        if is_oversize:
            yield Piece(b"", [block], number, 1, is_oversize=True)
            begin, size = number + 1, 0
    if begin < len(blobs):
        yield _some(block, blobs, begin, len(blobs))


def _some(block: Block, blobs: Sequence[bytes], begin: int, end: int) -> Piece:
    first_id = EntryId(block.first_id.ms, block.first_id.seq + begin)
    data = make_block(block.kind, block.stream, first_id, blobs[begin:end])
    return Piece(data, [block], begin, end - begin)
