"""How much memory retention needs, and who is told."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import redis

from gateway.prediction_log.shipping.capacity import (
    Load,
    evicts_streams,
    history_per_s,
    need_bytes,
)
from gateway.prediction_log.shipping.retention import Retention
from gateway.prediction_log.streams import StreamKind
from gateway.prediction_log_config import RetentionConfig
from tests.support.redis import running_redis
from tests.support.shipping import KEY, START_MS, Setting, running, settings


def test_the_need_is_rate_times_age_times_size_up_to_the_limits() -> None:
    retention = Retention(RetentionConfig(for_s=3_600, max_entries=10_000_000))
    live = Load(StreamKind.LIVE, 2_000, 324.0)
    assert need_bytes([live], retention) == 2_000 * 3_600 * 369
    assert need_bytes([live, live._replace(per_s=0.0)], retention) == 2_000 * 3_600 * 369
    big = Load(StreamKind.BIG, 50.0, 600_000.0)
    assert need_bytes([big], retention) == 1_000 * 600_045
    forever = Retention(RetentionConfig(for_s=0, max_entries=500))
    assert need_bytes([live], forever) == 500 * 369


@pytest.mark.parametrize(
    ("policy", "limit_bytes", "expected"),
    [
        ("noeviction", 1, False),
        ("volatile-lru", 1, False),
        ("allkeys-lru", 1, True),
        ("allkeys-random", 1, True),
        ("allkeys-lru", 0, False),
        ("", 1, False),
    ],
)
def test_only_policies_that_touch_keys_without_a_time_to_live_evict_streams(
    policy: str, limit_bytes: int, expected: bool
) -> None:
    assert evicts_streams(policy, limit_bytes) is expected


def test_a_stream_s_past_tells_its_rate_if_it_is_long_enough() -> None:
    assert history_per_s(1_000, 0, 10_000) == 100.0
    assert history_per_s(1_000, 0, 999) == 0.0
    assert history_per_s(1, 0, 10_000) == 0.0


@pytest.mark.redis
def test_a_redis_that_may_evict_streams_and_is_too_small_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prediction_log.shipping.upkeep._FIRST_MEMORY_S", 0.0)
    monkeypatch.setattr("gateway.prediction_log.shipping.shipper.TICK_S", 0.01)
    caplog.set_level(logging.INFO, logger="gateway.prediction_log.shipping.upkeep")

    async def scenario(url: str) -> None:
        config = settings(retention=RetentionConfig(for_s=1_000_000, max_entries=10**9))
        setting = Setting(url, tmp_path, config, clock_ms=lambda: START_MS)
        async with running(setting) as rig:
            rig.offer(1)
            await rig.until(lambda: rig.statistics.memory_need_bytes > 0)
            # 101 entries of 101 bytes in 10 s: 10.1 per second for a million seconds.
            assert rig.statistics.memory_need_bytes == pytest.approx(10.1 * 1e6 * 146, rel=0.1)

    with running_redis() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 64 << 20)
        client.config_set("maxmemory-policy", "allkeys-lru")
        for n in range(101):
            client.xadd(KEY, {"r": b"x" * 100}, id=f"{START_MS - 10_000 + 100 * n}-1")
        asyncio.run(scenario(server.url))
    told = [r for r in caplog.records if r.name.endswith("upkeep")]
    assert [r.levelno for r in told] == [logging.WARNING, logging.WARNING]
    assert "may evict whole streams" in told[0].message
    assert told[1].message == "retention needs more memory than Redis may use"
