"""One erasure at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from gateway.prediction_log.erasure.lock import AnotherRuns, Lock
from gateway.prediction_log.erasure.tombstone import LOCK_KEY
from tests.support.erasures import plain_redis

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    with plain_redis() as (_, client):
        yield client


def test_a_second_erasure_waits_and_gives_up(client: redis.Redis) -> None:
    with Lock(client, wait_s=0), pytest.raises(AnotherRuns), Lock(client, wait_s=0.1):
        pass
    with Lock(client, wait_s=0):
        pass
    assert not client.exists(LOCK_KEY)


def test_a_holder_that_was_stopped_too_long_is_told_and_takes_nothing_away(
    client: redis.Redis,
) -> None:
    now_s = 100.0
    with Lock(client, wait_s=0, clock_s=lambda: now_s) as stopped:
        stopped.extend()
        client.delete(LOCK_KEY)  # it has expired
        with Lock(client, wait_s=0):
            stopped.extend()  # a moment after the last time: not asked
            now_s += 6
            with pytest.raises(AnotherRuns, match="took over"):
                stopped.extend()
            stopped.__exit__(None, None, None)
            assert client.exists(LOCK_KEY)


def test_a_holder_that_goes_on_keeps_it(client: redis.Redis) -> None:
    now_s = 100.0
    with Lock(client, wait_s=0, clock_s=lambda: now_s) as held:
        client.pexpire(LOCK_KEY, 5_000)
        now_s += 6
        held.extend()
        assert int(str(client.pttl(LOCK_KEY))) > 50_000
