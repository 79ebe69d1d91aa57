"""One batch to one stream: what the script on the server makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
import redis
from gateway.prediction_log.buffer import DropReason
from gateway.prediction_log.writer import LogStatistics, PredictionLog

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.sink import MAX_ID_PART, Appended, RedisSink, SinkRefused
from gateway.prediction_log.streams import EntryId
from tests.support.prediction_log import KEY, REPLICA, log_settings, numbers, watched
from tests.support.redis import redis_binaries, running_redis

pytestmark = pytest.mark.redis


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(request.param) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def append(
    server: RedisServer, *batches: Sequence[tuple[EntryId, bytes]], max_entries: int = 1_000_000
) -> list[Appended]:
    """Write batches to one stream."""

    async def scenario() -> list[Appended]:
        sink = RedisSink(server.url, timeout_s=10)
        try:
            await sink.connect()
            return [await sink.append(KEY, batch, max_entries=max_entries) for batch in batches]
        finally:
            await sink.close()

    return asyncio.run(scenario())


def standing(client: redis.Redis) -> list[tuple[EntryId, bytes]]:
    """Return what stands in the stream."""
    found = []
    for entry_id, fields in client.xrange(KEY) or []:
        assert entry_id is not None
        assert fields is not None
        blob = fields[b"r"]
        assert isinstance(blob, bytes)
        found.append((EntryId.parse(entry_id), blob))
    return found


ALL_BYTES = bytes(range(256))


def test_records_of_any_bytes_and_sizes_stand_there_under_their_ids(
    server: RedisServer, client: redis.Redis
) -> None:
    blobs = [b"\x01", b"\0" * 7, ALL_BYTES, b"", ALL_BYTES * 300, b"\xff\r\n$-1\r\n", b"last"]
    batch = [(EntryId(1_800_000_000_000 + n // 3, n % 3), blob) for n, blob in enumerate(blobs)]
    assert append(server, batch) == [Appended(refused=0, added=len(blobs), failure=None)]
    assert standing(client) == batch


def test_ids_are_exact_as_far_as_the_script_can_count(
    server: RedisServer, client: redis.Redis
) -> None:
    ids = [
        EntryId(0, 1),
        EntryId(1, 0),
        EntryId(1, MAX_ID_PART - 1),
        EntryId(1, MAX_ID_PART),
        EntryId((1 << 48) - 1, 1 << 32),
        EntryId(MAX_ID_PART - 1, 7),
        EntryId(MAX_ID_PART, MAX_ID_PART),
    ]
    batch = [(entry_id, str(entry_id).encode()) for entry_id in ids]
    assert append(server, batch) == [Appended(refused=0, added=len(ids), failure=None)]
    assert standing(client) == batch


@pytest.mark.parametrize("beyond", [EntryId(MAX_ID_PART + 1, 0), EntryId(1, MAX_ID_PART + 1)])
def test_an_id_that_the_script_could_not_tell_from_its_neighbours_is_refused(
    server: RedisServer, client: redis.Redis, beyond: EntryId
) -> None:
    with pytest.raises(SinkRefused, match=str(beyond)):
        append(server, [(EntryId(1, 0), b"fine"), (beyond, b"not")])
    assert standing(client) == []


def test_what_is_sent_again_is_refused_and_the_rest_is_added(
    server: RedisServer, client: redis.Redis
) -> None:
    batch = [(EntryId(5, n), b"%d" % n) for n in range(6)]
    assert append(server, batch[:4], batch) == [
        Appended(refused=0, added=4, failure=None),
        Appended(refused=4, added=2, failure=None),
    ]
    assert standing(client) == batch


def test_a_batch_is_one_argument_and_trims_the_stream(
    server: RedisServer, client: redis.Redis
) -> None:
    batch = [(EntryId(5, n), b"%d" % n) for n in range(1_000)]
    append(server, batch, max_entries=100)
    left = standing(client)
    assert left == batch[-len(left) :]
    assert 100 <= len(left) < 400  # trimmed by whole nodes


def test_a_stream_that_somebody_numbered_beyond_reason_costs_only_its_own_records(
    server: RedisServer, client: redis.Redis
) -> None:
    """Its next ids cannot be told apart by the script: asking for ever would help nobody."""
    client.xadd(KEY, {"r": b"foreign"}, id="1800000000000000001-5")

    async def scenario() -> LogStatistics:
        log = PredictionLog(log_settings(), url=server.url, replica=REPLICA)
        async with watched(log) as running:
            running.offer(3)
            running.offer(2, name="faces")
            return await running.until_settled()

    statistics = asyncio.run(scenario())
    assert (statistics.written, statistics.dropped[DropReason.REFUSED]) == (2, 3)
    assert numbers(client, "pl:{faces}:gw-1") == [4, 5]
