"""Erasing in place: the bytes are gone from the files, and nothing else moves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.prediction_log.record import ERASED
from gateway.prediction_log.spool.block import HEADER_BYTES, BlockKind
from gateway.prediction_log.spool.store import Group
from tests.support.spools import Opened, blob_of, flip, number_in, prediction, read_all

TAG = b"\x01subject-of-15by"


def files_hold(directory: Path, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in directory.glob("*.segment"))


def test_a_needle_is_gone_from_every_file_and_the_others_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        for number in range(200):
            opened.add(blob_of(2 * number, 500), blob_of(2 * number + 1, 500) + TAG)
        opened.append(Group(BlockKind.KEY, 0, [b"key of " + TAG, b"another key"]))
        opened.append(Group(BlockKind.INTENT, opened.live, [b"intent of " + TAG], 1))
        opened.ship(50)
        count, erased = await asyncio.to_thread(opened.spool.erase, [TAG])
        assert count == len(erased) == 202
        assert (erased[0].stream, number_in(erased[0].blob)) == (opened.live, 1)
        assert not files_hold(tmp_path / "r", TAG)
        opened.add(blob_of(1_000))  # and the segment goes on
        blocks, corrupt = read_all(opened.spool, opened.spool.shipped)
        assert corrupt == {}
        blobs = [blob for block in blocks for blob in block.blobs()]
        kept = [blob for blob in blobs if not blob.startswith(ERASED)]
        assert [number_in(b) for b in kept if b != b"another key"] == [*range(50, 400, 2), 1_000]
        assert b"another key" in kept
        assert opened.ship_all() == 351
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.corrupt == {}
        assert again.recovery.records == {}
        assert again.blobs() == []  # an erased intent is not completed
        await again.spool.close()

    asyncio.run(scenario())


def test_many_ids_are_looked_up_and_only_whole_ids_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        for seq in range(1, 301):
            opened.add(prediction(seq))
        wanted = [seq.to_bytes(16, "big") for seq in range(1, 301, 3)]
        count, erased = opened.spool.erase(wanted)
        assert count == 100
        assert all(any(rid in one.blob for rid in wanted) for one in erased)
        left = [b for b in opened.blobs() if not b.startswith(ERASED)]
        assert left == [prediction(seq) for seq in range(1, 301) if seq % 3 != 1]
        await opened.spool.close()

    asyncio.run(scenario())


def test_damaged_bytes_are_zeroed_and_stay_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        for in_block in (3, HEADER_BYTES + 2):
            opened = Opened(tmp_path / str(in_block))
            for number in range(4):
                opened.add(blob_of(number, 200) + TAG)
            flip(opened.segments[0], 0)  # the LIFE block holds no record
            for victim in (1, 3):
                flip(opened.segments[0], opened_block(opened, victim) + in_block)
            count, _ = opened.spool.erase([TAG])
            assert count == 2
            assert not files_hold(opened.directory, TAG)
            blocks, corrupt = read_all(opened.spool, opened.spool.shipped)
            assert len(blocks) == 2
            assert corrupt == {opened.live: 2}
            assert opened.ship_all() == 4
            assert opened.spool.spooled(opened.live) == 0
            await opened.spool.close()

    asyncio.run(scenario())


def opened_block(opened: Opened, number: int) -> int:
    """Return the offset of the block of a numbered record, by the file alone."""
    data = opened.segments[0].read_bytes()
    return data.index(blob_of(number, 200)) - 4 - HEADER_BYTES


def test_nothing_to_erase_changes_no_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(10)
        before = opened.segments[0].read_bytes()
        assert opened.spool.erase([TAG]) == (0, [])
        assert opened.spool.erase([]) == (0, [])
        assert opened.segments[0].read_bytes() == before
        await opened.spool.close()

    asyncio.run(scenario())
