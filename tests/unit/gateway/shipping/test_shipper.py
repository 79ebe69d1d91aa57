"""The way of ordinary records, and what the shipper does besides."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.shipping.hooks import Hooks
from gateway.prediction_log.spool.block import BlockKind
from gateway.prediction_log.spool.store import DropReason, Group
from gateway.prediction_log.streams import NAMES_KEY, StreamKind, schema_key, streams_key
from tests.support.redis import running_redis
from tests.support.shipping import (
    KEY,
    OWNER,
    Rig,
    Setting,
    calls,
    numbers,
    running,
    settings,
    standing,
)

pytestmark = pytest.mark.redis
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    with running_redis() as running_server:
        yield running_server


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


def keep_key(rig: Rig, blob: bytes) -> None:
    """Append a KEY block."""
    group = Group(BlockKind.KEY, 0, [blob])
    rig.store.append([group], rig.clock_ms(), lambda reason: None)


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


def test_audits_stand_among_the_live_records_and_are_counted_apart(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            for _ in range(3):
                rig.offer(4)
                rig.offer(1, kind=StreamKind.AUDIT)
            await rig.until_shipped()
            live, audit = (rig.store.stream("digits", k) for k in ("live", "audit"))  # type: ignore[arg-type]
            assert (rig.ledger.counted[live], rig.ledger.counted[audit]) == (12, 3)
            client.flushall()
            rig.offer(1, kind=StreamKind.AUDIT)
            await rig.until_shipped()
            assert rig.statistics.rewound == 15

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 17))
    assert client.smembers(streams_key("digits", StreamKind.AUDIT)) == {KEY.encode()}


def test_a_round_is_one_call_per_stream_however_many_batches_it_has(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        config = settings(batch_records=200, linger_ms=300)
        async with running(Setting(server.url, tmp_path, config)) as rig:
            rig.offer(6)
            rig.offer(6, name="faces")
            await rig.until_shipped()
            assert rig.statistics.batches == 2
            for _ in range(32):
                rig.offer(6)
                rig.offer(6, name="faces")
            await rig.until_shipped()
            assert rig.statistics.batches == 6, "200 records at once, and what was left of them"

    asyncio.run(scenario())
    assert calls(client, "xadd") == 396


def test_a_few_records_wait_for_others_and_not_for_longer_than_they_may(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        config = settings(linger_ms=200)
        async with running(Setting(server.url, tmp_path, config)) as rig:
            await rig.until(lambda: rig.statistics.is_sink_up)
            rig.offer(1)
            began_s = loop.time()
            rig.offer(1)
            await rig.until_shipped()
            assert rig.statistics.batches == 1
            return loop.time() - began_s

    assert 0.15 < asyncio.run(scenario()) < 1.0


def test_what_a_stopped_redis_did_not_get_is_sent_by_the_next_start(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(NOWHERE, tmp_path), close_s=0.05) as rig:
            rig.offer(500)
            await rig.until(lambda: bool(rig.statistics.last_error))
        assert rig.spooled == 500
        async with running(Setting(server.url, tmp_path)) as rig:
            await rig.until_shipped()
            assert rig.shipped == rig.expected == 500

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 501))


def test_closing_ships_what_is_left_and_gives_the_name_up(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        config = settings(linger_ms=60_000, batch_records=512)
        async with running(Setting(server.url, tmp_path, config)) as rig:
            rig.offer(300)
        await rig.shipper.close(1)
        assert rig.shipped == 300

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 301))
    assert not client.exists(OWNER)


def test_close_waits_for_a_redis_that_comes_back_in_time(
    tmp_path: Path, server: RedisServer
) -> None:
    async def scenario(mortal: RedisServer) -> None:
        async with running(Setting(mortal.url, tmp_path)) as rig:
            rig.offer(1)
            await rig.until_shipped()
            mortal.kill()
            rig.offer(20)
            await rig.until_down()
            closing = asyncio.create_task(rig.shipper.close(10))
            await asyncio.to_thread(mortal.start)
            await closing
            assert rig.shipped == 21

    with running_redis() as mortal:
        asyncio.run(scenario(mortal))
        with redis.Redis.from_url(mortal.url) as client:
            assert numbers(client) == list(range(1, 22))


def test_sealing_keys_come_before_the_records_behind_them_and_hold_them_back(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    is_broken = True
    seen: list[tuple[bytes, int]] = []

    async def keep(blobs: list[bytes]) -> None:
        if is_broken:
            raise OSError("the keys' own Redis is away")
        seen.extend((blob, client.xlen(KEY)) for blob in blobs)

    async def scenario() -> None:
        nonlocal is_broken
        setting = Setting(server.url, tmp_path, hooks=Hooks(on_keys=keep))
        async with running(setting) as rig:
            keep_key(rig, b"key 1")
            rig.offer(3)
            await rig.until(lambda: "away" in rig.statistics.last_error)
            assert rig.spooled == 3
            is_broken = False
            await rig.until_shipped()
            keep_key(rig, b"\0\0\0\0\0")  # erased
            keep_key(rig, b"key 2")
            rig.offer(1)
            await rig.until_shipped()
            client.flushall()
            rig.offer(1)
            await rig.until_shipped()

    asyncio.run(scenario())
    assert seen[:2] == [(b"key 1", 0), (b"key 2", 3)]
    assert (b"key 1", 0) in seen[2:], "who forgot the records forgot the keys"
    assert numbers(client) == [1, 2, 3, 4, 5]


def test_nothing_is_sent_before_the_hook_of_a_new_connection_has_succeeded(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    seen: list[int] = []

    async def connected() -> None:
        seen.append(client.xlen(KEY))
        if len(seen) == 1:
            raise RuntimeError("not yet")

    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, hooks=Hooks(on_connected=connected))
        async with running(setting) as rig:
            rig.offer(3)
            await rig.until_shipped()
            assert "not yet" in rig.statistics.last_error

    asyncio.run(scenario())
    assert seen == [0, 0]


def test_column_names_are_written_when_a_stream_is_first_met(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    def schemas(name: str) -> dict[bytes, bytes]:
        return {b"digest": b'["age"]'} if name == "digits" else {}

    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, hooks=Hooks(schemas=schemas))
        async with running(setting) as rig:
            rig.offer(1)
            rig.offer(1, name="faces")
            await rig.until_shipped()

    asyncio.run(scenario())
    assert client.hgetall(schema_key("digits")) == {b"digest": b'["age"]'}
    assert not client.exists(schema_key("faces"))


def test_an_exclusive_job_sees_nothing_under_way_and_erased_records_stay_away(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path, settings(linger_ms=60_000))) as rig:
            await rig.until(lambda: rig.statistics.is_sink_up)
            rig.put([b"\x011", b"\x01subject-7 1", b"\x012"])
            count, erased = await rig.shipper.exclusive(lambda: rig.store.erase([b"subject-7"]))
            assert (count, [one.blob for one in erased]) == (1, [b"\x01subject-7 1"])
        assert rig.shipped == 3

    asyncio.run(scenario())
    assert numbers(client) == [1, 2]


def test_the_tick_s_hook_comes_again_and_again(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prediction_log.shipping.shipper.TICK_S", 0.01)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        ticks += 1

    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, hooks=Hooks(on_tick=tick))
        async with running(setting) as rig:
            await rig.until(lambda: ticks > 3)

    asyncio.run(scenario())


def test_a_replay_is_paced_and_what_is_new_is_not(
    server: RedisServer, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prediction_log.shipping.pacing.FLOOR_PER_S", 4_000.0)

    async def scenario() -> float:
        setting = Setting(NOWHERE, tmp_path, clock_ms=lambda: 1_600_000_000_000)
        async with running(setting, close_s=0) as rig:
            for _ in range(300):
                rig.offer(10)
        loop = asyncio.get_running_loop()
        async with running(Setting(server.url, tmp_path)) as rig:
            await rig.until(lambda: rig.shipped > 0)
            began_s = loop.time()
            await rig.until_shipped()
            return loop.time() - began_s

    # 3,000 records at 4,000 per second, the first ones at once.
    elapsed_s = asyncio.run(scenario())
    assert 0.4 < elapsed_s < 20  # how much more is the machine's affair
    assert len(standing(client)) == 3_000


def test_a_spool_that_lost_a_segment_under_way_is_counted_once(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        config = settings(durability="memory", on_full="drop_oldest_segment", buffer_records=1_000)
        async with running(Setting(NOWHERE, tmp_path, config), close_s=0.05) as rig:
            for _ in range(150):
                rig.offer(10)
                await asyncio.sleep(0)
            assert rig.ledger.drops == {DropReason.OLDEST_SEGMENT: 500}
            assert rig.spooled == 1_000

    asyncio.run(scenario())


def test_an_exclusive_job_that_is_cancelled_is_waited_for(
    server: RedisServer, tmp_path: Path
) -> None:
    """Its thread uses the store, which is closed next."""
    began, may_end = threading.Event(), threading.Event()
    has_ended = False

    def job() -> None:
        nonlocal has_ended
        began.set()
        may_end.wait(10)
        has_ended = True

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            task = asyncio.create_task(rig.shipper.exclusive(job))
            await rig.until(began.is_set)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done()
            may_end.set()
            await asyncio.wait({task})
            assert task.cancelled()
            assert has_ended

    asyncio.run(scenario())


def test_a_swallowed_cancellation_does_not_keep_close_from_ending(
    server: RedisServer, tmp_path: Path
) -> None:
    """redis-py can lose one on Python 3.11; here the first of them is lost for sure."""

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        setting = Setting(server.url, tmp_path, hooks=Hooks(on_connected=stubborn))
        async with running(setting, close_s=0.05) as rig:
            rig.offer(3)
            await asyncio.sleep(0.05)
            began_s = loop.time()
            await rig.shipper.close(0.05)
            return loop.time() - began_s

    assert asyncio.run(scenario()) < 2
