"""Redis forgot: exactly what it forgot is read again, and counted as spooled again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.prediction_log.spool.block import START, BlockKind
from gateway.prediction_log.spool.store import Group
from gateway.prediction_log.streams import BEFORE_ALL, EntryId, StreamKind
from tests.support.spools import NOW_MS, Opened, blob_of, config_of, number_in, read_all


def two_streams(directory: Path, count: int = 300) -> tuple[Opened, int]:
    """Even numbers are labels, odd ones are live; number n has the id (NOW_MS, n)."""
    opened = Opened(directory)
    labels = opened.spool.stream("digits", StreamKind.LABELS)
    for number in range(count):
        opened.add(blob_of(number, 1_000), stream=opened.live if number % 2 else labels)
    return opened, labels


def test_only_the_forgotten_records_of_that_stream_come_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened, labels = two_streams(tmp_path / "r")
        opened.ship_all()
        end = opened.spool.shipped
        assert opened.spool.rewind(opened.live, EntryId(NOW_MS, 100)) == 100
        assert opened.spool.shipped < end
        assert opened.spool.last_shipped(opened.live) == EntryId(NOW_MS, 100)
        assert opened.spool.spooled(opened.live) == 100
        assert opened.spool.spooled(labels) == 0
        assert opened.spool.oldest_unshipped_ms == NOW_MS
        assert opened.numbers() == list(range(101, 300, 2))
        assert opened.ship_all() == 100
        assert opened.spool.shipped == end
        assert opened.spool.spooled(opened.live) == 0
        await opened.spool.close()

    asyncio.run(scenario())


def test_several_streams_may_be_rewound_and_new_records_follow(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened, labels = two_streams(tmp_path / "r")
        opened.ship_all()
        opened.fill(3, first=300)
        assert opened.spool.rewind(labels, EntryId(NOW_MS, 200)) == 49
        assert opened.spool.rewind(opened.live, BEFORE_ALL) == 150
        expected = [n for n in range(300) if n % 2 or n > 200] + [300, 301, 302]
        assert opened.numbers() == expected
        assert opened.spool.spooled(opened.live) == 153
        assert opened.spool.spooled(labels) == 49
        assert opened.ship_all() == len(expected)
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_rewind_to_what_redis_still_has_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened, _ = two_streams(tmp_path / "r", 20)
        opened.ship_all()
        end = opened.spool.shipped
        assert opened.spool.rewind(opened.live, EntryId(NOW_MS, 19)) == 0
        assert opened.spool.shipped == end
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_block_forgotten_in_part_counts_only_that_part(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(*(blob_of(n) for n in range(10)))
        opened.ship_all()
        assert opened.spool.rewind(opened.live, EntryId(NOW_MS, 3)) == 6
        assert opened.numbers() == list(range(10))
        assert opened.spool.spooled(opened.live) == 6
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_block_settled_in_part_is_spooled_again_in_that_part(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(*(blob_of(n) for n in range(10)))
        opened.add(*(blob_of(n) for n in range(10, 20)))
        spool, live = opened.spool, opened.live
        chunk = spool.read(spool.shipped, max_bytes=1, max_records=1)
        spool.mark_shipped(chunk.next, {live: 10}, {live: EntryId(NOW_MS, 9)})
        spool.mark_shipped(chunk.next, {live: 4}, {live: EntryId(NOW_MS, 13)})
        assert spool.spooled(live) == 6
        assert spool.rewind(live, EntryId(NOW_MS, 7)) == 2 + 4
        assert spool.spooled(live) == 12
        assert spool.rewind(live, EntryId(NOW_MS, 7)) == 0
        await spool.close()

    asyncio.run(scenario())


def test_a_rewind_outlives_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened, _ = two_streams(tmp_path / "r")
        opened.ship_all()
        opened.spool.rewind(opened.live, EntryId(NOW_MS, 100))
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.records == {again.live: 100}
        assert again.numbers() == list(range(101, 300, 2))
        assert again.ship_all() == 100
        assert again.spool.rewind(again.live, EntryId(NOW_MS, 200)) == 50
        await again.spool.close()

    asyncio.run(scenario())


def test_what_is_settled_can_still_be_read_when_all_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened, _ = two_streams(tmp_path / "r")
        opened.ship_all()
        opened.spool.rewind(opened.live, EntryId(NOW_MS, 250))
        blocks, _ = read_all(opened.spool, START, is_all=True)
        assert [number_in(b.blobs()[0]) for b in blocks] == list(range(300))
        await opened.spool.close()

    asyncio.run(scenario())


def test_who_forgot_the_records_is_sent_the_keys_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.append(Group(BlockKind.KEY, 0, [b"a key"]))
        opened.fill(300)
        opened.ship_all()
        opened.spool.rewind(opened.live, EntryId(NOW_MS, 249))
        blocks = opened.blocks()
        assert [b.kind for b in blocks[:2]] == [BlockKind.KEY, BlockKind.RECORDS]
        assert opened.numbers() == list(range(250, 300))
        await opened.spool.close()

    asyncio.run(scenario())


def test_dropping_the_oldest_after_a_rewind_counts_only_what_was_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = {"max_bytes": 6 * 65_536, "retain_bytes": 1 << 30}
        config = config_of(spool=limits, on_full="drop_oldest_segment")
        opened = Opened(tmp_path / "r", config)
        labels = opened.spool.stream("digits", StreamKind.LABELS)
        for number in range(250):
            opened.add(blob_of(number, 1_000), stream=opened.live if number % 2 else labels)
        opened.ship_all()
        again = opened.spool.rewind(opened.live, BEFORE_ALL)
        assert again == 125
        opened.fill(400, first=250)
        lost = sum(lost.records for lost in opened.lost)
        assert {lost.stream for lost in opened.lost} == {opened.live}
        numbers = opened.numbers()
        assert len(numbers) == again + 400 - lost == opened.spool.spooled(opened.live)
        assert opened.spool.spooled(labels) == 0
        assert opened.ship_all() == len(numbers)
        await opened.spool.close()

    asyncio.run(scenario())
