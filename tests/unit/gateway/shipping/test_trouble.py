"""Shipping when Redis dies, stalls, refuses or forgets."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import NAMES_KEY, StreamKind
from tests.support.redis import redis_binaries, running_redis
from tests.support.shipping import (
    KEY,
    OWNER,
    Setting,
    calls,
    numbers,
    running,
    settings,
    standing,
)

pytestmark = pytest.mark.redis


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Every server that this machine has: 6.2 and what is on PATH word their errors differently."""
    with running_redis(request.param) as running_server:
        yield running_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r for r in caplog.records if r.levelno >= logging.WARNING]
    return [r.message for r in found if "spool" not in r.name]


def test_killing_redis_again_and_again_loses_and_doubles_nothing(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        setting = Setting(server.url, tmp_path, settings(batch_records=64))
        async with running(setting) as rig:
            caught_writing = 0
            for kills in range(1, 5):
                for _ in range(500):
                    rig.offer(10)
                await rig.until(lambda: rig.shipped >= 5_000 * kills - 2_500)  # noqa: B023
                caught_writing += rig.spooled > 0
                server.kill()
                rig.offer(200)
                await rig.until_down()
                server.start()
            assert caught_writing > 0
            await rig.until_shipped()
            assert rig.shipped == 20_800
            assert rig.statistics.reconnects == 4
            assert rig.statistics.forgotten == rig.statistics.collisions == 0

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 20_801))


def test_what_was_sent_without_a_reply_is_sent_again_and_stands_there_once(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path, settings(timeout_s=0.2))) as rig:
            rig.offer(10)
            await rig.until_shipped()
            await rig.shipper.exclusive(lambda: None)  # the round has ended
            # The server reads nothing: the batch waits in its socket, and is executed late.
            os.kill(server.pid, signal.SIGSTOP)
            try:
                rig.offer(100)
                await rig.until_down()
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await rig.until_shipped()
            assert "Timeout" in rig.statistics.last_error
            assert rig.shipped == 110
            assert rig.statistics.duplicates == 100
            assert rig.statistics.collisions == 0

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 111))


def test_a_flush_in_the_middle_is_noticed_and_everything_kept_is_sent_again(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            for _ in range(50):
                rig.offer(20)
                rig.offer(10, name="faces")
                await asyncio.sleep(0)
            await rig.until_shipped()
            client.flushall()
            rig.offer(5)
            await rig.until_shipped()
            assert rig.statistics.rewound == 1_000
            rig.offer(5, name="faces")
            await rig.until_shipped()
            assert rig.statistics.rewound == 1_500
            assert rig.statistics.forgotten == 2
            assert rig.statistics.collisions == rig.statistics.duplicates == 0
            assert rig.statistics.reconnects == 0
            assert rig.shipped == rig.expected == 1_510

    asyncio.run(scenario())
    found = numbers(client), numbers(client, "pl:{faces}:gw-1")
    assert [len(each) for each in found] == [1_005, 505]
    assert all(each == sorted(each) for each in found)
    assert sorted(found[0] + found[1]) == list(range(1, 1_511))
    assert client.smembers(NAMES_KEY) == {b"digits", b"faces"}


def test_a_deleted_stream_is_filled_again(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(30)
            await rig.until_shipped()
            client.delete(KEY)
            rig.offer(5)
            await rig.until_shipped()
            client.delete(OWNER)  # alone it says nothing about the stream
            rig.offer(5)
            await rig.until_shipped()
            assert (rig.statistics.rewound, rig.statistics.forgotten) == (30, 1)

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 41))


def test_a_redis_that_restarts_empty_gets_everything_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: RedisServer) -> None:
        async with running(Setting(server.url, tmp_path, settings(batch_records=32))) as rig:
            for _ in range(3):
                for _ in range(100):
                    rig.offer(7)
                    rig.offer(3, name="faces")
                    rig.offer(1, kind=StreamKind.AUDIT)
                await rig.until(lambda: rig.shipped > 300)
                server.kill()
                server.start()
            await rig.until_shipped()
            assert rig.shipped == rig.expected == 3_300
            assert rig.statistics.forgotten > 0
            assert rig.statistics.collisions == 0

    with running_redis(append_only=False) as server:
        asyncio.run(scenario(server))
        with redis.Redis.from_url(server.url) as client:
            found = numbers(client), numbers(client, "pl:{faces}:gw-1")
    assert all(each == sorted(each) for each in found)
    assert sorted(found[0] + found[1]) == list(range(1, 3_301))
    assert "has forgotten prediction records" in caplog.text


