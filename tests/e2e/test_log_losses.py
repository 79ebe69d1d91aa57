"""Losses on purpose, counted and named: a damaged file, entries trimmed unread."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log_config import RetentionConfig
from tests.support.log_sites import ASK, Site, assert_balanced, counted, settled
from tests.support.prediction_log import (
    KEY,
    REPLICA,
    entries,
    live,
    log_settings,
    make_log,
    numbers,
    watched,
)
from tests.support.redis import running_redis
from tests.support.witness import Witness, found, missing, rids

pytestmark = [pytest.mark.redis, pytest.mark.slow]

HOUR_MS = 3_600_000


def flip_a_byte(spool: Path) -> None:
    """Damage the middle of what the newest segment holds."""
    newest = max(spool.rglob("*.seg*"), key=lambda path: path.name)
    data = bytearray(newest.read_bytes())
    end = len(bytes(data).rstrip(b"\x00"))
    data[end // 2] ^= 0x55
    newest.write_bytes(data)


def test_a_flipped_byte_costs_what_is_counted_and_a_reader_names_it(tmp_path: Path) -> None:
    with running_redis() as server:
        site = Site(tmp_path, server.url)
        server.kill()  # so that everything is in the file only
        with Witness(site.at, ASK) as witness, site.serve() as gateway:
            witness.flow(400)
            witness.stop()
            gateway.kill()
        flip_a_byte(tmp_path / "spool")
        server.start()
        with site.serve() as gateway:
            settled(site.at)
            assert_balanced(site.at)
            with redis.Redis.from_url(server.url) as client:
                there = found(client, "split")
            lost = missing(witness, rids(there))
            assert 0 < len(lost) == counted(site.at, "dropped") < 100
            seen = {prediction.seq for prediction in there}
            assert len(set(range(1, max(seen) + 1)) - seen) == len(lost)
            assert gateway.stop() == 0


def test_a_clock_that_goes_back_an_hour_loses_and_repeats_nothing(tmp_path: Path) -> None:
    now_ms = 1_790_000_000_000

    def clock_ms() -> int:
        return now_ms

    async def scenario(url: str) -> None:
        nonlocal now_ms
        for back_ms in (0, HOUR_MS):  # the second process begins an hour earlier
            now_ms -= back_ms
            log = PredictionLog(
                log_settings(), url=url, replica=REPLICA, base=tmp_path, clock_ms=clock_ms
            )
            async with watched(log) as running:
                for step_ms in (1, 1, -HOUR_MS, 1, 1):
                    now_ms += step_ms
                    running.offer(50)
                    await running.until_settled()

    with running_redis() as server:
        asyncio.run(scenario(server.url))
        with redis.Redis.from_url(server.url) as client:
            assert numbers(client) == [*range(1, 251), *range(1, 251)]
            ids = [entry_id for entry_id, _ in entries(client)]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("is_respected", [False, True])
def test_entries_that_are_trimmed_before_a_slow_group_read_them_are_counted(
    tmp_path: Path, is_respected: bool
) -> None:
    """The group reads 100 entries and then sleeps, while 5,000 more are written."""

    async def scenario(url: str, client: redis.Redis) -> int:
        retention = RetentionConfig(
            max_entries=500, respect_groups=["drift"] if is_respected else []
        )
        log = make_log(url, tmp_path, retention=retention)
        async with watched(log) as running:
            running.offer(200)
            await running.until_settled()
            client.xgroup_create(KEY, "drift", id="0")
            client.xreadgroup("drift", "slow", {KEY: ">"}, count=100)
            for _ in range(50):
                running.offer(100)
                await running.until_settled()
            statistics = log.statistics()
            assert live(statistics).shipped == 5_200
            assert len(numbers(client)) < 5_200 or is_respected
            unread = set(range(101, 5_201)) - set(numbers(client))
            assert statistics.trimmed_unread_of("digits") == len(unread)
            return len(unread)

    with running_redis() as server, redis.Redis.from_url(server.url) as client:
        unread = asyncio.run(scenario(server.url, client))
    assert (unread == 0) == is_respected
