"""The prediction log when Redis dies, stalls, refuses, forgets, or is written by somebody else."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator

import pytest
import redis
from gateway.prediction_log.buffer import DropReason
from gateway.prediction_log.writer import LogStatistics, PredictionLog

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.streams import NAMES_KEY, EntryId
from tests.support.prediction_log import (
    KEY,
    REPLICA,
    calls,
    entries,
    log_settings,
    numbers,
    watched,
)
from tests.support.redis import redis_binaries, running_redis

pytestmark = pytest.mark.redis


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every server that this machine has: 6.2 and what is on PATH word their errors differently."""
    with running_redis(request.param) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def test_killing_redis_again_and_again_loses_and_doubles_nothing(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        settings = log_settings(batch_records=64)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            caught_writing = 0
            for kills in range(1, 5):
                running.offer(5_000)
                caught = await running.until_written(5_000 * kills - 2_500)
                caught_writing += caught.buffered > 0
                server.kill()
                running.offer(200)
                await running.until(lambda s: not s.is_sink_up)
                server.start()
            assert caught_writing > 0
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert statistics.written == statistics.offered == 20_800
    assert statistics.reconnects == 4
    assert statistics.forgotten_restarts == statistics.collisions == 0
    assert numbers(client) == list(range(1, 20_801))


def test_a_batch_whose_reply_comes_too_late_is_sent_again_and_stands_there_once(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        settings = log_settings(timeout_s=0.2)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            running.offer(10)
            await running.until_settled()
            # The server reads nothing: the batch waits in its socket, and is executed late.
            os.kill(server.pid, signal.SIGSTOP)
            try:
                running.offer(100)
                await running.until(lambda s: not s.is_sink_up)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert "Timeout" in statistics.last_error
    assert statistics.written == 110
    assert numbers(client) == list(range(1, 111))
    # Twice at least: once by the attempt that was given up, once by the one that was answered.
    assert calls(client, "evalsha") >= 3


def test_writing_resumes_when_redis_comes_back_and_only_what_was_dropped_is_missing(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        settings = log_settings(buffer_records=100)
        async with watched(PredictionLog(settings, url=server.url, replica=REPLICA)) as running:
            running.offer(10)
            await running.until_settled()
            server.kill()
            running.offer(150)
            await running.until(lambda s: not s.is_sink_up)
            server.start()
            await running.until_settled()
            running.offer(5)
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert statistics.dropped[DropReason.BUFFER_RECORDS] == 50
    assert statistics.written == 115
    assert numbers(client) == [*range(1, 111), *range(161, 166)]
    # The reader sees the loss without our counters.
    assert [prediction.seq for _, prediction in entries(client)][-6:] == [110, *range(161, 166)]


def test_close_waits_for_a_redis_that_comes_back_in_time(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(1)
            await running.until_settled()
            server.kill()
            running.offer(20)
            await running.until(lambda s: not s.is_sink_up)
            closing = asyncio.create_task(log.close(10))
            await asyncio.to_thread(server.start)
            await closing
        return log.statistics()

    assert asyncio.run(scenario()).written == 21
    assert numbers(client) == list(range(1, 22))


def test_ids_go_on_above_those_of_an_earlier_life_whose_clock_was_ahead(
    server: RedisServer, client: redis.Redis
) -> None:
    ahead = "9000000000000-5"
    client.xadd(KEY, {"r": b"earlier"}, id=ahead)

    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(3)
            return await running.until_settled()

    assert asyncio.run(scenario()).collisions == 0
    ids = [entry_id for entry_id, _ in client.xrange(KEY) or []]
    assert ids == [ahead.encode(), *(f"9000000000000-{n}".encode() for n in (6, 7, 8))]


def test_a_clock_that_is_set_back_costs_no_record(server: RedisServer, client: redis.Redis) -> None:
    moments_ms = iter([1_000, *[5_000] * 3, *[2_000] * 3])

    async def scenario() -> LogStatistics:
        log = PredictionLog(
            log_settings(), url=server.url, replica=REPLICA, clock_ms=lambda: next(moments_ms)
        )
        async with watched(log) as running:
            running.offer(3)
            await running.until_settled()
            running.offer(3)
            return await running.until_settled()

    assert asyncio.run(scenario()).written == 6
    assert [i for i, _ in entries(client)] == [EntryId(5_000, n) for n in range(6)]
    assert numbers(client) == [1, 2, 3, 4, 5, 6]


def test_records_whose_ids_another_writer_has_overtaken_get_new_ones(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(
            log_settings(linger_ms=20), url=server.url, replica=REPLICA, clock_ms=lambda: 1_000
        )
        async with watched(log) as running:
            running.offer(1)  # takes 1000-0
            await running.until_settled()
            client.xadd(KEY, {"r": b"foreign"}, id="1000-4")
            running.offer(9)  # is given 1000-1 to 1000-9, of which the first four are refused
            await running.until_settled()
            client.xadd(KEY, {"r": b"foreign"}, id="2000-0")
            running.offer(5)  # is refused as a whole
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert (statistics.written, statistics.collisions) == (15, 9)
    client.xdel(KEY, "1000-4", "2000-0")
    assert numbers(client) == [1, *range(6, 11), *range(2, 6), *range(11, 16)]
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "another writer uses this replica's stream"
    ]


def test_a_key_that_is_no_stream_costs_only_the_records_of_its_name(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.set(KEY, "in the way")

    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            for _ in range(2):
                running.offer(5)
                running.offer(7, name="faces")
                await running.until_settled()
            client.delete(KEY)
            running.offer(2)
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert statistics.dropped[DropReason.REFUSED] == 10
    assert statistics.written == 16
    assert statistics.is_sink_up
    assert "WRONGTYPE" in statistics.last_error
    assert len(numbers(client)) == 2
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "Redis refuses prediction records"
    ]


def test_a_stream_that_turns_into_something_else_is_refused(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(5)
            await running.until_settled()
            client.set(KEY, "in the way")
            running.offer(5)
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert (statistics.written, statistics.dropped[DropReason.REFUSED]) == (5, 5)


@pytest.mark.parametrize("trouble", ["OOM", "READONLY", "NOREPLICAS", "NOPERM"])
def test_a_redis_that_cannot_write_now_gets_the_records_later(
    server: RedisServer, client: redis.Redis, trouble: str
) -> None:
    def begin() -> None:
        if trouble == "OOM":
            client.config_set("maxmemory", 1)
        elif trouble == "READONLY":
            client.replicaof("127.0.0.1", "1")
        elif trouble == "NOPERM":
            client.acl_setuser("default", enabled=True, commands=["-evalsha"])
        else:
            client.config_set("min-replicas-to-write", 1)

    def end() -> None:
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 0)
        client.replicaof("NO", "ONE")
        client.acl_setuser("default", enabled=True, commands=["+evalsha"])

    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(5)
            await running.until_settled()
            begin()
            running.offer(5)
            down = await running.until(lambda s: not s.is_sink_up)
            assert down.buffered == 5
            end()
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert statistics.written == 10
    assert statistics.is_sink_up
    assert numbers(client) == list(range(1, 11))


def test_a_script_cache_that_was_emptied_is_filled_again(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(5)
            await running.until_settled()
            client.script_flush()
            running.offer(5)
            return await running.until_settled()

    assert asyncio.run(scenario()).written == 10
    assert numbers(client) == list(range(1, 11))


def test_a_redis_that_restarts_empty_is_noticed_and_written_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(server: RedisServer) -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(5)
            running.offer(5, name="faces")
            await running.until_settled()
            server.kill()
            server.start()
            running.offer(5)
            running.offer(5, name="faces")
            return await running.until_settled()

    with running_redis(append_only=False) as server:
        statistics = asyncio.run(scenario(server))
        with redis.Redis.from_url(server.url) as client:
            assert numbers(client) == list(range(11, 16))
            assert client.smembers(NAMES_KEY) == {b"digits", b"faces"}
    assert (statistics.written, statistics.forgotten_restarts) == (20, 1)
    assert caplog.text.count("has forgotten prediction records") == 1


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"-ERR unknown command\r\n", b":1\r\n"])
def test_a_server_that_talks_nonsense_costs_the_records_and_not_the_log(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # One answer for every command: each begins with its number of words.
        while line := await reader.readline():
            if line.startswith(b"*"):
                writer.write(answer)
        writer.close()

    async def scenario() -> LogStatistics:
        fake = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{fake.sockets[0].getsockname()[1]}/0"
        async with (
            fake,
            watched(PredictionLog(log_settings(), url=url, replica=REPLICA)) as running,
        ):
            for _ in range(2):
                running.offer(5)
                await running.until_settled()
            return running.log.statistics()

    statistics = asyncio.run(scenario())
    assert statistics.dropped[DropReason.REFUSED] == 10
    assert statistics.last_error


def test_the_sink_s_state_is_logged_once_per_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="gateway.prediction_log")

    async def scenario(server: RedisServer) -> None:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(1)
            await running.until_settled()
            server.kill()
            running.offer(50)
            await running.until(lambda s: not s.is_sink_up)
            await asyncio.sleep(0.3)  # long enough for further attempts
            server.start()
            await running.until_settled()

    with running_redis() as server:
        asyncio.run(scenario(server))
    assert [r.message for r in caplog.records] == [
        "prediction log sink up",
        "prediction log sink down",
        "prediction log sink up",
    ]


def test_an_idle_log_notices_that_redis_went_and_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.prediction_log.writer.PROBE_S", 0.02)

    async def scenario(server: RedisServer) -> None:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            await running.until(lambda s: s.is_sink_up)
            server.kill()
            await running.until(lambda s: not s.is_sink_up)
            server.start()
            await running.until(lambda s: s.is_sink_up)

    with running_redis() as server:
        asyncio.run(scenario(server))
