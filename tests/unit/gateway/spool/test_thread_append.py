"""Appends by a thread, with and without fdatasync: told later, never lost, bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log_config import PredictionLogConfig
from tests.support.spools import Opened, config_of, copy_of

THREAD = config_of(append="thread")
DISK = config_of(durability="disk", spool={"fsync_ms": 1})
BOTH = pytest.mark.parametrize("config", [THREAD, DISK], ids=["thread", "disk"])


@BOTH
def test_done_comes_on_the_loop_after_the_write_and_counts_then(
    tmp_path: Path, config: PredictionLogConfig
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config)
        opened.add(b"\x01a-needle-on-disk")
        assert opened.outcomes == []
        assert opened.spool.spooled(opened.live) == 0
        assert opened.blocks() == []
        await opened.have_outcomes(1)
        assert opened.spool.spooled(opened.live) == 1
        assert b"a-needle-on-disk" in opened.segments[0].read_bytes()
        assert len(opened.blobs()) == 1
        await opened.spool.close()

    asyncio.run(scenario())


@BOTH
def test_many_appends_over_many_segments_keep_their_order(
    tmp_path: Path, config: PredictionLogConfig
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config)
        for first in range(0, 600, 50):
            opened.fill(50, first=first)
            await asyncio.sleep(0)
        assert set(await opened.have_outcomes(600)) == {None}
        assert opened.numbers() == list(range(600))
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await opened.spool.close()
        for directory in (crashed, tmp_path / "r"):
            again = Opened(directory, worker="w@2")
            assert again.numbers() == list(range(600))
            assert again.recovery.corrupt == {}
            await again.spool.close()

    asyncio.run(scenario())


def test_a_thread_reports_to_uvloop_as_well(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        opened = Opened(tmp_path / "r", THREAD)
        opened.fill(100)
        assert await opened.have_outcomes(100) == [None] * 100
        await opened.spool.housekeeping(opened.now_ms)
        await opened.spool.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@BOTH
def test_closing_writes_what_is_queued(tmp_path: Path, config: PredictionLogConfig) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config)
        opened.fill(200)
        await opened.spool.close()
        assert opened.outcomes == [None] * 200
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.numbers() == list(range(200))
        await again.spool.close()

    asyncio.run(scenario())


def test_the_queue_is_bounded_by_records_and_by_bytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        for config, reason in (
            (config_of(append="thread", buffer_records=10), DropReason.QUEUE_RECORDS),
            (config_of(append="thread", buffer_bytes=10_000), DropReason.QUEUE_BYTES),
        ):
            opened = Opened(tmp_path / str(reason), config)
            opened.fill(40)  # the loop does not turn: nothing is completed meanwhile
            assert set(opened.outcomes) == {reason}
            refused = len(opened.outcomes)
            assert 25 <= refused <= 31
            await opened.have_outcomes(40)
            assert opened.outcomes[refused:] == [None] * (40 - refused)
            opened.fill(1, first=99)
            await opened.have_outcomes(41)
            assert opened.numbers()[-1] == 99
            await opened.spool.close()

    asyncio.run(scenario())
