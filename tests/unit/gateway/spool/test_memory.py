"""The store in memory: the same interface, bounded, gone at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.prediction_log.spool.block import START, BlockKind
from gateway.prediction_log.spool.lock import SpoolInUse
from gateway.prediction_log.spool.memory import MemoryStore
from gateway.prediction_log.spool.opening import open_store
from gateway.prediction_log.spool.store import DropReason, Group, Lost
from gateway.prediction_log.streams import EntryId, StreamKind
from gateway.prediction_log_config import PredictionLogConfig
from tests.support.spools import NOW_MS, Opened, blob_of, config_of, number_in, read_all, ship


class Kept:
    """A memory store with what became of its appends."""

    def __init__(self, config: PredictionLogConfig | None = None) -> None:
        self.store = MemoryStore(config or config_of(durability="memory"), token="t")
        self.live = self.store.stream("digits", StreamKind.LIVE)
        self.outcomes: list[DropReason | None] = []
        self.lost: list[Lost] = []
        self.store.on_lost = self.lost.append

    def fill(self, count: int, *, first: int = 0, kind: BlockKind = BlockKind.RECORDS) -> None:
        for number in range(first, first + count):
            group = Group(kind, self.live, [blob_of(number)])
            self.store.append([group], NOW_MS, self.outcomes.append)

    def numbers(self) -> list[int]:
        blocks, _ = read_all(self.store, self.store.shipped)
        return [number_in(blob) for block in blocks for blob in block.blobs()]


def test_records_are_read_shipped_and_let_go() -> None:
    kept = Kept()
    kept.fill(5)
    assert kept.outcomes == [None] * 5
    assert kept.numbers() == list(range(5))
    assert kept.store.oldest_unshipped_ms == NOW_MS
    assert ship(kept.store, 2) == {kept.live: 2}
    assert kept.numbers() == [2, 3, 4]
    assert kept.store.last_shipped(kept.live) == EntryId(NOW_MS, 1)
    ship(kept.store)
    assert kept.store.spooled(kept.live) == kept.store.spooled_bytes == 0
    assert kept.store.oldest_unshipped_ms == 0
    assert kept.store.rewind(kept.live, EntryId(0, 0)) == 0


def test_over_its_limit_new_records_are_dropped() -> None:
    kept = Kept(config_of(durability="memory", buffer_records=3))
    kept.fill(5)
    assert kept.outcomes == [None] * 3 + [DropReason.QUEUE_RECORDS] * 2
    ship(kept.store, 1)
    kept.fill(1, first=9)
    assert kept.numbers() == [1, 2, 9]
    small = Kept(config_of(durability="memory", buffer_bytes=200))
    small.fill(5)
    assert small.outcomes[-1] is DropReason.QUEUE_BYTES


def test_the_oldest_are_dropped_but_not_those_in_somebodys_hands() -> None:
    config = config_of(durability="memory", buffer_records=4, on_full="drop_oldest_segment")
    kept = Kept(config)
    kept.fill(4)
    chunk = kept.store.read(kept.store.shipped, max_bytes=1, max_records=1)
    kept.fill(2, first=4)
    assert kept.lost == [Lost(kept.live, 1, DropReason.OLDEST_SEGMENT)] * 2
    kept.store.mark_shipped(chunk.next, {kept.live: 1}, {})
    assert kept.numbers() == [3, 4, 5]
    assert kept.store.spooled(kept.live) == 3
    ship(kept.store)
    assert kept.store.spooled(kept.live) == kept.store.spooled_bytes == 0


def test_blocked_appends_wait_for_room() -> None:
    async def scenario() -> None:
        config = config_of(
            durability="memory", buffer_records=2, on_full="block", block_max_ms=5_000
        )
        kept = Kept(config)
        kept.fill(3)
        assert kept.outcomes == [None, None]
        told = asyncio.Event()
        kept.store.on_append = told.set
        ship(kept.store)
        async with asyncio.timeout(10):
            await told.wait()
        assert kept.outcomes == [None] * 3
        assert kept.numbers() == [2]

    asyncio.run(scenario())


def test_intents_are_not_kept_and_needles_are_erased() -> None:
    kept = Kept()
    kept.fill(1, kind=BlockKind.INTENT)
    kept.fill(3)
    count, erased = kept.store.erase([(1).to_bytes(8, "big")])
    assert (count, [one.blob for one in erased]) == (1, [blob_of(1)])
    blocks, _ = read_all(kept.store, START)
    assert [b.blobs() for b in blocks] == [[blob_of(0)], [bytes(40)], [blob_of(2)]]


def test_what_is_left_at_the_end_is_lost_and_counted() -> None:
    async def scenario() -> None:
        kept = Kept()
        kept.fill(3)
        ship(kept.store, 1)
        await kept.store.close()
        assert kept.lost == [Lost(kept.live, 2, DropReason.SHUTDOWN)]
        kept.fill(1)
        assert kept.outcomes[-1] is DropReason.SHUTDOWN
        assert kept.store.spooled(kept.live) == 0

    asyncio.run(scenario())


def test_opening_one_takes_the_lock_and_keeps_the_identity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        on_disk = Opened(tmp_path / "r")
        on_disk.fill(3)
        token = on_disk.spool.token
        await on_disk.spool.close()
        config = config_of(durability="memory")
        store, recovery = open_store(config, tmp_path / "r", worker="w", now_ms=NOW_MS)
        assert store.token == token
        assert recovery.records == {}
        assert "not shipped with durability memory" in caplog.text
        with pytest.raises(SpoolInUse):
            open_store(config_of(), tmp_path / "r", worker="w", now_ms=NOW_MS)
        await store.close()
        again, found = open_store(config_of(), tmp_path / "r", worker="w@2", now_ms=NOW_MS)
        assert found.records == {1: 3}
        await again.close()

    asyncio.run(scenario())
