"""Shipping into streams that somebody else wrote, or that a clock of another day numbered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import EntryId
from tests.support.redis import redis_binaries, running_redis
from tests.support.shipping import (
    KEY,
    START_MS,
    Setting,
    numbers,
    running,
    settings,
    standing,
)

pytestmark = pytest.mark.redis


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every server that this machine has: 6.2 and what is on PATH word their errors differently."""
    with running_redis(request.param) as running_server:
        yield running_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r for r in caplog.records if r.levelno >= logging.WARNING]
    return [r.message for r in found if "spool" not in r.name]


def test_records_whose_ids_another_writer_has_overtaken_get_new_ones(
    server: RedisServer, client: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, clock_ms=lambda: START_MS)
        async with running(setting) as rig:
            rig.offer(1)  # takes START-0
            await rig.until_shipped()
            client.xadd(KEY, {"r": b"foreign"}, id=f"{START_MS}-4")
            rig.offer(9)  # is given START-1 to START-9, of which the first four are refused
            await rig.until_shipped()
            client.xadd(KEY, {"r": b"foreign"}, id=f"{START_MS + 1_000}-0")
            rig.offer(5)  # is refused as a whole
            await rig.until_shipped()
            assert (rig.shipped, rig.statistics.collisions) == (15, 9)
            assert rig.statistics.duplicates == 0

    asyncio.run(scenario())
    client.xdel(KEY, f"{START_MS}-4", f"{START_MS + 1_000}-0")
    assert numbers(client) == [1, *range(6, 11), *range(2, 6), *range(11, 16)]
    assert warnings(caplog) == ["another writer used this replica's stream"]


def test_overtaken_records_for_which_the_spool_has_no_room_are_counted_as_lost(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    client.xadd(KEY, {"r": b"foreign"}, id=f"{START_MS + 1}-0")

    async def scenario() -> None:
        config = settings(durability="memory", buffer_records=20)
        setting = Setting(server.url, tmp_path, config, clock_ms=lambda: START_MS)
        async with running(setting) as rig:
            rig.offer(20)
            await rig.until_shipped()
            assert rig.ledger.drops == {DropReason.QUEUE_RECORDS: 20}
            rig.offer(3)
            await rig.until_shipped()
            assert rig.shipped == 3

    asyncio.run(scenario())
    assert len(standing(client)) == 4


def test_a_stream_that_kept_half_a_block_gets_the_other_half_again(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, clock_ms=lambda: START_MS)
        async with running(setting) as rig:
            rig.offer(10)
            await rig.until_shipped()
            kept = standing(client)[:4]
            client.delete(KEY)
            for entry_id, blob in kept:
                client.xadd(KEY, {"r": blob}, id=str(entry_id))
            rig.offer(2)
            await rig.until_shipped()
            assert rig.statistics.rewound == 6
            assert rig.statistics.duplicates == 4
            assert rig.shipped == rig.expected == 12

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 13))


def test_a_stream_that_somebody_numbered_beyond_reason_costs_only_its_own_records(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    """Its next ids cannot be told apart by the script: asking for ever would help nobody."""
    client.xadd(KEY, {"r": b"foreign"}, id="1800000000000000001-5")

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(3)
            rig.offer(2, name="faces")
            await rig.until_shipped()
            assert rig.shipped == 2
            assert rig.ledger.drops == {DropReason.REFUSED: 3}

    asyncio.run(scenario())
    assert numbers(client, "pl:{faces}:gw-1") == [4, 5]


def test_ids_go_on_above_those_of_an_earlier_life_whose_clock_was_ahead(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    ahead = "9000000000000-5"
    client.xadd(KEY, {"r": b"\x010"}, id=ahead)

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(3)
            await rig.until_shipped()
            rig.offer(3)
            await rig.until_shipped()
            assert rig.statistics.collisions == 3, "the first had their ids already"

    asyncio.run(scenario())
    expected = [EntryId(9_000_000_000_000, n) for n in range(5, 12)]
    assert [entry_id for entry_id, _ in standing(client)] == expected
    assert numbers(client) == list(range(7))


def test_a_clock_that_is_set_back_costs_no_record(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    now_ms = START_MS

    async def scenario() -> None:
        nonlocal now_ms
        async with running(Setting(server.url, tmp_path, clock_ms=lambda: now_ms)) as rig:
            rig.offer(3)
            await rig.until_shipped()
            now_ms -= 3_600_000
            rig.offer(3)
            await rig.until_shipped()
            assert rig.statistics.collisions == 0

    asyncio.run(scenario())
    ids = [entry_id for entry_id, _ in standing(client)]
    assert ids == [EntryId(START_MS, n) for n in range(6)]
    assert numbers(client) == [1, 2, 3, 4, 5, 6]
