"""The way of ordinary records, and what the shipper does besides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.streams import NAMES_KEY, StreamKind, streams_key
from tests.support.redis import running_redis
from tests.support.shipping import KEY, Setting, numbers, running, settings

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def server(module_server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(module_server.url) as client:
        client.flushall()
        client.config_resetstat()
    return module_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


@pytest.mark.parametrize("durability", ["memory", "process", "disk"])
def test_records_come_to_their_streams_in_order_and_once(
    server: RedisServer, client: redis.Redis, tmp_path: Path, durability: str
) -> None:
    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, settings(durability=durability))
        async with running(setting) as rig:
            for _ in range(100):
                rig.offer(7)
                rig.offer(3, name="faces")
                rig.offer(1, kind=StreamKind.SHADOW)
            await rig.until_shipped()
            assert rig.shipped == 1_100
            assert rig.turns > 10
            assert rig.statistics.duplicates == rig.statistics.collisions == 0

    asyncio.run(scenario())
    streams = [KEY, "pl:{faces}:gw-1", "pl:{digits}:shadow:gw-1"]
    found = [numbers(client, key) for key in streams]
    assert [len(each) for each in found] == [700, 300, 100]
    assert all(each == sorted(each) for each in found)
    assert sorted(n for each in found for n in each) == list(range(1, 1_101))
    assert client.smembers(NAMES_KEY) == {b"digits", b"faces"}
    assert client.smembers(streams_key("digits", StreamKind.SHADOW)) == {streams[2].encode()}
