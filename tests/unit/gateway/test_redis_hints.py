"""Hints through Redis: heard, lost with the connection, and made up for by the next one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.route_control.redis_hints import FIRST_RETRY_S, LONGEST_RETRY_S, RedisChangeHints
from gateway.route_control.redis_store import CHANNEL, RedisRouteStore
from tests.support.redis import redis_binaries, running_redis
from tests.support.route_stores import allow, write_row

pytestmark = pytest.mark.redis

LONG_S = 10.0
SHORT_S = 0.02


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(request.param) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


@asynccontextmanager
async def hints_of(
    server: RedisServer, *, keepalive_s: float = 5.0
) -> AsyncIterator[RedisChangeHints]:
    hints = RedisChangeHints(server.url, timeout_s=0.5, keepalive_s=keepalive_s)
    try:
        yield hints
    finally:
        await hints.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 - a connection's state is no event
            await asyncio.sleep(0.005)


def test_a_change_is_heard_and_silence_is_waited_out(server: RedisServer) -> None:
    async def scenario() -> None:
        store = RedisRouteStore(server.url)
        async with hints_of(server) as hints:
            # The first connection counts: who reads now has missed nothing from here on.
            assert await hints.next(LONG_S) is True
            assert await hints.next(SHORT_S) is False
            await write_row(store, 1)
            assert await hints.next(LONG_S) is True
            assert await hints.next(SHORT_S) is False
            assert hints.is_connected
        await store.close()

    asyncio.run(scenario())


def test_what_is_said_between_two_calls_is_not_lost_and_is_one_hint(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        async with hints_of(server) as hints:
            assert await hints.next(LONG_S)
            for _ in range(100):
                client.publish(CHANNEL, "digits 1 2")
            await asyncio.sleep(0.2)  # nobody waits; the listener takes in all of them
            assert await hints.next(0.0) is True
            assert await hints.next(SHORT_S) is False

    asyncio.run(scenario())


def test_after_every_reconnect_there_is_a_hint_without_any_message(server: RedisServer) -> None:
    async def scenario() -> None:
        async with hints_of(server) as hints:
            assert await hints.next(LONG_S)
            for restarts in range(1, 4):
                server.kill()
                await until(lambda: not hints.is_connected)
                assert await hints.next(SHORT_S) is False
                server.start()
                assert await hints.next(LONG_S) is True
                assert hints.connections == 1 + restarts

    asyncio.run(scenario())


def test_a_connection_that_is_cut_is_made_again(server: RedisServer, client: redis.Redis) -> None:
    async def scenario() -> None:
        async with hints_of(server) as hints:
            assert await hints.next(LONG_S)
            client.client_kill_filter(_type="pubsub")
            begun_s = time.monotonic()
            assert await hints.next(LONG_S) is True
            assert time.monotonic() - begun_s < 5
            client.publish(CHANNEL, "digits 1 2")
            assert await hints.next(LONG_S) is True

    asyncio.run(scenario())


def test_a_server_that_has_gone_silent_is_left_and_met_again(server: RedisServer) -> None:
    async def scenario() -> None:
        async with hints_of(server, keepalive_s=0.1) as hints:
            assert await hints.next(LONG_S)
            # Alive and quiet: it is asked, it answers, nothing else happens.
            assert await hints.next(0.5) is False
            assert hints.connections == 1
            assert hints.is_connected
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await until(lambda: not hints.is_connected)
                assert await hints.next(SHORT_S) is False
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert await hints.next(LONG_S) is True
            assert hints.connections == 2

    asyncio.run(scenario())


def test_without_a_server_next_sleeps_and_the_first_one_to_come_is_heard(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()

    async def scenario() -> None:
        async with hints_of(server) as hints:
            begun_s = time.monotonic()
            for _ in range(3):
                assert await hints.next(0.1) is False
            assert time.monotonic() - begun_s >= 0.3
            assert hints.connections == 0
            server.start()
            assert await hints.next(LONG_S) is True

    with caplog.at_level(logging.INFO, logger="gateway.route_control"):
        asyncio.run(scenario())
    # Told once, however often it was tried.
    events = [record.getMessage() for record in caplog.records]
    assert events == ["route change hints lost", "route change hints up"]


def test_a_wait_that_is_given_up_takes_nothing_with_it(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        async with hints_of(server) as hints:
            assert await hints.next(LONG_S)
            for _ in range(20):
                waiting = asyncio.create_task(hints.next(LONG_S))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            client.publish(CHANNEL, "digits 1 2")
            assert await hints.next(LONG_S) is True
            assert hints.connections == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("state", ["unused", "connecting", "connected", "cut", "down"])
def test_hints_can_be_closed_in_every_state_and_twice(server: RedisServer, state: str) -> None:
    async def scenario() -> None:
        hints = RedisChangeHints(server.url, timeout_s=0.5)
        if state == "connecting":
            await hints.next(0.0)
        if state in ("connected", "cut"):
            assert await hints.next(LONG_S)
        if state in ("cut", "down"):
            server.kill()
        if state == "down":
            assert await hints.next(0.2) is False
        async with asyncio.timeout(2.0):
            await hints.close()
            assert len(asyncio.all_tasks()) == 1
            await hints.close()
        assert await hints.next(SHORT_S) is False
        assert not hints.is_connected

    asyncio.run(scenario())


def test_hints_without_the_right_to_listen_only_sleep(
    server: RedisServer, client: redis.Redis
) -> None:
    allow(client, "deaf", "-subscribe")

    async def scenario() -> None:
        url = server.url.replace("redis://", "redis://deaf:secret@")
        hints = RedisChangeHints(url, timeout_s=0.5)
        assert await hints.next(0.3) is False
        await hints.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_pauses_between_attempts_grow_to_a_limit_and_vary(chance: float) -> None:
    hints = RedisChangeHints("redis://127.0.0.1:1/0", chance=lambda: chance)
    pauses = [hints._pause_s(failures) for failures in range(2_000)]
    longest = [min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(n, 50)) for n in range(2_000)]
    if chance == 0.0:
        assert pauses == longest
    else:
        ratios = [pause / most for pause, most in zip(pauses, longest, strict=True)]
        assert all(0.5 <= ratio < 0.51 for ratio in ratios)
