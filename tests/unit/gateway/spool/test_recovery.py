"""What a start finds: intents, lives without a last word, spools that nobody ships."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.prediction_log.spool.block import BlockKind
from gateway.prediction_log.spool.orphans import Orphan, orphans
from gateway.prediction_log.spool.recovery import EndedLife
from gateway.prediction_log.spool.store import DropReason, Group
from gateway.prediction_log.streams import StreamKind
from tests.support.spools import (
    NOW_MS,
    Opened,
    blob_of,
    config_of,
    copy_of,
    final_audit,
    label,
    prediction,
    read_all,
)


def intent(opened: Opened, number: int, ref: int) -> None:
    opened.append(Group(BlockKind.INTENT, opened.live, [blob_of(number)], ref))


def test_an_intent_without_its_record_is_completed_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        intent(opened, 1, ref=1)
        intent(opened, 2, ref=2)
        opened.add(blob_of(20), ref=2)
        intent(opened, 3, ref=3)
        assert opened.spool.spooled(opened.live) == 1
        assert opened.numbers() == [20]
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await opened.spool.close()
        for life in range(3):
            again = Opened(crashed, worker=f"w@{life + 2}")
            assert again.recovery.records == {again.live: 3}
            assert again.recovery.intents == []
            assert again.numbers() == [20, 1, 3]
            assert again.spool.spooled(again.live) == 3
            await again.spool.close()

    asyncio.run(scenario())


def test_the_same_ref_in_another_life_settles_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Opened(tmp_path / "r", worker="w@1")
        intent(first, 1, ref=1)
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await first.spool.close()
        second = Opened(crashed, worker="w@2")
        intent(second, 2, ref=1)
        second.add(blob_of(3), ref=1)
        await second.spool.close()
        third = Opened(crashed, worker="w@3")
        assert third.numbers() == [1, 3]
        await third.spool.close()

    asyncio.run(scenario())


def test_intents_without_room_are_handed_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        intent(opened, 1, ref=1)
        await opened.spool.close()
        config = config_of(spool={"min_free_bytes": 1 << 60})
        again = Opened(tmp_path / "r", config, worker="w@2")
        (group,) = again.recovery.intents
        assert (group.stream, group.blobs) == (again.live, [blob_of(1)])
        assert again.recovery.records == {}
        again.add(blob_of(1))
        assert again.outcomes == [DropReason.DISK_FULL]
        await again.spool.close()

    asyncio.run(scenario())


def test_a_segment_with_an_open_intent_is_not_retired(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r", config_of(spool={"retain_s": 0, "retain_bytes": 0}))
        intent(opened, 5_000, ref=1)
        opened.fill(150)
        opened.ship_all()
        await opened.spool.housekeeping(NOW_MS + 1_000)
        assert len(opened.segments) > 2
        opened.add(blob_of(5_000), ref=1)
        opened.ship_all()
        await opened.spool.housekeeping(NOW_MS + 2_000)
        assert len(opened.segments) == 1
        await opened.spool.close()

    asyncio.run(scenario())


def test_a_life_that_ended_without_its_audits_is_named_with_its_last_numbers(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        spool = opened.spool
        shadow = spool.stream("digits", StreamKind.SHADOW)
        labels = spool.stream("other", StreamKind.LABELS)
        for seq in range(1, 200):
            opened.add(prediction(seq))
        opened.add(prediction(9), prediction(12), prediction(11), stream=shadow)
        opened.add(label(4, name="other"), stream=labels)
        opened.ship_all()
        await opened.spool.housekeeping(NOW_MS)
        crashed = copy_of(tmp_path / "r", tmp_path / "crashed")
        await opened.spool.close()
        again = Opened(crashed, worker="w@2")
        assert again.recovery.ended == [
            EndedLife(
                "w@1",
                {
                    ("digits", StreamKind.LIVE): 199,
                    ("digits", StreamKind.SHADOW): 12,
                    ("other", StreamKind.LABELS): 4,
                },
            )
        ]
        audits = again.spool.stream("digits", StreamKind.AUDIT)
        again.add(final_audit("w@1"), stream=audits)
        again.add(prediction(7, worker="w@2"), final_audit("w@2"), stream=again.live)
        await again.spool.close()
        third = Opened(crashed, worker="w@3")
        assert third.recovery.ended == [
            EndedLife("w@1", {("other", StreamKind.LABELS): 4}),
            EndedLife("w@2", {("digits", StreamKind.LIVE): 7}),  # its audit stood elsewhere
        ]
        await third.spool.close()

    asyncio.run(scenario())


def test_a_life_that_wrote_its_final_audits_is_not_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(prediction(1), prediction(2))
        opened.add(final_audit(), stream=opened.spool.stream("digits", StreamKind.AUDIT))
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@2")
        assert again.recovery.ended == []
        assert sum(again.recovery.records.values()) == 3
        await again.spool.close()

    asyncio.run(scenario())


def test_keys_that_are_not_shipped_are_read_again_in_their_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        opened = Opened(tmp_path / "r")
        opened.add(blob_of(1))
        opened.append(Group(BlockKind.KEY, 0, [b"key"]))
        opened.add(blob_of(2))
        await opened.spool.close()
        again = Opened(tmp_path / "r", worker="w@2")
        kinds = [block.kind for block in again.blocks()]
        assert kinds == [BlockKind.RECORDS, BlockKind.KEY, BlockKind.RECORDS]
        assert read_all(again.spool, again.spool.shipped)[1] == {}
        await again.spool.close()

    asyncio.run(scenario())


def test_orphans_are_the_unlocked_folders_of_others_that_hold_records(tmp_path: Path) -> None:
    async def scenario() -> None:
        left = Opened(tmp_path / "left")
        left.fill(5)
        left.ship(2)
        await left.spool.close()
        shipped = Opened(tmp_path / "shipped")
        shipped.fill(5)
        shipped.ship_all()
        await shipped.spool.close()
        running = Opened(tmp_path / "running")
        running.fill(5)
        mine = Opened(tmp_path / "mine")
        mine.fill(5)
        await mine.spool.close()
        (tmp_path / "empty").mkdir()
        (tmp_path / "a file").touch()
        assert orphans(tmp_path, "mine") == [Orphan("left", 3)]
        await running.spool.close()
        assert orphans(tmp_path, "mine") == [Orphan("left", 3), Orphan("running", 5)]
        assert orphans(tmp_path / "nowhere", "mine") == []

    asyncio.run(scenario())
