"""The log between two things: keys and a full disk, a thread and the end, a refusal and a wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from engines.tensors import Tensor, encode_bytes
from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import StreamKind
from gateway.prediction_log_config import NameConfig, SpoolConfig
from tests.support.prediction_log import REPLICA, audits, log_settings, make_log, watched
from tests.support.privacy import settings_of, tap_of
from tests.support.records import make_record
from tests.support.redis import running_redis

NO_SERVER = "redis://127.0.0.1:1/0"
SEALED = {"digits": NameConfig(features={"note": "seal"})}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis() as running_server:
        yield running_server


def sealed_record(number: int, subject: str) -> PredictionRecord:
    note = Tensor("note", "BYTES", (1,), encode_bytes([b"very private"]))
    record = make_record(number, inputs=(note,))
    record.subject = subject
    return record


def test_keys_for_which_there_is_no_room_are_tried_again_once_a_second_and_not_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        given = settings_of(SEALED)
        tap_of(tmp_path, given)
        full = SpoolConfig(segment_bytes=1 << 20, max_bytes=2 << 20, min_free_bytes=1 << 60)
        config = log_settings(privacy=given.privacy, names=given.names, spool=full)
        log = PredictionLog(config, url=NO_SERVER, replica=REPLICA, base=tmp_path)
        async with watched(log, close_s=0) as running:
            log.offer(sealed_record(1, "alice"))
            store = log._opened()
            appends, append = list[int](), store.append

            def counted(*arguments: object) -> None:
                appends.append(1)
                append(*arguments)  # type: ignore[arg-type]

            monkeypatch.setattr(store, "append", counted)
            turns = running.turns
            await running.until(lambda _: running.turns > turns + 200)
            assert log.statistics().total.dropped[DropReason.DISK_FULL] == 1
            assert len(appends) < 5
            store._supply._room._min_free_bytes = 0  # type: ignore[attr-defined]
            spool = tmp_path / "spool" / REPLICA
            (blob,) = log.privacy.key_blobs()
            await running.until(lambda _: any(blob in p.read_bytes() for p in spool.glob("*.seg*")))

    asyncio.run(scenario())


@pytest.mark.redis
@pytest.mark.parametrize("durability", ["process", "disk"])
def test_the_last_audits_are_shipped_also_where_a_thread_writes_them(
    server: RedisServer, tmp_path: Path, durability: str
) -> None:
    async def scenario() -> None:
        log = make_log(server.url, tmp_path, append="thread", durability=durability)
        async with watched(log) as running:
            running.offer(5)
            await running.until_shipped(5)

    asyncio.run(scenario())
    with redis.Redis.from_url(server.url) as client:
        assert [audit.is_final for audit in audits(client)] == [True]


def test_a_commit_waits_for_what_is_under_way_although_a_later_write_was_refused(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        log = make_log(NO_SERVER, tmp_path, append="thread", buffer_bytes=100_000)
        told: list[tuple[str, DropReason | None]] = []
        large = Tensor("x", "UINT8", (1, 8_000), bytes(8_000))
        async with watched(log, close_s=0) as running:
            for number in range(20):
                log.offer(make_record(number, inputs=(large,)))
            log.commit(lambda reason: told.append(("first", reason)))
            log.offer(make_record(21))
            log.commit(lambda reason: told.append(("second", reason)))
            log.commit(lambda reason: told.append(("third", reason)))
            assert told == [("second", DropReason.QUEUE_BYTES)]
            await running.until(lambda _: len(told) == 3)
            assert told[1:] == [("first", None), ("third", None)]

    asyncio.run(scenario())


def test_a_fault_in_the_housekeeping_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_audits, calls = PredictionLog._write_audits, list[int]()

    def faulty(log: PredictionLog, *, is_final: bool = False) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("too many open files")
        write_audits(log, is_final=is_final)

    monkeypatch.setattr(PredictionLog, "_write_audits", faulty)

    async def scenario() -> None:
        log = make_log(NO_SERVER, tmp_path, audit_s=0.05)
        async with watched(log, close_s=0) as running:
            running.offer(1)
            await running.until(lambda s: ("digits", StreamKind.AUDIT) in s.kinds)

    asyncio.run(scenario())
    assert "prediction log housekeeping failed" in [record.message for record in caplog.records]
