"""Blocks as the arguments of calls."""

from __future__ import annotations

import random

import pytest

from gateway.prediction_log.shipping.pieces import LIMIT_BYTES, MAX_RECORD_BYTES, pieces
from gateway.prediction_log.spool.block import (
    HEADER_BYTES,
    Block,
    BlockKind,
    Position,
    make_block,
    split_payload,
)
from gateway.prediction_log.streams import EntryId

BULK = 512 << 20


def block_of(number: int, blobs: list[bytes]) -> Block:
    first = EntryId(1_000 + number, 5)
    data = make_block(BlockKind.RECORDS, 1, first, blobs)
    return Block(BlockKind.RECORDS, 1, first, len(blobs), 0, data, Position(1, number))


def records_in(data: bytes) -> list[tuple[EntryId, bytes]]:
    """Return ids and records of joined blocks, as the script reads them."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        count = int.from_bytes(data[at + 12 : at + 16], "big")
        ms = int.from_bytes(data[at + 16 : at + 24], "big")
        seq = int.from_bytes(data[at + 24 : at + 28], "big")
        end = at + HEADER_BYTES + size
        blobs = split_payload(data[:end], at + HEADER_BYTES)
        assert len(blobs) == count
        found += [(EntryId(ms, seq + n), blob) for n, blob in enumerate(blobs)]
        at = end
    return found


def test_ordinary_blocks_are_one_argument_of_their_own_bytes() -> None:
    blocks = [block_of(n, [b"a" * n, b"b"]) for n in range(1, 40)]
    (piece,) = pieces(blocks, BULK)
    assert piece.data == b"".join(block.data for block in blocks)
    assert piece.records == 78
    (alone,) = pieces(blocks[:1], BULK)
    assert alone.data is blocks[0].data


def test_nothing_is_nothing() -> None:
    assert list(pieces([], BULK)) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_record_is_in_one_piece_in_order_and_can_be_found_in_its_block(seed: int) -> None:
    draw = random.Random(seed)
    limit = 20_000
    sizes = [10, 10, 10, 500, 5_000, 17_000, 25_000]
    blocks = [
        block_of(n, [b"%d" % draw.getrandbits(30) * (draw.choice(sizes) // 9) for _ in range(12)])
        for n in range(30)
    ]
    wanted = [
        (EntryId(block.first_id.ms, block.first_id.seq + n), blob)
        for block in blocks
        for n, blob in enumerate(block.blobs())
    ]
    found = []
    for piece in pieces(blocks, limit):
        if piece.is_oversize:
            (part,) = piece.parts
            blob = part.block.blobs()[part.begin]
            assert len(blob) > limit - 1_024
            first = part.block.first_id
            found.append((EntryId(first.ms, first.seq + part.begin), blob))
            continue
        assert len(piece.data) <= limit
        records = records_in(piece.data)
        assert len(records) == piece.records
        for index, (entry_id, blob) in enumerate(records):
            block, number = piece.locate(index)
            assert block.blobs()[number] == blob
            assert EntryId(block.first_id.ms, block.first_id.seq + number) == entry_id
        found += records
    assert found == wanted


def test_a_large_record_goes_alone_and_one_beyond_the_limit_not_at_all() -> None:
    large, too_large = b"x" * (LIMIT_BYTES + 1), b"x" * (MAX_RECORD_BYTES + 1)
    found = list(pieces([block_of(1, [b"a", large, b"b", too_large, b"c"])], BULK))
    assert [(piece.records, piece.is_oversize) for piece in found] == [
        (1, False),
        (1, False),
        (1, False),
        (1, True),
        (1, False),
    ]


def test_a_record_that_is_not_there_is_not_found() -> None:
    (piece,) = pieces([block_of(1, [b"a"])], BULK)
    with pytest.raises(IndexError):
        piece.locate(1)
