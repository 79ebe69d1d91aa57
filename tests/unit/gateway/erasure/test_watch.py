"""A running gateway's part in an erasure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
import redis.asyncio

from gateway.ids import new_id
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.erasure import tombstone
from gateway.prediction_log.erasure.tombstone import Found, Tombstone, digest
from gateway.prediction_log.erasure.watch import Erasures
from gateway.prediction_log.spool.block import START, BlockKind
from gateway.prediction_log.spool.opening import open_spool
from gateway.prediction_log.spool.spool import FileSpool
from gateway.prediction_log.spool.store import Group
from gateway.prediction_log.streams import StreamKind
from tests.support.erasures import MARK, WORKER, files_with, label, plain_redis, prediction
from tests.support.prediction_log import log_settings

pytestmark = pytest.mark.redis

NOW_MS = 1_800_000_000_000
TAG, OTHER = bytes(range(16)), bytes(range(1, 17))
OPEN = Tombstone(id="e1", begun_ms=NOW_MS, tags=[TAG], digests=[digest(TAG)])


@pytest.fixture(scope="module")
def server() -> Iterator[redis.Redis]:
    with plain_redis() as (_, client):
        yield client


@pytest.fixture
def client(server: redis.Redis) -> redis.Redis:
    server.flushall()
    return server


class Watched:
    """A spool and who watches for erasures over it."""

    def __init__(self, server: redis.Redis, directory: Path) -> None:
        at = server.connection_pool.connection_kwargs
        self.directory = directory
        self.forgotten: list[bytes] = []
        self.settled = 0
        worker = os.urandom(4).hex()
        config = log_settings()
        self.store: FileSpool = open_spool(config, directory, worker=worker, now_ms=NOW_MS)[0]
        self.client = redis.asyncio.Redis(host=at["host"], port=at["port"], protocol=2)
        self.erasures = Erasures(
            self.client,
            replica="gw-1",
            store=self.store,
            on_forget=self.forgotten.append,
            settle=self._settle,
            references=References(directory / "references", max_bytes=1),
        )

    async def _settle(self) -> None:
        self.settled += 1

    def append(self, *blobs: bytes, kind: StreamKind = StreamKind.LIVE) -> None:
        number = self.store.stream("digits", kind)
        group = Group(BlockKind.RECORDS, number, list(blobs))
        self.store.append([group], NOW_MS, lambda reason: None)

    def left(self) -> list[bytes]:
        chunk = self.store.read(START, max_bytes=1 << 24, max_records=1 << 16, is_all=True)
        return [blob for block in chunk.blocks for blob in block.blobs() if blob[0] != 0]


def watching(
    server: redis.Redis, directory: Path, act: Callable[[Watched], Awaitable[None]]
) -> None:
    async def run() -> None:
        watched = Watched(server, directory)
        try:
            await act(watched)
        finally:
            await watched.client.aclose()
            await watched.store.close()

    asyncio.run(run())


def publish(client: redis.Redis, one: Tombstone) -> None:
    client.hset(tombstone.TOMBSTONES_KEY, one.id, tombstone.encode(one))
    client.set(tombstone.STAMP_KEY, os.urandom(4).hex())


def acks(client: redis.Redis, one: Tombstone) -> set[bytes]:
    members: Any = client.smembers(
        tombstone.acks_key(one.id, one.round)
    )  # Any: as redis-py types it
    return set(members)


def told(client: redis.Redis, one: Tombstone) -> set[Found]:
    members: Any = client.smembers(tombstone.found_key(one.id))  # Any: as redis-py types it
    return {tombstone.unpack(member) for member in members}


def test_a_gateway_says_that_it_is_there_until_it_leaves(
    client: redis.Redis, tmp_path: Path
) -> None:
    async def act(watched: Watched) -> None:
        await watched.erasures.apply()
        assert client.smembers(tombstone.REPLICAS_KEY) == {b"gw-1"}
        assert 0 < int(str(client.ttl(tombstone.alive_key("gw-1")))) <= tombstone.ALIVE_S
        await watched.erasures.leave(keeps_spool=True)
        assert not client.exists(tombstone.alive_key("gw-1"))
        assert client.smembers(tombstone.REPLICAS_KEY) == {b"gw-1"}
        await watched.erasures.leave(keeps_spool=False)
        assert client.smembers(tombstone.REPLICAS_KEY) == set()

    watching(client, tmp_path, act)


def test_an_open_erasure_is_carried_out_told_and_acknowledged(
    client: redis.Redis, tmp_path: Path
) -> None:
    rid = new_id()

    async def act(watched: Watched) -> None:
        other = prediction(2, subject=OTHER)
        watched.append(prediction(1, rid=rid, subject=TAG, text=MARK), other)
        await watched.erasures.apply()
        publish(client, OPEN)
        await watched.erasures.apply()
        assert files_with(tmp_path, [MARK, TAG]) == []
        assert watched.left() == [other]
        assert told(client, OPEN) == {Found("digits", StreamKind.LIVE, WORKER, 1, rid)}
        assert acks(client, OPEN) == {b"gw-1"}
        assert watched.forgotten == [TAG, digest(TAG)]
        assert watched.settled == 1

    watching(client, tmp_path, act)


def test_it_is_carried_out_once_per_round(client: redis.Redis, tmp_path: Path) -> None:
    async def act(watched: Watched) -> None:
        publish(client, OPEN)
        for _ in range(3):
            await watched.erasures.apply()
        publish(client, OPEN)  # nothing new, but something may have been
        await watched.erasures.apply()
        assert watched.settled == 1
        second = msgspec.structs.replace(OPEN, round=2)
        publish(client, second)
        await watched.erasures.apply()
        assert watched.settled == 2
        assert acks(client, second) == {b"gw-1"}

    watching(client, tmp_path, act)


def test_what_others_found_leads_to_labels_and_files_here(
    client: redis.Redis, tmp_path: Path
) -> None:
    rid = new_id()
    references = References(tmp_path / "references", max_bytes=1 << 20)
    mine = references.keep(b"m" * 16, MARK)
    both = references.keep(b"b" * 16, b"shared with another subject")

    async def act(watched: Watched) -> None:
        stays = label(3, cid="others")
        by_rid, by_cid = label(1, rid=rid, target="MARK"), label(2, cid="mine")
        watched.append(by_rid, by_cid, stays, kind=StreamKind.LABELS)
        watched.append(prediction(9, subject=OTHER, uri=both))
        found = Found("digits", StreamKind.LIVE, "gw-2@1", 4, rid, "mine", (mine, both))
        client.sadd(tombstone.found_key("e1"), tombstone.pack(found))
        client.sadd(tombstone.cids_key("e1"), b"mine")
        client.sadd(tombstone.files_key("e1"), mine, both)
        publish(client, OPEN)
        await watched.erasures.apply()
        assert watched.left()[0] == stays
        assert len(watched.left()) == 2
        assert {one.seq for one in told(client, OPEN)} == {1, 2, 4}

    watching(client, tmp_path, act)
    assert not references.path_of(mine).exists()
    assert references.path_of(both).exists()


def test_a_spool_that_comes_late_is_judged_by_the_closed_tombstone_before_anything_is_shipped(
    client: redis.Redis, tmp_path: Path
) -> None:
    publish(client, OPEN.closed(NOW_MS, is_complete=True))

    async def act(watched: Watched) -> None:
        after = prediction(3, subject=TAG, ts_us=NOW_MS * 1_000 + 1)
        before = prediction(1, subject=TAG, text=MARK, ts_us=NOW_MS * 1_000 - 1)
        watched.append(before, after)
        await watched.erasures.apply()
        assert watched.left() == [after]
        assert files_with(tmp_path, [MARK]) == []
        assert told(client, OPEN) == set()
        assert acks(client, OPEN) == set()

    watching(client, tmp_path, act)


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_gateway_that_missed_the_last_round_judges_by_the_closed_tombstone(
    client: redis.Redis, tmp_path: Path, is_complete: bool
) -> None:
    publish(client, OPEN)
    second = msgspec.structs.replace(OPEN, round=2).closed(NOW_MS, is_complete=is_complete)

    async def act(watched: Watched) -> None:
        await watched.erasures.apply()
        assert acks(client, OPEN) == {b"gw-1"}
        watched.append(prediction(1, subject=TAG, text=MARK, ts_us=NOW_MS * 1_000 - 1))
        publish(client, second)  # it hung, and an erasure that said it was gone went on without it
        await watched.erasures.apply()
        assert watched.left() == []
        assert files_with(tmp_path, [MARK]) == []

    watching(client, tmp_path, act)


def test_an_incomplete_erasure_leads_a_late_spool_to_labels_too(
    client: redis.Redis, tmp_path: Path
) -> None:
    rid = new_id()
    found = Found("digits", StreamKind.LIVE, "gw-2@1", 4, rid)
    client.sadd(tombstone.found_key("e1"), tombstone.pack(found))
    publish(client, OPEN.closed(NOW_MS, is_complete=False))

    async def act(watched: Watched) -> None:
        watched.append(label(1, rid=rid), kind=StreamKind.LABELS)
        await watched.erasures.apply()
        assert watched.left() == []
        again = msgspec.structs.replace(OPEN, round=2)
        publish(client, again)  # and is run again
        await watched.erasures.apply()
        assert acks(client, again) == {b"gw-1"}

    watching(client, tmp_path, act)


def test_old_erasures_cost_a_young_spool_no_reading(client: redis.Redis, tmp_path: Path) -> None:
    long_ago = OPEN.closed(NOW_MS - 3_600_001, is_complete=True)
    publish(client, long_ago)

    async def act(watched: Watched) -> None:
        watched.append(prediction(1, subject=TAG, ts_us=1))
        await watched.erasures.apply()
        assert watched.settled == 0
        assert len(watched.left()) == 1
        assert watched.forgotten == [digest(TAG)]  # its keys are destroyed all the same

    watching(client, tmp_path, act)


def test_an_erasure_that_cannot_be_read_does_not_stop_the_others(
    client: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.hset(tombstone.TOMBSTONES_KEY, "broken", b"{")

    async def act(watched: Watched) -> None:
        publish(client, OPEN)
        await watched.erasures.apply()
        assert acks(client, OPEN) == {b"gw-1"}

    watching(client, tmp_path, act)
    assert "cannot be read" in caplog.text


def test_a_redis_that_does_not_answer_is_told_of_and_tried_again(
    client: redis.Redis, tmp_path: Path
) -> None:
    async def act(watched: Watched) -> None:
        publish(client, OPEN)
        watched.append(prediction(1, subject=TAG))
        client.acl_setuser("default", enabled=True, commands=["-smembers"])
        try:
            with pytest.raises(redis.RedisError):
                await watched.erasures.apply()
        finally:
            client.acl_setuser("default", enabled=True, commands=["+smembers"])
        await watched.erasures.apply()
        assert watched.left() == []
        assert acks(client, OPEN) == {b"gw-1"}

    watching(client, tmp_path, act)


def test_a_cancellation_waits_for_the_thread_that_writes_to_the_spool(
    client: redis.Redis, tmp_path: Path
) -> None:
    async def act(watched: Watched) -> None:
        for number in range(200):
            watched.append(*(prediction(number, subject=TAG, text=MARK) for _ in range(50)))
        publish(client, OPEN)
        task = asyncio.ensure_future(watched.erasures.apply())
        while watched.settled == 0:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0)
        for _ in range(20):
            task.cancel()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert acks(client, OPEN) == set()
        await watched.erasures.apply()
        assert watched.left() == []
        assert acks(client, OPEN) == {b"gw-1"}

    watching(client, tmp_path, act)
