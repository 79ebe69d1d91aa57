"""Where one life of a spool ends and the next begins, and where the disk ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from pathlib import Path

import pytest

from gateway.prediction_log.record import SCHEMA, AuditCounts, LoggedAudit, encode_logged
from gateway.prediction_log.spool import spool as spool_module
from gateway.prediction_log.spool.block import BlockKind
from gateway.prediction_log.spool.offsets import Offsets, load, save
from gateway.prediction_log.spool.recovery import EndedLife
from gateway.prediction_log.spool.store import DropReason, Group
from gateway.prediction_log.streams import EntryId, StreamKind
from gateway.prediction_log_config import PredictionLogConfig
from tests.support.spools import NOW_MS, Opened, blob_of, config_of, copy_of, prediction

LIVE = ("digits", StreamKind.LIVE)


def make_read_only(descriptor: int) -> None:
    """Have every write to an open file, and every cut of it, refused by the system."""
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, 1 << 20)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    os.dup2(sealed, descriptor)
    os.close(sealed)


@pytest.mark.parametrize("append", ["loop", "thread"])
def test_a_disk_that_takes_no_writes_any_more_costs_records_and_no_answer(
    tmp_path: Path, append: str
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of(append=append))
        opened.add(blob_of(1))
        await opened.have_outcomes(1)
        current = opened.spool._current
        assert current is not None
        make_read_only(current.descriptor)
        opened.add(blob_of(2))
        outcomes = await opened.have_outcomes(2)
        opened.add(blob_of(3))
        await opened.have_outcomes(3)
        assert outcomes == [None, DropReason.WRITE_ERROR, None]
        assert opened.numbers() == [1, 3]
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.numbers() == [1, 3]
        await again.spool.close()

    asyncio.run(scenario())


def test_a_block_forgotten_in_part_is_recovered_in_that_part(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(*map(blob_of, range(10)))
        opened.ship_all()
        assert opened.spool.rewind(opened.live, EntryId(NOW_MS, 3)) == 6
        await opened.spool.housekeeping(NOW_MS)
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await opened.spool.close()
        again = Opened(crashed, worker="w@2")
        assert again.recovery.records == {again.live: 6}
        assert again.spool.spooled(again.live) == 6
        await again.spool.close()

    asyncio.run(scenario())


def test_an_intent_completed_after_a_start_without_room_is_completed_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.append(Group(BlockKind.INTENT, opened.live, [blob_of(1)], 7))
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await opened.spool.close()
        full = Opened(crashed, config_of(spool={"min_free_bytes": 1 << 60}), worker="w@2")
        (handed,) = full.recovery.intents
        await full.spool.close()
        again = Opened(crashed, worker="w@3")  # there is room, and it is completed at once
        assert again.numbers() == [1]
        again.append(handed)  # as a process that found none at its start does
        again.ship_all()
        await again.spool.close()
        last = Opened(crashed, worker="w@4")
        assert last.recovery.records == {}
        await last.spool.close()

    asyncio.run(scenario())


def test_what_was_handed_over_and_written_later_settles_its_intent(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.append(Group(BlockKind.INTENT, opened.live, [blob_of(1)], 7))
        await opened.spool.close()
        full = Opened(tmp_path / "r", config_of(spool={"min_free_bytes": 1 << 60}), worker="w@2")
        (handed,) = full.recovery.intents
        full.spool._supply._room._min_free_bytes = 0  # somebody made room
        await full.spool.housekeeping(NOW_MS)
        full.append(handed)
        assert full.outcomes == [None]
        full.ship_all()
        await full.spool.close()
        again = Opened(tmp_path / "r", worker="w@3")
        assert again.numbers() == []
        assert again.recovery.records == {}
        await again.spool.close()

    asyncio.run(scenario())


def test_an_intent_whose_record_was_dropped_pins_no_segment(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = {"retain_s": 0, "retain_bytes": 0, "max_bytes": 4 * 65_536}
        opened = Opened(tmp_path / "r", config_of(spool=limits))
        opened.append(Group(BlockKind.INTENT, opened.live, [blob_of(5_000)], 1))
        opened.fill(400)
        assert opened.outcomes[-1] is DropReason.SPOOL_CAP
        opened.add(blob_of(5_000, 1_000), ref=1)
        assert opened.outcomes[-1] is DropReason.SPOOL_CAP
        opened.ship_all()
        await opened.spool.housekeeping(NOW_MS + 1_000)
        assert len(opened.segments) <= 1
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_life_is_named_by_its_intents_and_its_audits_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        audits = opened.spool.stream("digits", StreamKind.AUDIT)
        told = LoggedAudit(
            schema=SCHEMA,
            worker="w@0",
            ts_us=NOW_MS * 1_000,
            name="digits",
            kinds={"live": AuditCounts(sequence=12), "of a later version": AuditCounts()},
        )
        opened.add(encode_logged(told), stream=audits)
        opened.append(Group(BlockKind.INTENT, opened.live, [prediction(5)], 1))
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await opened.spool.close()
        again = Opened(crashed, worker="w@2")
        expected = [EndedLife("w@0", {LIVE: 12}), EndedLife("w@1", {LIVE: 5})]
        assert sorted(again.recovery.ended, key=lambda life: life.worker) == expected
        await again.spool.close()

    asyncio.run(scenario())


def test_an_offset_file_under_way_does_not_spoil_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The housekeeping is cancelled while its thread writes, and the spool is closed."""
    begun, may_go_on = threading.Event(), threading.Event()

    def slow(directory: Path, offsets: Offsets, *, is_synced: bool = False) -> None:
        if not is_synced:
            begun.set()
            assert may_go_on.wait(5)
        save(directory, offsets, is_synced=is_synced)

    async def scenario(config: PredictionLogConfig) -> None:
        opened = Opened(tmp_path / "r", config)
        opened.fill(3)
        monkeypatch.setattr(spool_module, "save", slow)
        housekeeping = asyncio.create_task(opened.spool.housekeeping(NOW_MS))
        await asyncio.to_thread(begun.wait, 5)
        housekeeping.cancel()
        await asyncio.wait({housekeeping})
        opened.ship_all()
        closing = asyncio.create_task(opened.spool.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        may_go_on.set()
        await closing
        offsets = load(tmp_path / "r")
        assert offsets is not None
        assert offsets.position == opened.spool.shipped

    asyncio.run(scenario(config_of()))


def test_what_an_earlier_process_may_have_sent_is_not_dropped_before_it_is_sent_again(
    tmp_path: Path,
) -> None:
    """Its answer never came: to count it as lost might be wrong."""

    async def scenario() -> None:
        limits = {"max_bytes": 4 * 65_536}
        opened = Opened(tmp_path / "r", config_of(spool=limits))
        opened.fill(180)
        await opened.spool.close()
        config = config_of(spool=limits, on_full="drop_oldest_segment")
        again = Opened(tmp_path / "r", config, worker="w@2")
        in_hand = again.numbers()[:10]
        fresh = Opened(copy_of(tmp_path / "r", tmp_path / "copy"), config, worker="w@3")
        fresh.fill(200, first=1_000)
        assert sum(lost.records for lost in fresh.lost) > 0
        assert fresh.numbers()[:10] == in_hand == list(range(10))
        await again.spool.close()
        await fresh.spool.close()

    asyncio.run(scenario())
