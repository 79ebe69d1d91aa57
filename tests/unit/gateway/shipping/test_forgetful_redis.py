"""Redis forgets at bad moments, or goes: between two lives, in one chunk, behind erased records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import uvloop

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.shipping import pieces
from gateway.prediction_log.shipping.sink import Appended, RedisSink, SinkDown, Target, Verdict
from gateway.prediction_log.streams import StreamKind, stream_key
from tests.support.redis import redis_binaries, running_redis
from tests.support.shipping import KEY, OWNER, REPLICA, Setting, blob_of, numbers, running, settings

pytestmark = pytest.mark.redis

LIVE = (KEY, StreamKind.LIVE)
SHADOW = (stream_key("digits", REPLICA, StreamKind.SHADOW), StreamKind.SHADOW)


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(request.param) as running_server:
        yield running_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


@pytest.mark.parametrize(("key", "kind"), [LIVE, SHADOW], ids=["live", "shadow"])
def test_what_is_forgotten_between_two_lives_is_sent_again_without_a_new_record(
    server: RedisServer, client: redis.Redis, tmp_path: Path, key: str, kind: StreamKind
) -> None:
    async def scenario() -> None:
        setting = Setting(server.url, tmp_path)
        async with running(setting) as rig:
            rig.offer(20, kind=kind)
            await rig.until_shipped()
        client.flushall()
        async with running(Setting(server.url, tmp_path, is_watched=False)) as rig:
            await rig.until(lambda: client.xlen(key) == 20)
            assert rig.statistics.rewound == 20
            number = rig.store.stream("digits", kind)
            await rig.until(lambda: rig.store.spooled(number) == 0)
            rig.ledger.appended[number] = rig.ledger.counted[number]

    asyncio.run(scenario())
    assert numbers(client, key) == list(range(1, 21))


@pytest.mark.parametrize("how", ["everything", KEY, OWNER])
def test_what_is_forgotten_between_two_calls_of_one_chunk_is_sent_again(
    server: RedisServer,
    client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The very first chunk, so that nothing is confirmed yet which Redis might be found without."""
    monkeypatch.setattr(pieces, "LIMIT_BYTES", 100)
    append, sent = RedisSink.append, list[int]()

    async def forgetful(
        sink: RedisSink, target: Target, blocks: bytes, **how_to: object
    ) -> Appended | Verdict:
        answer = await append(sink, target, blocks, **how_to)  # type: ignore[arg-type]
        sent.append(len(blocks))
        if len(sent) == 1:
            if how == "everything":
                client.flushall()
            else:
                client.delete(how)
        return answer

    monkeypatch.setattr(RedisSink, "append", forgetful)

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(50)
            await rig.until_shipped()
            assert rig.shipped == 50
            assert len(sent) > 2

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 51))


def test_a_stream_whose_last_records_were_erased_has_forgotten_nothing(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, settings(batch_records=8))
        async with running(setting) as rig:
            rig.offer(3)
            rig.put([bytes(5), bytes(7)])
            rig.put([bytes(5)])
            await rig.until_shipped()
            rig.put([blob_of(4), bytes(9)])
            await rig.until_shipped()
            rig.put([blob_of(5)])
            await rig.until_shipped()
            assert rig.statistics.rewound == 0
            assert rig.shipped == 9

    asyncio.run(scenario())
    assert numbers(client) == [1, 2, 3, 4, 5]


def test_a_connection_that_uvloop_has_closed_is_a_sink_that_is_down(server: RedisServer) -> None:
    """It raises RuntimeError then, where asyncio's own loop raises what redis-py expects."""

    async def scenario() -> None:
        sink = RedisSink(server.url, timeout_s=1)
        await sink.connect()
        (connection,) = sink._client.connection_pool._available_connections
        assert connection._writer is not None
        connection._writer.transport.abort()
        with pytest.raises(SinkDown):
            await sink.ping()
        await sink.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
