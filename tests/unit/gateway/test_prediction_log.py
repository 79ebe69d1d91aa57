"""The prediction log against real Redis servers: written once, counted to the unit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis

from engines.tensors import Tensor
from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.buffer import DropReason
from gateway.prediction_log.streams import NAMES_KEY, streams_key
from gateway.prediction_log.writer import LogStatistics, NoPredictionLog, PredictionLog
from tests.support.prediction_log import (
    KEY,
    REPLICA,
    assert_exact,
    calls,
    entries,
    log_settings,
    numbers,
    watched,
)
from tests.support.records import make_record
from tests.support.redis import redis_binaries, running_redis

pytestmark = pytest.mark.redis

NO_SERVER = "redis://127.0.0.1:1/0"


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every server that this machine has: 6.2 and what is on PATH word their errors differently."""
    with running_redis(request.param) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def test_what_is_offered_stands_in_the_stream_of_its_name_in_order(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            for name in ("digits", "faces") * 500:
                running.offer(1, name=name)
            await running.until_settled()
            assert running.turns > 10
            return log.statistics()

    statistics = asyncio.run(scenario())
    assert (statistics.written, sum(statistics.dropped.values())) == (1_000, 0)
    assert statistics.is_sink_up
    assert statistics.buffered_bytes == statistics.reconnects == statistics.collisions == 0
    assert numbers(client) == list(range(1, 1_001, 2))
    assert numbers(client, "pl:{faces}:gw-1") == list(range(2, 1_001, 2))
    found = entries(client)
    assert [i for i, _ in found] == sorted({i for i, _ in found})
    assert [prediction.seq for _, prediction in found] == list(range(1, 501))
    assert client.smembers(NAMES_KEY) == {b"digits", b"faces"}
    assert client.smembers(streams_key("digits")) == {KEY.encode()}


def test_records_that_wait_together_go_in_full_batches(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        settings = log_settings(batch_records=100, linger_ms=10_000)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            running.offer(1_000)
            await running.until_settled()

    asyncio.run(scenario())
    assert calls(client, "evalsha") == 10
    assert len(numbers(client)) == 1_000


def test_a_batch_that_does_not_fill_goes_after_the_linger_time(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> float:
        settings = log_settings(batch_records=100, linger_ms=80)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            await running.until(lambda s: s.is_sink_up)
            started_s = time.monotonic()
            running.offer(3)
            await running.until_settled()
            return time.monotonic() - started_s

    assert 0.08 <= asyncio.run(scenario()) < 5
    assert calls(client, "evalsha") == 1


def test_streams_are_trimmed_to_about_their_limit(server: RedisServer, client: redis.Redis) -> None:
    async def scenario() -> None:
        settings = log_settings(max_entries=100)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            running.offer(2_000)
            await running.until_settled()

    asyncio.run(scenario())
    kept = numbers(client)
    assert 100 <= len(kept) <= 300
    assert kept == list(range(2_001 - len(kept), 2_001))


def test_with_redis_down_the_buffer_fills_and_every_further_record_is_counted() -> None:
    async def scenario() -> tuple[LogStatistics, LogStatistics]:
        settings = log_settings(buffer_records=50, buffer_bytes=1_600)
        log = PredictionLog(settings, url=NO_SERVER, replica=REPLICA)
        async with watched(log, close_s=0) as running:
            running.offer(70)  # 16 bytes of tensors each
            await running.until(lambda s: bool(s.last_error))
            full = log.statistics()
            assert full.dropped[DropReason.BUFFER_RECORDS] == 20
            assert (full.buffered, full.buffered_bytes) == (50, 800)
        roomy = log_settings(buffer_records=500, buffer_bytes=800)
        by_bytes = PredictionLog(roomy, url=NO_SERVER, replica=REPLICA)
        async with watched(by_bytes, close_s=0) as running:
            running.offer(70)
            await running.until(lambda s: bool(s.last_error))
            assert by_bytes.statistics().dropped[DropReason.BUFFER_BYTES] == 20
        return log.statistics(), by_bytes.statistics()

    for statistics in asyncio.run(scenario()):
        assert not statistics.is_sink_up
        assert (statistics.offered, statistics.written, statistics.buffered) == (70, 0, 0)
        assert statistics.dropped[DropReason.SHUTDOWN] == 50


def test_close_writes_what_is_buffered_and_counts_what_comes_after(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(linger_ms=60_000), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(1_000)
            await log.close(10)
            running.offer(3)
            await log.close(10)
        return log.statistics()

    statistics = asyncio.run(scenario())
    assert statistics.written == 1_000
    assert statistics.dropped[DropReason.SHUTDOWN] == 3
    assert len(numbers(client)) == 1_000


def test_close_gives_up_at_its_limit_and_counts_what_is_left() -> None:
    async def scenario() -> tuple[LogStatistics, float]:
        log = PredictionLog(log_settings(batch_records=10), url=NO_SERVER, replica=REPLICA)
        async with watched(log) as running:
            running.offer(25)
            await running.until(lambda s: bool(s.last_error))
            started_s = time.monotonic()
            await log.close(0.3)
            return log.statistics(), time.monotonic() - started_s

    statistics, took_s = asyncio.run(scenario())
    assert statistics.dropped[DropReason.SHUTDOWN] == 25
    assert statistics.buffered == 0
    assert 0.3 <= took_s < 3


def test_a_cancelled_close_still_stops_and_counts() -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=NO_SERVER, replica=REPLICA)
        async with watched(log, close_s=0) as running:
            running.offer(4)
            await running.until(lambda s: bool(s.last_error))
            closing = asyncio.create_task(log.close(60))
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            return log.statistics()

    assert asyncio.run(scenario()).dropped[DropReason.SHUTDOWN] == 4


def test_a_log_that_was_never_started_counts_what_it_was_given() -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=NO_SERVER, replica=REPLICA)
        log.offer(make_record())
        assert_exact(log.statistics())
        await log.close(1)
        return log.statistics()

    assert asyncio.run(scenario()).dropped[DropReason.SHUTDOWN] == 1


def test_a_record_that_cannot_be_encoded_costs_only_itself(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    broken = make_record(99, inputs=(Tensor("x", "FP33", (9,), bytes(9)),))

    async def scenario() -> LogStatistics:
        settings = log_settings(capture_max_bytes=8)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            for _ in range(3):
                running.offer(2)
                running.log.offer(broken)
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert (statistics.written, statistics.dropped[DropReason.ENCODE_ERROR]) == (6, 3)
    assert numbers(client) == [1, 2, 3, 4, 5, 6]
    assert caplog.text.count("prediction record cannot be encoded") == 1


def test_a_record_larger_than_an_entry_may_be_is_dropped_and_counted(
    server: RedisServer, client: redis.Redis
) -> None:
    size = 17 << 20
    huge = make_record(99, inputs=(Tensor("x", "UINT8", (size,), bytes(size)),))

    async def scenario() -> LogStatistics:
        settings = log_settings(capture_max_bytes=size)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            running.offer(1)
            running.log.offer(huge)
            running.offer(1)
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert (statistics.written, statistics.dropped[DropReason.OVERSIZE]) == (2, 1)
    assert numbers(client) == [1, 2]


def test_the_state_of_the_sink_is_known_before_the_first_record() -> None:
    async def scenario(server: RedisServer) -> None:
        up = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(up) as running:
            await running.until(lambda s: s.is_sink_up)
        down = PredictionLog(log_settings(), url=NO_SERVER, replica=REPLICA)
        async with watched(down, close_s=0) as running:
            assert not (await running.until(lambda s: bool(s.last_error))).is_sink_up

    with running_redis() as server:
        asyncio.run(scenario(server))


def test_two_workers_with_names_of_their_own_do_not_meet(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        logs = [
            PredictionLog(log_settings(batch_records=8), url=server.url, replica=replica)
            for replica in ("a", "b")
        ]
        async with watched(logs[0]) as one, watched(logs[1]) as other:
            one.offer(500)
            other.offer(500)
            for running in (one, other):
                assert (await running.until_settled()).collisions == 0

    asyncio.run(scenario())
    for replica in ("a", "b"):
        assert numbers(client, f"pl:{{digits}}:{replica}") == list(range(1, 501))
    assert client.scard(streams_key("digits")) == 2


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="scheme"):
        PredictionLog(log_settings(), url="http://localhost", replica=REPLICA)


def test_a_log_is_started_once() -> None:
    async def scenario() -> None:
        log = PredictionLog(log_settings(), url=NO_SERVER, replica=REPLICA)
        async with watched(log, close_s=0):
            with pytest.raises(RuntimeError, match="started before"):
                log.start()

    asyncio.run(scenario())


def test_serving_without_a_log_takes_and_counts_nothing() -> None:
    async def scenario() -> LogStatistics:
        log = NoPredictionLog()
        log.start()
        log.offer(make_record())
        await log.close(1)
        return log.statistics()

    assert asyncio.run(scenario()) == LogStatistics()
