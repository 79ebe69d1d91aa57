"""Ending tasks: also those that swallow a cancellation, fail, or have ended already."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from gateway.ending import end
from gateway.route_control.redis_hints import RedisChangeHints
from tests.support.batching import HANG_S
from tests.support.redis import running_redis


async def wait_for_ever(*, swallowed: int = 0) -> None:
    """Wait; lose so many cancellations first."""
    for _ in range(swallowed):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
    await asyncio.get_running_loop().create_future()


async def fail_when_cancelled() -> None:
    try:
        await wait_for_ever()
    finally:
        raise RuntimeError("while it was cleaning up")


def test_every_task_has_ended_even_if_it_loses_a_cancellation() -> None:
    async def scenario() -> None:
        tasks = [asyncio.ensure_future(wait_for_ever(swallowed=n)) for n in (0, 1, 2)]
        await asyncio.sleep(0)
        await asyncio.wait_for(end(*tasks), HANG_S)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(scenario())


def test_a_task_that_fails_or_has_ended_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        failing = asyncio.ensure_future(fail_when_cancelled())
        done = asyncio.ensure_future(asyncio.sleep(0))
        await asyncio.sleep(0)
        await done
        await end()
        await end(failing, done)
        assert failing.done()
        del failing
        gc.collect()

    asyncio.run(scenario())
    assert not caplog.records  # no "exception was never retrieved"


def test_who_waits_for_the_end_may_be_cancelled() -> None:
    async def scenario() -> None:
        stubborn = asyncio.ensure_future(wait_for_ever(swallowed=1_000))
        ending = asyncio.ensure_future(end(stubborn))
        await asyncio.sleep(0.01)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        while not stubborn.done():
            stubborn.cancel()
            await asyncio.sleep(0)

    asyncio.run(scenario())


def test_hints_are_closed_at_whatever_moment_of_their_connection() -> None:
    async def scenario(url: str) -> None:
        for step in range(60):
            hints = RedisChangeHints(url)
            await hints.next(step / 20_000)
            await asyncio.wait_for(hints.close(), HANG_S)

    with running_redis(append_only=False) as server:
        asyncio.run(scenario(server.url))
