"""What happens when there is no room: each policy, and everything lost is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.prediction_log.spool.store import DropReason, Lost
from gateway.prediction_log.streams import StreamKind
from tests.support.spools import Opened, blob_of, config_of, ship

FOUR_SEGMENTS = {"max_bytes": 4 * 65_536, "retain_bytes": 1 << 30}


def test_drop_new_refuses_until_something_is_shipped(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of(spool=FOUR_SEGMENTS))
        opened.fill(400)
        accepted = opened.outcomes.count(None)
        assert 200 < accepted < 400
        assert set(opened.outcomes[accepted:]) == {DropReason.SPOOL_CAP}
        assert opened.spool.spooled(opened.live) == accepted
        assert sum(path.stat().st_size for path in opened.segments) <= 4 * 65_536
        ship(opened.spool)  # the first segment may go
        opened.outcomes.clear()
        opened.fill(10, first=400)
        assert set(opened.outcomes) == {None}
        assert opened.numbers()[-10:] == list(range(400, 410))
        assert opened.lost == []
        await opened.spool.close()

    asyncio.run(scenario())


def test_the_disk_is_asked_again_once_a_second_and_not_for_every_append(tmp_path: Path) -> None:
    async def scenario() -> None:
        everything = {"min_free_bytes": 1 << 60}
        opened = Opened(tmp_path / "r", config_of(spool=everything))
        opened.fill(3)
        assert opened.outcomes == [DropReason.DISK_FULL] * 3
        assert opened.segments == []
        await opened.spool.housekeeping(opened.now_ms)
        opened.fill(1)
        assert opened.outcomes[-1] is DropReason.DISK_FULL
        await opened.spool.close()

    asyncio.run(scenario())


def test_dropping_the_oldest_segment_counts_exactly_what_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_of(spool=FOUR_SEGMENTS, on_full="drop_oldest_segment")
        opened = Opened(tmp_path / "r", config)
        labels = opened.spool.stream("digits", StreamKind.LABELS)
        for number in range(1_000):
            opened.add(blob_of(number, 1_000), stream=labels if number % 10 == 0 else opened.live)
        assert set(opened.outcomes) == {None}
        assert {lost.reason for lost in opened.lost} == {DropReason.OLDEST_SEGMENT}
        gone = sum(lost.records for lost in opened.lost)
        numbers = opened.numbers()
        assert numbers == list(range(gone, 1_000))
        for stream, appended in ((opened.live, 900), (labels, 100)):
            lost_of_it = sum(lost.records for lost in opened.lost if lost.stream == stream)
            assert opened.spool.spooled(stream) == appended - lost_of_it
        assert opened.ship_all() == 1_000 - gone
        assert opened.spool.spooled(opened.live) == opened.spool.spooled(labels) == 0
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_segment_settled_in_part_loses_only_the_rest(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_of(spool=FOUR_SEGMENTS, on_full="drop_oldest_segment")
        opened = Opened(tmp_path / "r", config)
        opened.fill(100)
        assert opened.ship(5) == {opened.live: 5}
        opened.fill(900, first=100)
        gone = sum(lost.records for lost in opened.lost)
        assert opened.numbers() == list(range(5 + gone, 1_000))
        assert opened.spool.spooled(opened.live) == 1_000 - 5 - gone
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_segment_in_somebodys_hands_is_not_dropped(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_of(spool=FOUR_SEGMENTS, on_full="drop_oldest_segment")
        opened = Opened(tmp_path / "r", config)
        opened.fill(200)
        chunk = opened.spool.read(opened.spool.shipped, max_bytes=3_000, max_records=100)
        in_hand = sum(block.count for block in chunk.blocks)
        opened.fill(800, first=200)
        gone = sum(lost.records for lost in opened.lost)
        assert gone > 0
        assert opened.numbers()[:in_hand] == list(range(in_hand))
        opened.spool.mark_shipped(chunk.next, {opened.live: in_hand}, {})
        assert opened.ship_all() == 1_000 - gone - in_hand
        assert opened.spool.spooled(opened.live) == 0
        await opened.spool.close()

    asyncio.run(scenario())


def test_block_waits_for_room_in_order_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_of(spool=FOUR_SEGMENTS, on_full="block", block_max_ms=5_000)
        opened = Opened(tmp_path / "r", config)
        opened.fill(300)
        accepted = len(opened.outcomes)
        assert accepted < 300
        assert set(opened.outcomes) == {None}
        assert opened.spool.spooled(opened.live) == accepted
        for _ in range(3):
            opened.ship()
        await opened.have_outcomes(300)
        assert set(opened.outcomes) == {None}
        assert opened.numbers()[-1] == 299
        assert opened.spool.spooled(opened.live) == len(opened.numbers())
        await opened.spool.close()

    asyncio.run(scenario())


def test_block_gives_up_after_its_time_and_at_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_of(spool=FOUR_SEGMENTS, on_full="block", block_max_ms=1)
        opened = Opened(tmp_path / "r", config)
        opened.fill(300)
        await opened.have_outcomes(300)
        accepted = opened.outcomes.count(None)
        assert opened.outcomes[accepted:] == [DropReason.BLOCK_TIMEOUT] * (300 - accepted)
        opened.fill(2)
        await opened.spool.close()
        assert opened.outcomes[-2:] == [DropReason.SHUTDOWN] * 2

    asyncio.run(scenario())


def test_those_that_wait_are_bounded_by_records_and_bytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        for limit, reason in (
            ({"buffer_records": 5}, DropReason.QUEUE_RECORDS),
            ({"buffer_bytes": 5_500}, DropReason.QUEUE_BYTES),
        ):
            config = config_of(spool=FOUR_SEGMENTS, on_full="block", block_max_ms=9_000, **limit)
            opened = Opened(tmp_path / str(reason), config)
            opened.fill(300)
            assert opened.outcomes.count(reason) == 300 - opened.outcomes.count(None) - 5
            await opened.spool.close()
            assert opened.outcomes.count(DropReason.SHUTDOWN) == 5

    asyncio.run(scenario())


def test_an_append_larger_than_half_the_spool_is_oversize(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of(spool=FOUR_SEGMENTS))
        opened.add(blob_of(1, 3 * 65_536))
        opened.add(blob_of(2))
        assert opened.outcomes == [DropReason.OVERSIZE, None]
        assert opened.numbers() == [2]
        await opened.spool.close()

    asyncio.run(scenario())


def test_shipped_segments_make_room_before_anything_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of(spool=FOUR_SEGMENTS))
        for first in range(0, 1_000, 50):
            opened.fill(50, first=first)
            opened.ship_all()
        assert set(opened.outcomes) == {None}
        assert opened.lost == []
        assert sum(path.stat().st_size for path in opened.segments) <= 4 * 65_536
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_lost_segment_is_told_as_lost_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = config_of(spool=FOUR_SEGMENTS, on_full="drop_oldest_segment")
        opened = Opened(tmp_path / "r", config)
        opened.fill(1_000)
        await opened.spool.close()
        again = Opened(tmp_path / "r", config, worker="w@2")
        gone = sum(lost.records for lost in opened.lost)
        assert again.recovery.records == {again.live: 1_000 - gone}
        assert again.recovery.corrupt == {}
        assert all(isinstance(lost, Lost) for lost in opened.lost)
        await again.spool.close()

    asyncio.run(scenario())
