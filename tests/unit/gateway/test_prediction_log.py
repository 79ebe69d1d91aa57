"""The prediction log against real Redis servers: written once, counted to the unit."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import redis

from engines.tensors import Tensor
from gateway.demo.redis_server import RedisServer
from gateway.ids import new_id
from gateway.prediction_log.counts import LogStatistics
from gateway.prediction_log.record import PredictionRecord, Reduced
from gateway.prediction_log.record_sink import NoPredictionLog
from gateway.prediction_log.spool.lock import SpoolInUse
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import NAMES_KEY, StreamKind, streams_key
from gateway.prediction_log_config import CaptureConfig, RetentionConfig, SamplingConfig
from tests.support.prediction_log import (
    KEY,
    assert_exact,
    audits,
    calls,
    entries,
    live,
    make_log,
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
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> LogStatistics:
        log = make_log(server.url, tmp_path)
        async with watched(log) as running:
            for name in ("digits", "faces") * 500:
                running.offer(1, name=name)
            await running.until_settled()
            assert running.turns > 10
            return log.statistics()

    statistics = asyncio.run(scenario())
    total = statistics.total
    assert (total.answered, total.shipped, sum(total.dropped.values())) == (1_000, 1_000, 0)
    assert statistics.is_sink_up
    assert statistics.spooled_bytes == statistics.reconnects == statistics.collisions == 0
    assert numbers(client) == list(range(1, 1_001, 2))
    assert numbers(client, "pl:{faces}:gw-1") == list(range(2, 1_001, 2))
    found = entries(client)
    assert [i for i, _ in found] == sorted({i for i, _ in found})
    assert [prediction.seq for _, prediction in found] == list(range(1, 501))
    assert client.smembers(NAMES_KEY) == {b"digits", b"faces"}
    assert client.smembers(streams_key("digits")) == {KEY.encode()}


def test_a_commit_is_answered_when_its_records_are_in_the_file(tmp_path: Path) -> None:
    """With no Redis at all; a second log on a copy of the folder, as after a kill, finds them."""

    async def scenario() -> int:
        log = make_log(NO_SERVER, tmp_path / "a")
        async with watched(log, close_s=0) as running:
            answered: list[object] = []
            for _ in range(3):
                running.offer(5)
                log.commit(answered.append)
            log.commit(answered.append)  # nothing is pending
            assert answered == [None] * 4
            shutil.copytree(tmp_path / "a", tmp_path / "b")
        heir = make_log(NO_SERVER, tmp_path / "b")
        async with watched(heir, close_s=0):
            return live(heir.statistics()).recovered

    assert asyncio.run(scenario()) == 15


@pytest.mark.parametrize(
    "changes", [{"append": "thread"}, {"durability": "disk"}, {"durability": "memory"}], ids=str
)
def test_every_way_of_writing_ships_everything_in_order(
    client: redis.Redis, server: RedisServer, tmp_path: Path, changes: dict[str, str]
) -> None:
    async def scenario() -> tuple[LogStatistics, int]:
        log = make_log(server.url, tmp_path, **changes)
        committed = 0

        def count(reason: object) -> None:
            nonlocal committed
            assert reason is None
            committed += 1

        async with watched(log) as running:
            for number in range(100):
                running.offer(7)
                log.commit(count)
                if number % 9 == 0:
                    log.commit(count)
                    await asyncio.sleep(0)
            statistics = await running.until_settled()
        return statistics, committed

    statistics, committed = asyncio.run(scenario())
    assert live(statistics).shipped == 700
    assert committed == 112
    assert numbers(client) == list(range(1, 701))


def test_what_was_not_shipped_the_next_process_ships_once(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> LogStatistics:
        async with watched(make_log(NO_SERVER, tmp_path), close_s=0) as running:
            running.offer(300)
        heir = make_log(server.url, tmp_path)
        async with watched(heir) as running:
            running.offered = 300
            running.offer(20)
            return await running.until_settled()

    counts = live(asyncio.run(scenario()))
    assert (counts.recovered, counts.answered, counts.shipped) == (300, 20, 320)
    assert numbers(client) == list(range(1, 321))
    workers = {prediction.worker for _, prediction in entries(client)}
    finals = [audit for audit in audits(client) if audit.is_final]
    assert {audit.worker for audit in finals} == workers
    assert sorted(audit.kinds["live"].sequence for audit in finals) == [20, 300]


def test_two_processes_cannot_have_one_spool(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(make_log(NO_SERVER, tmp_path), close_s=0):
            with pytest.raises(SpoolInUse):
                await make_log(NO_SERVER, tmp_path).start()

    asyncio.run(scenario())


def test_audits_say_what_was_counted_and_the_last_one_that_it_is_the_last(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with watched(make_log(server.url, tmp_path, audit_s=0.05)) as running:
            running.offer(10)
            await running.until(lambda s: s.kinds.get(("digits", StreamKind.AUDIT)) is not None)
            running.offer(5)
            await running.until_settled()

    asyncio.run(scenario())
    *earlier, last = audits(client)
    assert earlier
    assert last.is_final
    counts = last.kinds["live"]
    assert (counts.answered, counts.sequence) == (15, 15)
    assert not any(audit.is_final for audit in earlier)
    assert all(a.kinds["live"].answered <= 15 for a in earlier)


def test_records_that_wait_together_go_in_full_batches(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        log = make_log(server.url, tmp_path, batch_records=100, linger_ms=10_000)
        async with watched(log) as running:
            await running.until(lambda s: s.is_sink_up)
            for _ in range(100):
                running.offer(10)
                log.commit(lambda reason: None)
            await running.until_settled()

    asyncio.run(scenario())
    assert 10 <= calls(client, "evalsha") <= 13
    assert len(numbers(client)) == 1_000


def test_a_batch_that_does_not_fill_goes_after_the_linger_time(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> float:
        log = make_log(server.url, tmp_path, batch_records=100, linger_ms=80)
        async with watched(log) as running:
            await running.until(lambda s: s.is_sink_up)
            started_s = time.monotonic()
            running.offer(3)
            await running.until(lambda s: s.total.shipped == 3)
            return time.monotonic() - started_s

    assert 0.08 <= asyncio.run(scenario()) < 5


def test_streams_are_trimmed_to_about_their_limit(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        log = make_log(server.url, tmp_path, retention=RetentionConfig(max_entries=100))
        async with watched(log) as running:
            running.offer(2_000)
            await running.until_settled()

    asyncio.run(scenario())
    kept = numbers(client)
    assert 90 <= len(kept) <= 300
    assert kept == list(range(2_001 - len(kept), 2_001))


def test_in_memory_the_buffer_fills_and_every_further_record_is_counted(tmp_path: Path) -> None:
    async def scenario() -> LogStatistics:
        log = make_log(NO_SERVER, tmp_path, durability="memory", buffer_records=50)
        async with watched(log, close_s=0) as running:
            for _ in range(70):
                running.offer(1)
                log.commit(lambda reason: None)
            assert live(log.statistics()).dropped[DropReason.QUEUE_RECORDS] == 20
            assert live(log.statistics()).spooled == 50
        return log.statistics()

    counts = live(asyncio.run(scenario()))
    assert (counts.shipped, counts.spooled) == (0, 0)
    assert counts.dropped[DropReason.SHUTDOWN] == 50


def test_close_ships_what_is_spooled_and_counts_what_comes_after(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> LogStatistics:
        log = make_log(server.url, tmp_path, linger_ms=60_000)
        async with watched(log) as running:
            running.offer(1_000)
            await log.close(10)
            running.offer(3)
            await log.close(10)
        return log.statistics()

    counts = live(asyncio.run(scenario()))
    assert counts.shipped == 1_000
    assert counts.dropped[DropReason.SHUTDOWN] == 3
    assert len(numbers(client)) == 1_000


def test_close_gives_up_at_its_limit_and_keeps_what_is_left(tmp_path: Path) -> None:
    async def scenario() -> tuple[LogStatistics, float]:
        log = make_log(NO_SERVER, tmp_path, batch_records=10)
        async with watched(log) as running:
            running.offer(25)
            await running.until(lambda s: bool(s.last_error))
            started_s = time.monotonic()
            await log.close(0.3)
            return log.statistics(), time.monotonic() - started_s

    statistics, took_s = asyncio.run(scenario())
    assert live(statistics).spooled == 25
    assert 0.3 <= took_s < 30  # it ends; how soon is the disk's affair


def test_a_cancelled_close_still_stops(tmp_path: Path) -> None:
    async def scenario() -> LogStatistics:
        log = make_log(NO_SERVER, tmp_path)
        async with watched(log, close_s=0) as running:
            running.offer(4)
            await running.until(lambda s: bool(s.last_error))
            closing = asyncio.create_task(log.close(60))
            await asyncio.sleep(0.05)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            return log.statistics()

    assert live(asyncio.run(scenario())).spooled == 4


def test_a_log_that_was_never_started_counts_what_it_was_given(tmp_path: Path) -> None:
    async def scenario() -> LogStatistics:
        log = make_log(NO_SERVER, tmp_path)
        log.offer(make_record())
        assert_exact(log.statistics())
        await log.close(1)
        return log.statistics()

    assert live(asyncio.run(scenario())).dropped[DropReason.SHUTDOWN] == 1


def test_a_record_that_cannot_be_encoded_costs_only_itself(
    server: RedisServer, client: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = make_record(99)
    broken.cid = cast("str", object())

    async def scenario() -> LogStatistics:
        async with watched(make_log(server.url, tmp_path)) as running:
            for _ in range(3):
                running.offer(2)
                running.log.offer(broken)
            return await running.until_settled()

    counts = live(asyncio.run(scenario()))
    assert (counts.shipped, counts.dropped[DropReason.ENCODE_ERROR]) == (6, 3)
    assert numbers(client) == [1, 2, 3, 4, 5, 6]
    assert caplog.text.count("prediction record cannot be encoded") == 1


def test_a_record_larger_than_an_entry_may_be_is_dropped_and_counted(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    size = 17 << 20
    huge = make_record(99, inputs=(Tensor("x", "UINT8", (size,), bytes(size)),))

    async def scenario() -> LogStatistics:
        log = make_log(server.url, tmp_path, capture=CaptureConfig(max_bytes=size))
        async with watched(log) as running:
            running.offer(1)
            running.log.offer(huge)
            running.offer(1)
            return await running.until_settled()

    counts = live(asyncio.run(scenario()))
    assert (counts.shipped, counts.dropped[DropReason.OVERSIZE]) == (2, 1)
    assert numbers(client) == [1, 2]


def test_large_tensors_are_reduced_off_the_loop_and_a_kill_before_that_leaves_the_record(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    image = np.linspace(-1, 1, 20_000, dtype="<f4")

    def record(number: int) -> PredictionRecord:
        return make_record(number, inputs=(Tensor("x", "FP32", (1, 20_000), image.tobytes()),))

    async def scenario() -> LogStatistics:
        log = make_log(NO_SERVER, tmp_path / "a")
        async with watched(log, close_s=0):
            log.offer(record(1))
            log.commit(lambda reason: None)  # its intent is written, its tensor not yet reduced
            shutil.copytree(tmp_path / "a", tmp_path / "b")
        heir = make_log(server.url, tmp_path / "b")
        async with watched(heir) as running:
            heir.offer(record(2))
            return await running.until(lambda s: live(s).shipped == 2)

    counts = live(asyncio.run(scenario()))
    assert (counts.recovered, counts.answered) == (1, 1)
    lost, whole = (prediction.inputs["x"].payload for _, prediction in entries(client))
    assert isinstance(lost, Reduced)
    assert isinstance(whole, Reduced)
    assert (lost.kind, whole.kind) == ("lost", "stat")
    assert whole.statistics["count"] == 20_000
    assert whole.statistics["max"] == pytest.approx(1.0)


def test_the_weights_of_sampled_records_add_up_to_the_traffic(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    count = 40_000

    async def scenario() -> LogStatistics:
        settings = SamplingConfig(share=0.1, slower_than_ms=100)
        async with watched(make_log(server.url, tmp_path, sampling=settings)) as running:
            for number in range(count):
                record = make_record(number)
                record.rid = new_id()
                if number % 500 == 0:
                    record.status, record.error = 500, "InstanceFailed"
                elif number % 700 == 0:
                    record.total_us = 100_001
                running.log.offer(record)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            return await running.until_settled()

    counts = live(asyncio.run(scenario()))
    found = [prediction for _, prediction in entries(client)]
    assert len(found) == counts.shipped == counts.answered - counts.sampled_out
    assert sum(p.sampled_as == "error" for p in found) == count // 500
    assert all(p.weight == 1 for p in found if p.sampled_as != "base")
    assert sum(p.weight for p in found) == pytest.approx(count, rel=0.05)
    assert {p.weight for p in found if p.sampled_as == "base"} == {10.0}
    assert [p.seq for p in found] == list(range(1, len(found) + 1))


def test_the_state_of_the_sink_is_known_before_the_first_record(tmp_path: Path) -> None:
    async def scenario(server: RedisServer) -> None:
        async with watched(make_log(server.url, tmp_path / "up")) as running:
            await running.until(lambda s: s.is_sink_up)
        async with watched(make_log(NO_SERVER, tmp_path / "down"), close_s=0) as running:
            assert not (await running.until(lambda s: bool(s.last_error))).is_sink_up

    with running_redis() as server:
        asyncio.run(scenario(server))


def test_two_workers_with_names_of_their_own_do_not_meet(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        logs = [
            make_log(server.url, tmp_path, replica=replica, batch_records=8)
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


def test_a_url_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scheme"):
        make_log("http://localhost", tmp_path)


def test_a_log_is_started_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = make_log(NO_SERVER, tmp_path)
        async with watched(log, close_s=0):
            with pytest.raises(RuntimeError, match="started before"):
                await log.start()

    asyncio.run(scenario())


def test_serving_without_a_log_takes_and_counts_nothing() -> None:
    async def scenario() -> LogStatistics:
        log = NoPredictionLog()
        await log.start()
        log.offer(make_record())
        answered: list[object] = []
        log.commit(answered.append)
        assert answered == [None]
        await log.close(1)
        return log.statistics()

    assert asyncio.run(scenario()) == LogStatistics()
