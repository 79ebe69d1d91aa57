"""Torn tails, flipped bytes and missing files: nothing else is lost, and the loss is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.prediction_log.spool.block import HEADER_BYTES, BlockKind, Position
from gateway.prediction_log.spool.store import Group
from gateway.prediction_log.streams import StreamKind
from tests.support.spools import (
    Opened,
    blob_of,
    config_of,
    copy_of,
    flip,
    prediction,
    read_all,
)


def test_a_byte_flipped_under_a_running_spool_is_counted_by_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        for in_block in (4, 20, 46, HEADER_BYTES, HEADER_BYTES + 30):
            opened = Opened(tmp_path / str(in_block))
            labels = opened.spool.stream("digits", StreamKind.LABELS)
            opened.add(blob_of(1))
            opened.add(blob_of(2), blob_of(3), stream=labels)
            opened.add(blob_of(4))
            victim = opened.blocks()[1]
            flip(opened.segments[0], victim.at.offset + in_block)
            blocks, corrupt = read_all(opened.spool, opened.spool.shipped)
            assert [block.stream for block in blocks] == [opened.live] * 2
            assert corrupt == {labels: 2}, in_block
            assert opened.ship_all() == 4
            assert opened.spool.spooled(labels) == opened.spool.spooled(opened.live) == 0
            await opened.spool.close()

    asyncio.run(scenario())


def test_damage_read_twice_before_it_is_settled_counts_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(3, 100)
        flip(opened.segments[0], opened.blocks()[0].at.offset + 10)
        for _ in range(2):
            assert opened.spool.read(opened.spool.shipped, max_bytes=1, max_records=9).corrupt
        assert opened.ship_all() == 3
        assert opened.spool.spooled(opened.live) == 0
        assert read_all(opened.spool, Position(0, 0))[1] == {}
        await opened.spool.close()

    asyncio.run(scenario())


def test_the_last_block_of_a_segment_flipped_is_counted_while_running_and_after(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(150)
        first = [block for block in opened.blocks() if block.at.segment == 1]
        flip(opened.segments[0], first[-1].at.offset + 2)
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        assert read_all(opened.spool, opened.spool.shipped)[1] == {opened.live: 1}
        await opened.spool.close()
        again = Opened(crashed, worker="w@2")
        assert again.recovery.corrupt == {again.live: 1}
        assert again.recovery.records == {again.live: 149}
        assert len(again.numbers()) == 149
        await again.spool.close()

    asyncio.run(scenario())


def test_flipped_bytes_found_at_the_start_are_counted_and_not_again_when_read(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        for first in range(0, 30, 3):
            opened.add(*(blob_of(first + i) for i in range(3)))
        blocks = opened.blocks()
        await opened.spool.close()
        flip(opened.segments[0], blocks[2].at.offset + 5)  # a header
        flip(opened.segments[0], blocks[6].at.offset + HEADER_BYTES + 9)  # a payload
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.corrupt == {again.live: 6}
        assert again.recovery.records == {again.live: 24}
        blocks_left, corrupt = read_all(again.spool, again.spool.shipped)
        assert len(blocks_left) == 8
        assert corrupt == {}
        assert again.ship_all() == 24
        assert again.spool.spooled(again.live) == 0
        await again.spool.close()

    asyncio.run(scenario())


def test_damage_in_what_is_shipped_costs_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(10, 100)
        at = opened.blocks()[3].at.offset
        opened.ship(5)
        await opened.spool.close()
        flip(opened.segments[0], at + 3)
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.corrupt == {}
        assert again.recovery.records == {again.live: 5}
        await again.spool.close()

    asyncio.run(scenario())


def test_a_torn_tail_is_dropped_and_counted_in_bytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(2, 100)
        end = opened.blocks()[-1].end.offset
        opened.fill(1, 100, first=2)
        copies = []
        for cut in (1, 30, HEADER_BYTES, HEADER_BYTES + 50):
            crashed = copy_of(tmp_path / "r", tmp_path / f"crashed{cut}")
            segment = next(crashed.glob("*.segment"))
            whole = segment.read_bytes()
            segment.write_bytes(whole[: end + cut] + bytes(len(whole) - end - cut))
            copies.append((crashed, cut))
        await opened.spool.close()
        for crashed, _ in copies:
            for life in range(2):  # and only once
                again = Opened(crashed, worker=f"w@{life}")
                assert again.numbers() == [0, 1]
                assert again.recovery.corrupt == {}
                assert bool(again.recovery.torn_bytes) == (life == 0)
                await again.spool.close()

    asyncio.run(scenario())


def test_a_lost_or_broken_offset_file_means_that_all_is_shipped_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(10, 100)
        opened.ship(4)
        await opened.spool.close()
        broken = copy_of(tmp_path / "r", tmp_path / "broken")
        flip(broken / "offsets", 20)
        (tmp_path / "r" / "offsets").unlink()
        for directory in (tmp_path / "r", broken):
            again = Opened(directory, worker="w@2")
            assert again.numbers() == list(range(10))
            assert again.recovery.records == {again.live: 10}
            await again.spool.close()

    asyncio.run(scenario())


def test_records_whose_stream_is_no_longer_declared_tell_it_themselves(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        other = opened.spool.stream("other", StreamKind.LIVE)
        opened.add(prediction(1, name="other"), stream=other)
        await opened.spool.close()
        (tmp_path / "r" / "offsets").unlink()
        life_end = HEADER_BYTES + 4 + len("w@1")
        flip(opened.segments[0], life_end + 60)  # the STREAM block behind the LIFE block
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.records == {other: 1}
        assert again.spool.stream_of(other) == ("other", StreamKind.LIVE)
        await again.spool.close()

    asyncio.run(scenario())


def test_records_of_a_stream_that_nobody_knows_are_counted_and_never_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(blob_of(1))
        other = opened.spool.stream("other", StreamKind.LIVE)
        end = opened.blocks()[-1].end.offset
        opened.add(blob_of(2), stream=other)
        opened.add(blob_of(3))
        await opened.spool.close()
        (tmp_path / "r" / "offsets").unlink()
        flip(opened.segments[0], end + HEADER_BYTES + 6)
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.corrupt == {opened.live: 1}
        assert again.numbers() == [1, 3]
        assert again.spool.stream("new", StreamKind.LIVE) > other
        await again.spool.close()

    asyncio.run(scenario())


def test_keys_and_intents_survive_beside_damage(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of())
        opened.append(Group(BlockKind.KEY, 0, [b"key"]))
        opened.fill(2, 100)
        victim = opened.blocks()[1]
        flip(opened.segments[0], victim.at.offset)
        kinds = [block.kind for block in opened.blocks()]
        assert kinds == [BlockKind.KEY, BlockKind.RECORDS]
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_loss_is_counted_also_where_no_stream_is_known_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(blob_of(1), blob_of(2))
        await opened.spool.close()
        (tmp_path / "r" / "offsets").unlink()
        flip(opened.segments[0], HEADER_BYTES + 4 + len("w@1") + 60)
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.nameless == 2
        assert again.recovery.corrupt == again.recovery.records == {}
        assert again.blocks() == []
        await again.spool.close()

    asyncio.run(scenario())
