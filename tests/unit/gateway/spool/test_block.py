"""The block format: what is written is read again, and what is not intact is told apart."""

from __future__ import annotations

import struct

from gateway.prediction_log.spool.block import (
    HEADER_BYTES,
    UNKNOWN,
    Block,
    BlockKind,
    Damage,
    Position,
    Scanner,
    header_at,
    make_block,
    make_header,
    make_payload,
)
from gateway.prediction_log.streams import EntryId

SALT = 0x1234_5678


def block_of(blobs: list[bytes], *, before: int = 0, stream: int = 1, salt: int = SALT) -> bytes:
    payload = make_payload(blobs)
    first = 1_000 + before, 7
    rest = 0, before, salt
    return make_header(BlockKind.RECORDS, stream, first, len(blobs), payload, rest) + payload


def walk(data: bytes, *, before: int = 0, is_partial: bool = False) -> list[Block | Damage]:
    scanner = Scanner(data, segment=3, salt=SALT, before=before)
    return list(scanner.walk(0, len(data), is_partial=is_partial))


def three_blocks() -> tuple[list[bytes], bytes]:
    blocks = [block_of([b"a%d" % i, b"bb"], before=2 * i, stream=i + 1) for i in range(3)]
    return blocks, b"".join(blocks)


def test_blobs_come_back_as_they_were() -> None:
    blobs = [b"", b"\x01", bytes(1_000), b"\xff" * 70_000]
    found = walk(block_of(blobs))
    assert [type(item) for item in found] == [Block]
    assert isinstance(found[0], Block)
    assert found[0].blobs() == blobs


def test_the_header_stands_at_the_offsets_that_the_script_in_redis_reads() -> None:
    data = make_block(BlockKind.KEY, 5, EntryId(1 << 41, 9), [b"one", b"three"], ref=77)
    assert data[:4] == b"\xf5SLB"
    assert struct.unpack_from(">I", data, 4) == (len(data) - HEADER_BYTES,)
    assert (data[8], data[9]) == (BlockKind.KEY, 1)
    assert struct.unpack_from(">HIQIIQ", data, 10) == (5, 2, 1 << 41, 9, 0, 77)
    assert HEADER_BYTES == 48
    assert data[48:] == b"\x00\x00\x00\x03one\x00\x00\x00\x05three"


def test_blocks_are_found_in_order_with_their_places_and_ids() -> None:
    blocks, data = three_blocks()
    found = [item for item in walk(data) if isinstance(item, Block)]
    assert [item.at for item in found] == [
        Position(3, 0),
        Position(3, len(blocks[0])),
        Position(3, 2 * len(blocks[0])),
    ]
    assert found[1].last_id == EntryId(1_002, 8)
    assert found[0].end == found[1].at


def test_zeros_behind_the_last_block_are_no_damage() -> None:
    _, data = three_blocks()
    assert all(isinstance(item, Block) for item in walk(data + bytes(10_000)))


def test_a_changed_payload_costs_its_block_and_says_how_many_records() -> None:
    blocks, data = three_blocks()
    at = len(blocks[0]) + HEADER_BYTES + 5
    found = walk(data[:at] + b"?" + data[at + 1 :])
    assert found[1] == Damage(Position(3, len(blocks[0])), len(blocks[1]), 2, 2)
    assert [item.stream for item in found] == [1, 2, 3]


def test_every_changed_bit_of_a_header_costs_only_its_block_and_is_counted() -> None:
    blocks, data = three_blocks()
    start = len(blocks[0])
    for offset in range(start, start + HEADER_BYTES):
        changed = bytearray(data)
        changed[offset] ^= 0x10
        found = walk(bytes(changed))
        kept = [item.stream for item in found if isinstance(item, Block)]
        lost = [item for item in found if isinstance(item, Damage)]
        assert kept == [1, 3], offset
        assert [item.records for item in lost] == [2], offset


def test_a_changed_header_of_the_last_block_is_the_tail() -> None:
    blocks, data = three_blocks()
    start = 2 * len(blocks[0])
    found = walk(data[:start] + b"?" + data[start + 1 :] + bytes(100))
    assert found[2] == Damage(Position(3, start), len(blocks[2]), UNKNOWN, UNKNOWN, is_tail=True)


def test_a_block_cut_off_anywhere_is_a_torn_tail_and_costs_no_other() -> None:
    blocks, data = three_blocks()
    start = 2 * len(blocks[0])
    for end in range(start + 1, len(data)):
        found = walk(data[:end] + bytes(200))
        assert [item.stream for item in found[:2]] == [1, 2]
        for item in found[2:]:
            assert isinstance(item, Damage), end
            assert item.is_tail, end


def test_bytes_of_a_caller_cannot_pass_for_a_block() -> None:
    planted = block_of([b"planted"] * 3, before=1, salt=0)
    blocks = [block_of([planted]), block_of([b"real"], before=1)]
    data = b"?" + blocks[0][1:] + blocks[1]  # the header is gone, the payload is searched
    found = walk(data)
    assert [item.blobs() for item in found if isinstance(item, Block)] == [[b"real"]]
    assert [item.records for item in found if isinstance(item, Damage)] == [1]


def test_a_partial_walk_stops_where_the_bytes_end_in_a_block() -> None:
    blocks, data = three_blocks()
    scanner = Scanner(data[:-1], segment=3, salt=SALT)
    assert len(list(scanner.walk(0, len(data) - 1, is_partial=True))) == 2
    assert scanner.offset == 2 * len(blocks[0])


def test_a_header_of_another_version_or_kind_is_none_that_is_known_here() -> None:
    data = make_block(BlockKind.RECORDS, 1, EntryId(1, 0), [b"x"])
    assert header_at(data, 0, 0) is not None
    payload = make_payload([b"x"])
    assert header_at(make_header(9, 1, (1, 0), 1, payload, (0, 0, 0)) + payload, 0, 0) is None
    assert header_at(data[:40], 0, 0) is None