@pytest.mark.parametrize(
    "trouble", ["OOM", "READONLY", "NOREPLICAS", "-evalsha", "-xadd", "-get", "MISCONF"]
)
def test_a_redis_that_cannot_write_now_gets_the_records_later(
    server: RedisServer, client: redis.Redis, tmp_path: Path, trouble: str
) -> None:
    def begin() -> None:
        if trouble == "OOM":
            client.config_set("maxmemory", 1)
        elif trouble == "READONLY":
            client.replicaof("127.0.0.1", "1")
        elif trouble.startswith("-"):
            client.acl_setuser("default", enabled=True, commands=[trouble])
        elif trouble == "MISCONF":
            Path(str(client.config_get("dir")["dir"]), "dump.rdb", "in the way").mkdir(parents=True)
            client.config_set("save", "3600 1")
            client.bgsave()
        else:
            client.config_set("min-replicas-to-write", 1)

    def end() -> None:
        client.config_set("save", "")
        client.config_set("stop-writes-on-bgsave-error", "no")
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 0)
        client.replicaof("NO", "ONE")
        client.acl_setuser("default", enabled=True, commands=["+@all"])

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(5)
            await rig.until_shipped()
            begin()
            if trouble == "MISCONF":
                failed = "rdb_last_bgsave_status"
                await rig.until(lambda: client.info("persistence")[failed] == "err")
            rig.offer(5)
            await rig.until_down()
            assert rig.spooled == 5
            end()
            await rig.until_shipped()
            assert rig.shipped == 10
            assert rig.statistics.is_sink_up

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 11))


def test_a_script_cache_that_was_emptied_is_filled_again(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(5)
            await rig.until_shipped()
            client.script_flush()
            rig.offer(5)
            await rig.until_shipped()

    asyncio.run(scenario())
    assert numbers(client) == list(range(1, 11))


def test_a_key_that_is_no_stream_costs_only_the_records_of_its_name(
    server: RedisServer, client: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.set(KEY, "in the way")

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            for _ in range(2):
                rig.offer(5)
                rig.offer(7, name="faces")
                await rig.until_shipped()
            client.delete(KEY)
            rig.offer(2)
            await rig.until_shipped()
            client.delete(KEY)
            client.set(KEY, "in the way again")
            rig.offer(3)
            await rig.until_shipped()
            assert rig.ledger.drops == {DropReason.REFUSED: 13}
            assert rig.shipped == 16
            assert rig.statistics.is_sink_up
            assert "WRONGTYPE" in rig.statistics.last_error

    asyncio.run(scenario())
    assert len(numbers(client, "pl:{faces}:gw-1")) == 14
    assert warnings(caplog) == ["Redis refuses prediction records"] * 2


def test_a_record_that_redis_would_not_read_is_dropped_alone(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    client.config_set("proto-max-bulk-len", 1 << 20)
    small, large = b"\x017", b"\x01" + b"x" * (1 << 20)

    async def scenario() -> None:
        async with running(Setting(server.url, tmp_path, settings())) as rig:
            rig.put([small, b"\x01" + b"y" * 600_000, b"\x01" + b"z" * 600_000, small])
            rig.put([small, large[:-100], small])
            await rig.until_shipped()
            assert rig.ledger.drops == {DropReason.OVERSIZE: 1}
            assert rig.statistics.reconnects == 0

    asyncio.run(scenario())
    assert [len(blob) for _, blob in standing(client)] == [2, 600_001, 600_001, 2, 2, 2]


@pytest.mark.parametrize(
    "answer", [b"+OK\r\n", b"-ERR unknown command\r\n", b":1\r\n", b"-LOADING the dataset\r\n"]
)
def test_a_server_that_talks_nonsense_gets_nothing_and_costs_nothing(
    answer: bytes, tmp_path: Path
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # One answer for every command: each begins with its number of words.
        while line := await reader.readline():
            if line.startswith(b"*"):
                writer.write(answer)
        writer.close()

    async def scenario() -> None:
        fake = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{fake.sockets[0].getsockname()[1]}/0"
        async with fake, running(Setting(url, tmp_path), close_s=0.1) as rig:
            rig.offer(5)
            await rig.until(lambda: bool(rig.statistics.last_error))
            assert rig.spooled == 5
            assert not rig.statistics.is_sink_up

    asyncio.run(scenario())


def test_the_sink_s_state_is_logged_once_per_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gateway.prediction_log.shipping.shipper")

    async def scenario(server: RedisServer) -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            rig.offer(1)
            await rig.until_shipped()
            server.kill()
            rig.offer(50)
            await rig.until_down()
            await asyncio.sleep(0.3)  # long enough for further attempts
            server.start()
            await rig.until_shipped()

    with running_redis() as server:
        asyncio.run(scenario(server))
    assert [r.message for r in caplog.records if r.name.endswith("shipper")] == [
        "prediction log sink up",
        "prediction log sink down",
        "prediction log sink up",
    ]


def test_an_idle_shipper_notices_that_redis_went_and_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prediction_log.shipping.upkeep.PROBE_S", 0.02)
    monkeypatch.setattr("gateway.prediction_log.shipping.shipper.TICK_S", 0.01)

    async def scenario(server: RedisServer) -> None:
        async with running(Setting(server.url, tmp_path)) as rig:
            await rig.until(lambda: rig.statistics.is_sink_up)
            server.kill()
            await rig.until_down()
            server.start()
            await rig.until(lambda: rig.statistics.is_sink_up)
            with redis.Redis.from_url(server.url) as client:
                await rig.until(lambda: calls(client, "ping") > 2)

    with running_redis() as server:
        asyncio.run(scenario(server))
