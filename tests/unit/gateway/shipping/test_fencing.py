"""Two gateways with one replica's name, and gateways that take over from one that is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.shipping import fencing
from gateway.prediction_log.shipping.hooks import Hooks
from gateway.prediction_log.streams import EntryId
from tests.support.redis import running_redis
from tests.support.shipping import (
    KEY,
    OWNER,
    START_MS,
    Setting,
    beat,
    numbers,
    running,
    settings,
    standing,
)

pytestmark = pytest.mark.redis
LOUD = "another gateway writes under this replica's name: records are not shipped"


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    with running_redis() as running_server:
        yield running_server


@pytest.fixture
def server(module_server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(module_server.url) as client:
        client.flushall()
    return module_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.prediction_log.shipping.shipper.FENCED_RETRY_S", 0.02)
    monkeypatch.setattr("gateway.prediction_log.shipping.shipper.TICK_S", 0.01)


def owner(client: redis.Redis) -> str:
    return beat(client)[0]


def test_the_second_gateway_of_a_name_does_not_ship_and_says_so(
    server: RedisServer, client: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        ticks += 1

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path / "first")) as first:
            first.offer(10)
            await first.until_shipped()
            hooks = Hooks(on_tick=tick)
            async with running(Setting(server.url, tmp_path / "second", hooks=hooks)) as second:
                second.offered = 1_000
                second.offer(7)
                await second.until(lambda: second.statistics.is_fenced)
                first.offer(5)
                await first.until_shipped()
                assert second.spooled == 7
                await second.until(lambda: ticks > 2)  # erasures reach a spool that is held back
                assert second.statistics.is_sink_up
                assert not first.statistics.is_fenced
                assert owner(client) == first.store.token
                assert numbers(client) == list(range(1, 16))

    asyncio.run(scenario())
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [LOUD]


def test_what_was_held_back_goes_when_the_other_gateway_stops(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    """The records have lower ids than the stream by then, and get new ones."""

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path / "second")) as second:
            async with running(Setting(server.url, tmp_path / "first")) as first:
                first.offer(10)
                await first.until_shipped()
                second.offered = 1_000
                second.offer(7)
                await second.until(lambda: second.statistics.is_fenced)
                first.offer(5)
                await first.until_shipped()
            await second.until_shipped()
            assert owner(client) == second.store.token
            assert second.statistics.collisions == 7
            assert not second.statistics.is_fenced
            second.offer(3)
            await second.until_shipped()
            assert second.shipped == second.expected == 10

    asyncio.run(scenario())
    assert numbers(client) == [*range(1, 16), *range(1_001, 1_011)]
    assert not client.exists(OWNER), "a clean end gives the name up"


def test_a_silent_owner_is_followed_and_ids_go_on_above_its_own(
    server: RedisServer,
    client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Our clock is behind that of the gateway that is gone."""
    seconds, _ = client.time()
    client.set(OWNER, f"somebody:{(seconds - 15) * 1000}")
    client.xadd(KEY, {"r": b"\x010"}, id=f"{START_MS + 5_000}-2")

    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, clock_ms=lambda: START_MS)
        async with running(setting) as rig:
            rig.offer(4)
            await rig.until(lambda: rig.statistics.is_fenced)
            monkeypatch.setattr(fencing, "STALE_MS", 10_000)
            await rig.until_shipped()
            assert rig.statistics.collisions == 4
            rig.offer(2)
            await rig.until_shipped()
            assert rig.statistics.collisions == 4
            assert rig.shipped == 6

    asyncio.run(scenario())
    found = standing(client)
    ids = [entry_id for entry_id, _ in found]
    assert ids == [EntryId(START_MS + 5_000, n) for n in range(2, 9)]
    assert numbers(client) == list(range(7))
    assert "took over the streams of a gateway that is gone" in caplog.text


def test_an_owner_that_was_taken_over_stops_at_once(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(4)
            await rig.until_shipped()
            seconds, _ = client.time()
            client.set(OWNER, f"successor:{seconds * 1000}")
            rig.offer(3)
            await rig.until(lambda: rig.statistics.is_fenced)
            assert rig.spooled == 3
            client.delete(OWNER)
            await rig.until_shipped()

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 8))


def test_an_idle_owner_gives_signs_of_life(
    server: RedisServer, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prediction_log.shipping.upkeep.BEAT_S", 0.02)
    monkeypatch.setattr("gateway.prediction_log.shipping.shipper.TICK_S", 0.01)

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(4)
            await rig.until_shipped()
            before = client.get(OWNER)
            await rig.until(lambda: client.get(OWNER) != before)
            assert owner(client) == rig.store.token
            client.flushall()  # noticed without anything to ship
            await rig.until(lambda: client.xlen(KEY) == 4)

    asyncio.run(scenario())
    assert numbers(client) == [1, 2, 3, 4]


def test_a_gateway_goes_on_with_its_own_spool_after_a_crash_without_waiting(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            token = rig.store.token
            rig.offer(4)
            await rig.until_shipped()
        # As a crash leaves it: the name is still taken.
        seconds, _ = client.time()
        client.set(OWNER, f"{token}:{seconds * 1000}")
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offered = 4
            rig.offer(4)
            await rig.until_shipped()
            assert not rig.statistics.is_fenced

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 9))


def test_a_memory_store_s_successor_is_told_apart_from_it_by_nothing_but_the_folder(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    config = settings(durability="memory")

    async def scenario(folder: str) -> bool:
        setting = Setting(server.url, tmp_path / folder, config)
        async with running(setting, close_s=0.05) as rig:
            rig.offer(4)
            await rig.until(lambda: rig.statistics.is_fenced or not rig.spooled)
            seconds, _ = client.time()
            client.set(OWNER, f"{rig.store.token}:{seconds * 1000}")
            fenced = rig.statistics.is_fenced
        client.set(OWNER, f"{rig.store.token}:{seconds * 1000}")
        return fenced

    assert asyncio.run(scenario("one")) is False
    assert asyncio.run(scenario("one")) is False
    assert asyncio.run(scenario("two")) is True
