"""What was appended last is given back without a walk over the file, if it stands there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.prediction_log.spool import reading, recent, spool
from gateway.prediction_log.spool.block import BlockKind, Position
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.spool.store import Group
from tests.support.spools import Opened, blob_of, flip, read_all


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The segments that were walked over, one entry each time."""
    found: list[int] = []

    def read_segment(
        segment: Segment, start: int, limits: reading.Limits, settled: reading.Settled
    ) -> reading.Found:
        found.append(segment.number)
        return reading.read_segment(segment, start, limits, settled)

    monkeypatch.setattr(spool, "read_segment", read_segment)
    return found


def test_a_shipper_that_keeps_up_reads_what_is_remembered(tmp_path: Path, walks: list[int]) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        other = opened.spool.stream("other", opened.spool.stream_of(opened.live)[1])
        shipped = 0
        for first in range(0, 600, 3):  # over the ends of segments, with blocks of every kind
            opened.append(Group(BlockKind.KEY, 0, [b"key"]))
            opened.append(Group(BlockKind.INTENT, opened.live, [b"intent"], first + 1))
            opened.fill(2, first=first, size_bytes=1_000)
            opened.add(blob_of(first + 2), stream=other)
            before = opened.spool.spooled_bytes
            assert opened.spool.oldest_unshipped_ms == opened.now_ms
            shipped += opened.ship_all()
            assert before > opened.spool.spooled_bytes
        assert shipped == 600
        assert opened.spool.spooled(opened.live) == opened.spool.spooled(other) == 0
        assert len(opened.segments) > 3
        assert opened.spool.oldest_unshipped_ms == 0
        assert walks == []
        await opened.spool.close()

    asyncio.run(scenario())


def test_the_same_blocks_come_from_memory_and_from_the_file(
    tmp_path: Path, walks: list[int]
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.append(Group(BlockKind.KEY, 0, [b"key"]))
        opened.fill(200)
        remembered = opened.blocks()
        assert walks == []
        assert opened.blocks(after=Position(0, 0), is_all=True) == remembered
        assert walks
        assert opened.blocks(after=remembered[150].at) == remembered[150:]
        await opened.spool.close()

    asyncio.run(scenario())


def test_what_was_overwritten_is_not_believed(tmp_path: Path, walks: list[int]) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(5, 100)
        third = opened.blocks()[2]
        opened.spool.erase([blob_of(2, 100)])
        assert [blob[0] for blob in opened.blobs()] == [1, 1, 0, 1, 1]
        assert walks
        flip(opened.segments[0], third.end.offset + 60)
        assert read_all(opened.spool, opened.spool.shipped)[1] == {opened.live: 1}
        walks.clear()
        opened.ship_all()
        opened.fill(5, 100)  # and what comes after is remembered again
        walks.clear()
        assert len(opened.blocks()) == 5
        assert walks == []
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_backlog_is_remembered_only_to_the_limit(
    tmp_path: Path, walks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 20_000)

    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.fill(100)
        assert opened.numbers() == list(range(100))
        assert walks  # the old ones came from the file
        assert opened.ship(50)
        walks.clear()
        last = opened.blocks()[-1].at
        walks.clear()
        assert [block.at for block in opened.blocks(after=last)] == [last]
        assert walks == []
        assert opened.ship_all() == 50
        await opened.spool.close()

    asyncio.run(scenario())
