"""What stands in a stream after a trim, and what its groups missed: compared with a plain count."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.shipping.retention import Retention, Trim
from gateway.prediction_log.shipping.sink import Appended, RedisSink, Target
from gateway.prediction_log.spool.block import BlockKind, make_block
from gateway.prediction_log.streams import (
    BEFORE_ALL,
    NAMES_KEY,
    EntryId,
    StreamKind,
    streams_key,
)
from gateway.prediction_log_config import RetentionConfig
from tests.support.redis import redis_binaries, running_redis
from tests.support.shipping import (
    KEY,
    OWNER,
    START_MS,
    Setting,
    group_read,
    running,
    settings,
    standing,
)

TARGET = Target(KEY, OWNER, "t")


@pytest.fixture(scope="module", params=redis_binaries(), ids=lambda binary: binary.source)
def module_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(request.param) as running_server:
        yield running_server


@pytest.fixture
def server(module_server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(module_server.url) as client:
        client.flushall()
        client.config_set("stream-node-max-entries", 7)
    return module_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def trim_to(
    *,
    keep_from_ms: int = 0,
    hold_from_ms: int = 0,
    entries: int = 10**9,
    is_exact: bool = False,
    groups: tuple[str, ...] = (),
) -> Trim:
    return Trim(keep_from_ms, hold_from_ms, entries, is_exact, groups)


def append(server: RedisServer, *calls: tuple[bytes, Trim]) -> list[Appended]:
    """Write blocks, each with a trim."""

    async def scenario() -> list[Appended]:
        sink = RedisSink(server.url, timeout_s=10)
        try:
            await sink.connect()
            await sink.claim(TARGET)
            answers = []
            for data, trim in calls:
                answer = await sink.append(TARGET, data, expected=BEFORE_ALL, trim=trim)
                assert isinstance(answer, Appended)
                answers.append(answer)
            return answers
        finally:
            await sink.close()

    return asyncio.run(scenario())


def trim(server: RedisServer, to: Trim) -> Appended:
    return append(server, (b"", to))[0]


def fill(client: redis.Redis, count: int, *, first_ms: int = 1) -> None:
    """Write one entry per millisecond."""
    pipeline = client.pipeline(transaction=False)
    for ms in range(first_ms, first_ms + count):
        pipeline.xadd(KEY, {"r": b"x"}, id=f"{ms}-0")
    pipeline.execute()


def times(client: redis.Redis) -> list[int]:
    return [entry_id.ms for entry_id, _ in standing(client)]


@pytest.mark.redis
def test_entries_that_are_too_old_go_by_nodes_or_to_the_entry(
    server: RedisServer, client: redis.Redis
) -> None:
    fill(client, 100)
    answer = trim(server, trim_to(keep_from_ms=60))
    left = times(client)
    assert 60 - 7 <= left[0] <= 60
    assert left == list(range(left[0], 101))
    assert (answer.removed, answer.length) == (100 - len(left), len(left))
    trim(server, trim_to(keep_from_ms=60, is_exact=True))
    assert times(client) == list(range(60, 101))


@pytest.mark.redis
def test_only_so_many_entries_stand_and_one_call_removes_only_so_many(
    server: RedisServer, client: redis.Redis
) -> None:
    fill(client, 12_000)
    answer = trim(server, trim_to(entries=50))
    assert 9_900 < answer.removed <= 10_000
    answer = trim(server, trim_to(entries=50))
    assert 50 <= answer.length < 57
    assert times(client)[-1] == 12_000


@pytest.mark.redis
def test_what_is_written_counts_when_it_is_trimmed(
    server: RedisServer, client: redis.Redis
) -> None:
    data = make_block(BlockKind.RECORDS, 1, EntryId(5, 0), [b"%d" % n for n in range(300)])
    (answer,) = append(server, (data, trim_to(entries=100)))
    assert (answer.added, answer.removed + answer.length) == (300, 300)
    assert 100 <= answer.length == len(times(client)) < 107


@pytest.mark.redis
@pytest.mark.parametrize("seed", range(6))
def test_what_groups_missed_is_counted_to_the_unit(
    server: RedisServer, client: redis.Redis, seed: int
) -> None:
    """Random reads, writes, deletions and trims; each trim is compared with a look before it."""
    draw = random.Random(seed)
    client.config_set("stream-node-max-entries", draw.choice([1, 3, 10, 100]))
    client.xgroup_create(KEY, "early", id="0", mkstream=True)
    groups, next_ms, missed = ["early"], 1, 0
    for step in range(25):
        count = draw.choice([0, 1, 5, 40, 200])
        fill(client, count, first_ms=next_ms)
        next_ms += count
        if draw.random() < 0.2:
            groups.append(f"g{step}")
            client.xgroup_create(KEY, groups[-1], id=draw.choice(["0", "$"]))
        for group in groups:
            if draw.random() < 0.6:
                wanted = draw.choice([1, 10, 150])
                group_read(client, group, wanted)
        before = times(client)
        for ms in draw.sample(before, min(3, len(before))):
            client.xdel(KEY, f"{ms}-0")
            before.remove(ms)
        slowest = min(
            EntryId.parse(found["last-delivered-id"]).ms for found in client.xinfo_groups(KEY)
        )
        to = trim_to(
            keep_from_ms=max(0, next_ms - draw.choice([10, 100, 300])),
            entries=draw.choice([20, 150, 10**6]),
            is_exact=draw.random() < 0.5,
        )
        answer = trim(server, to)
        left = set(times(client))
        gone = [ms for ms in before if ms not in left]
        assert answer.removed == len(gone)
        assert answer.unread == sum(ms > slowest for ms in gone), (to, slowest, gone)
        missed += answer.unread
    assert missed > 0, "a seed that trims nothing unread shows nothing"


@pytest.mark.redis
def test_a_respected_group_is_waited_for_and_not_for_ever(
    server: RedisServer, client: redis.Redis
) -> None:
    fill(client, 100)
    client.xgroup_create(KEY, "drift", id="30-0")
    client.xgroup_create(KEY, "other", id="10-0")
    held = trim_to(keep_from_ms=80, entries=10, hold_from_ms=20, is_exact=True, groups=("drift",))
    answer = trim(server, held)
    assert times(client) == list(range(31, 101))
    assert answer.unread == 20, "the other group had not read 11 to 30, and is not respected"
    later = held._replace(hold_from_ms=50)
    answer = trim(server, later)
    assert 50 <= times(client)[0] == 50
    assert answer.unread == 19
    client.xgroup_setid(KEY, "drift", "100-0")
    trim(server, later)
    assert times(client)[0] >= 80


@pytest.mark.redis
def test_a_respected_group_that_nobody_made_holds_nothing(
    server: RedisServer, client: redis.Redis
) -> None:
    fill(client, 100)
    trim(server, trim_to(entries=10, groups=("drift",)))
    assert len(times(client)) < 20


@pytest.mark.redis
def test_a_slow_consumer_s_misses_are_in_the_statistics(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    client.xgroup_create(KEY, "slow", id="0", mkstream=True)

    async def scenario() -> None:
        config = settings(retention=RetentionConfig(for_s=0, max_entries=100))
        async with running(Setting(server.url, tmp_path, config)) as rig:
            read = 0
            for _ in range(20):
                rig.offer(100)
                await rig.until_shipped()
                read += group_read(client, "slow", 30)
            missed = rig.statistics.trimmed_unread["digits", StreamKind.LIVE]
            waiting = group_read(client, "slow", 10_000)
            assert missed > 0
            assert read + waiting + missed == 2_000

    asyncio.run(scenario())


@pytest.mark.redis
def test_idle_streams_are_trimmed_to_the_entry_and_those_of_gone_replicas_too(
    server: RedisServer, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prediction_log.shipping.upkeep.BEAT_S", 0.02)
    monkeypatch.setattr("gateway.prediction_log.shipping.upkeep.ORPHANS_S", 0.02)
    monkeypatch.setattr("gateway.prediction_log.shipping.shipper.TICK_S", 0.01)
    now_ms = START_MS
    others = {"gone": "pl:{digits}:shadow:gone", "alive": "pl:{digits}:shadow:alive"}
    for key in others.values():
        client.sadd(streams_key("digits", StreamKind.SHADOW), key)
        client.xadd(key, {"r": b"x"}, id=f"{START_MS}-0")
        client.xadd(key, {"r": b"x"}, id=f"{START_MS + 90_000}-0")
    client.sadd(NAMES_KEY, "digits")
    seconds, _ = client.time()
    client.set("pl:{digits}:owner:gone", f"token:{seconds * 1000 - 60_000}")
    client.set("pl:{digits}:owner:alive", f"token:{seconds * 1000}")

    async def scenario() -> None:
        nonlocal now_ms
        config = settings(retention=RetentionConfig(for_s=60))
        setting = Setting(server.url, tmp_path, config, clock_ms=lambda: now_ms)
        async with running(setting) as rig:
            rig.offer(3)
            await rig.until_shipped()
            now_ms += 59_000
            rig.offer(2)
            await rig.until_shipped()
            now_ms += 2_000
            await rig.until(lambda: client.xlen(KEY) == 2)
            await rig.until(lambda: client.xlen(others["gone"]) == 1)
            assert rig.statistics.orphans_trimmed == 1

    asyncio.run(scenario())
    assert client.xlen(others["alive"]) == 2


def test_limits_follow_the_settings() -> None:
    config = RetentionConfig(
        for_s=100, grace_s=10, max_entries=500, max_bytes=10_000, respect_groups=["drift"]
    )
    retention = Retention(config)
    assert retention.trim(StreamKind.LIVE, 50.0, 1_000_000) == Trim(
        900_000, 890_000, 200, False, ("drift",)
    )
    assert retention.entries(StreamKind.LIVE, 1.0) == 500
    assert retention.entries(StreamKind.LIVE, 1e9) == 1
    assert retention.entries(StreamKind.BIG, 1.0) == 1_000
    assert retention.trim(StreamKind.LIVE, 50.0, 5_000, is_exact=True).arguments() == [
        0,
        0,
        200,
        1,
        "drift",
    ]
    forever = Retention(RetentionConfig(for_s=0, grace_s=10))
    assert forever.trim(StreamKind.LIVE, 1.0, 50_000)[:3] == (0, 40_000, 1_000_000)
    assert retention.standing(StreamKind.LIVE, 1.5, 1.0) == 150
    assert retention.standing(StreamKind.LIVE, 15, 1.0) == 500
    assert forever.standing(StreamKind.LIVE, 0.1, 1.0) == 1_000_000
