"""The spool's ordinary life: append, read, ship, close, open again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway.prediction_log.spool.block import START, BlockKind, Position
from gateway.prediction_log.spool.lock import SpoolInUse
from gateway.prediction_log.spool.store import DropReason, Group
from gateway.prediction_log.streams import EntryId, StreamKind
from tests.support.spools import (
    NOW_MS,
    Opened,
    blob_of,
    config_of,
    copy_of,
    ids_of,
    ship,
)


def test_an_append_is_in_the_file_when_it_is_told_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(b"\x01needle-in-the-file")
        assert opened.outcomes == [None]
        assert b"needle-in-the-file" in opened.segments[0].read_bytes()
        assert opened.spool.spooled(opened.live) == 1
        await opened.spool.close()

    asyncio.run(scenario())


def test_records_come_out_in_order_with_their_streams_and_growing_ids(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        shadow = opened.spool.stream("digits", StreamKind.SHADOW)
        opened.append(
            Group(BlockKind.RECORDS, opened.live, [blob_of(1), blob_of(2)]),
            Group(BlockKind.RECORDS, shadow, [blob_of(3)]),
        )
        opened.add(blob_of(4))
        blocks = opened.blocks()
        assert [(b.stream, b.count) for b in blocks] == [
            (opened.live, 2),
            (shadow, 1),
            (opened.live, 1),
        ]
        assert opened.numbers() == [1, 2, 3, 4]
        ids = ids_of(blocks)
        assert ids == sorted(set(ids))
        assert ids[0] == EntryId(NOW_MS, 0)
        assert opened.spool.stream_of(shadow) == ("digits", StreamKind.SHADOW)
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_spool_of_many_segments_is_read_across_their_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(500)
        assert len(opened.segments) > 5
        assert opened.numbers() == list(range(500))
        assert opened.spool.spooled_bytes > 500_000
        assert opened.spool.oldest_unshipped_ms == NOW_MS
        assert opened.ship_all() == 500
        assert opened.spool.spooled(opened.live) == opened.spool.spooled_bytes == 0
        assert opened.spool.oldest_unshipped_ms == 0
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_record_larger_than_a_segment_gets_one_of_its_size(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(blob_of(1), blob_of(2, 1 << 20), blob_of(3))
        opened.add(blob_of(4))
        assert opened.outcomes == [None, None]
        assert opened.numbers() == [1, 2, 3, 4]
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_read_keeps_its_limits_but_gives_at_least_one_block(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        for first in range(0, 100, 10):
            opened.add(*(blob_of(first + i, 200) for i in range(10)))
        spool = opened.spool
        assert len(spool.read(START, max_bytes=1, max_records=1).blocks) == 1
        assert len(spool.read(START, max_bytes=1 << 20, max_records=35).blocks) == 3
        assert len(spool.read(START, max_bytes=5_000, max_records=1_000).blocks) == 2
        chunk = spool.read(START, max_bytes=1 << 20, max_records=1_000)
        assert len(chunk.blocks) == 10
        assert spool.read(chunk.next, max_bytes=1, max_records=1).blocks == []
        await spool.close()

    asyncio.run(scenario())


def test_what_is_not_shipped_is_there_after_a_clean_end_and_after_a_crash(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Opened(tmp_path / "r")
        shadow = first.spool.stream("digits", StreamKind.SHADOW)
        first.fill(150)
        first.add(blob_of(1_000), stream=shadow)
        assert first.ship(20) == {first.live: 20}
        await first.spool.housekeeping(NOW_MS)
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await first.spool.close()
        for directory in (tmp_path / "r", crashed):
            again = Opened(directory, worker="w@2")
            assert again.recovery.records == {again.live: 130, shadow: 1}
            assert again.spool.spooled(again.live) == 130
            assert again.numbers() == [*range(20, 150), 1_000]
            assert again.spool.stream("digits", StreamKind.SHADOW) == shadow
            assert again.recovery.corrupt == {}
            assert again.recovery.torn_bytes == 0
            await again.spool.close()

    asyncio.run(scenario())


def test_ids_grow_when_the_clock_goes_back_an_hour_and_over_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Opened(tmp_path / "r")
        first.add(blob_of(1), blob_of(2))
        first.now_ms -= 3_600_000
        first.add(blob_of(3))
        ids = ids_of(first.blocks())
        await first.spool.close()
        again = Opened(tmp_path / "r", worker="w@2", now_ms=NOW_MS - 7_200_000)
        again.add(blob_of(4))
        ids = ids_of(again.blocks())
        assert len(ids) == 4
        assert ids == sorted(set(ids))
        assert again.ship_all() == 4
        for segment in again.segments:  # only the offset file is left to know the ids
            segment.unlink()
        await again.spool.close()
        third = Opened(tmp_path / "r", worker="w@3", now_ms=5)
        third.add(blob_of(5))
        assert ids_of(third.blocks())[0] > ids[-1]
        await third.spool.close()

    asyncio.run(scenario())


def test_ids_stay_above_a_floor(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.spool.raise_floor(EntryId(NOW_MS + 10, 99))
        opened.spool.raise_floor(EntryId(1, 1))
        opened.add(blob_of(1))
        opened.spool.raise_floor(EntryId(NOW_MS + 11, (1 << 64) - 1))
        opened.add(blob_of(2))
        assert ids_of(opened.blocks()) == [EntryId(NOW_MS + 10, 100), EntryId(NOW_MS + 12, 0)]
        await opened.spool.close()

    asyncio.run(scenario())


def test_two_processes_cannot_have_one_spool_and_the_token_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        with pytest.raises(SpoolInUse, match="in use by process"):
            Opened(tmp_path / "r", worker="w@2")
        token = opened.spool.token
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@3")
        assert again.spool.token == token
        assert len(token) == 32
        other = Opened(tmp_path / "other")
        assert other.spool.token != token
        await again.spool.close()
        await other.spool.close()

    asyncio.run(scenario())


def test_the_last_confirmed_ids_outlive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(blob_of(1), blob_of(2))
        opened.ship()
        assert opened.spool.last_shipped(opened.live) == EntryId(NOW_MS, 1)
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.spool.last_shipped(again.live) == EntryId(NOW_MS, 1)
        assert again.recovery.records == {}
        assert again.blocks() == []
        await again.spool.close()

    asyncio.run(scenario())


def test_a_part_of_a_chunk_may_be_settled_without_moving(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(3)
        spool = opened.spool
        spool.mark_shipped(spool.shipped, {opened.live: 1}, {opened.live: EntryId(NOW_MS, 0)})
        assert spool.spooled(opened.live) == 2
        assert opened.numbers() == [0, 1, 2]
        await spool.close()

    asyncio.run(scenario())


def test_shipped_segments_are_kept_for_a_while_and_within_a_size(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_of(spool={"retain_s": 900, "retain_bytes": 200_000})
        opened = Opened(tmp_path / "r", config)
        opened.fill(500)
        opened.ship_all()
        await opened.spool.housekeeping(NOW_MS + 1)
        kept = opened.segments[:-1]
        assert 0 < sum(path.stat().st_size for path in kept) <= 200_000
        await opened.spool.housekeeping(NOW_MS + 900_001)
        assert not [path for path in kept if path.exists()]
        opened.add(blob_of(7))
        assert opened.numbers() == [7]
        await opened.spool.close()

    asyncio.run(scenario())


def test_nothing_unshipped_is_ever_retired(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of(spool={"retain_s": 0, "retain_bytes": 0}))
        opened.fill(300)
        await opened.spool.housekeeping(NOW_MS + 10_000_000)
        assert opened.numbers() == list(range(300))
        await opened.spool.close()

    asyncio.run(scenario())


def inode_of_spare(directory: Path) -> int:
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        for path in directory.glob("*.spare"):
            return path.stat().st_ino
        time.sleep(0.001)
    raise AssertionError("no spare was made")


def test_the_next_segment_is_allocated_before_it_is_needed(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(40)  # more than half of a segment
        inode = await asyncio.to_thread(inode_of_spare, opened.directory)
        opened.fill(40)
        assert opened.segments[-1].stat().st_ino == inode
        await opened.spool.close()
        assert not list(opened.directory.glob("*.spare"))

    asyncio.run(scenario())


def test_what_was_written_last_is_hot_and_what_an_earlier_process_wrote_is_not(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of(spool={"segment_bytes": 4 << 20}))
        for number in range(12):
            opened.add(blob_of(number, 1 << 20))
        assert not opened.spool.is_hot(opened.spool.shipped)
        last = opened.blocks()[-1]
        assert opened.spool.is_hot(last.at)
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@2")
        assert not again.spool.is_hot(last.at)
        await again.spool.close()

    asyncio.run(scenario())


def test_after_the_end_appends_are_told_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        await opened.spool.close()
        await opened.spool.close()
        opened.add(blob_of(1))
        assert opened.outcomes == [DropReason.SHUTDOWN]

    asyncio.run(scenario())


def test_lives_without_records_leave_no_segments(tmp_path: Path) -> None:
    async def scenario() -> None:
        for life in range(3):
            opened = Opened(tmp_path / "r", worker=f"w@{life}")
            copy_of(tmp_path / "r", tmp_path / f"crash{life}")
            await opened.spool.close()
            assert opened.segments == []
            crashed = Opened(tmp_path / f"crash{life}", worker="w@x")
            assert len(crashed.segments) == 1
            await crashed.spool.close()

    asyncio.run(scenario())


def test_the_appended_callback_is_called_once_per_append(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        calls: list[int] = []
        opened.spool.on_append = lambda: calls.append(opened.spool.spooled(opened.live))
        opened.fill(2)
        assert calls == [1, 2]
        assert ship(opened.spool) == {opened.live: 2}
        assert opened.spool.shipped > Position(0, 0)
        await opened.spool.close()

    asyncio.run(scenario())
